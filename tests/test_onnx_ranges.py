"""Sizes that a branch of the model bounds: fixed in an ONNX file, which cannot refuse others."""

import collections

import onnx
import torch
import torch.utils._pytree as pytree
from torch import nn

from prunec import compiler, passes


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x if x.shape[0] <= 4 else -x)))


class Named(collections.OrderedDict):
    """An output class without key paths."""


pytree._register_pytree_node(
    Named,
    lambda o: (list(o.values()), list(o)),
    lambda values, keys: Named(zip(keys, values, strict=True)),
    serialized_type_name="tests.Named",
)


class Returns(Branch):
    def forward(self, x):
        return Named(sample=self.b(torch.relu(self.a(x))))


def cut(model):
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    return compiler.PassManager(steps).run(compiler.capture(model.eval(), (torch.randn(3, 8),)))


def test_a_bounded_batch_is_fixed_in_the_file_unless_asked_otherwise(tmp_path):
    result = cut(Branch())
    assert any("at most 4" in note for note in result.report.notes)
    for name in ("model", "graph_module"):
        result.model = getattr(result, name)
        found = result.export_onnx(tmp_path / "a.onnx")
        assert not found.dynamic_batch
        free = result.export_onnx(tmp_path / "b.onnx", bounded_axes="dynamic")
        assert free.dynamic_batch
        for file in ("a.onnx", "b.onnx"):
            stored = {p.key: p.value for p in onnx.load(tmp_path / file).metadata_props}
            assert "at most 4" in stored["prunec.sizes"]
        assert "at most 4" in free.axes()


def test_outputs_of_a_class_without_key_paths_are_named_by_position(tmp_path):
    found = cut(Returns()).export_onnx(tmp_path / "a.onnx")
    assert found.outputs == ["output_0"]
    assert found.dynamic_batch
