"""Models and example inputs that cannot be captured, and wrappers that are taken off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from refused import Takes, X, refused, small
from torch import nn

from prunec import compiler


def captured(model: Any, *args: Any, **options: Any) -> compiler.Graph:
    return compiler.capture(model, args or (X,), **options)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], Any]) -> None:
    model = small()
    assert captured(wrap(model)).source is model
    found = compiler.compile(
        wrap(model), (X,), target=compiler.Target(params=0.7), measure=False
    )
    assert type(found.model) is nn.Sequential


def offloaded() -> nn.Module:
    return cpu_offload(small())


def partly_on_meta() -> nn.Module:
    model = small()
    model[2].to("meta")
    return model


def with_sparse_weight() -> nn.Module:
    model = small()
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse())
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: None, ("not None", "pass the model itself")),
        (lambda: nn.Linear, ("the class Linear", "call it first")),
        (lambda: small().state_dict(), ("OrderedDict", "load_state_dict")),
        (lambda: torch.jit.trace(small(), X), ("traced or scripted", "that it was made from")),
        (lambda: torch.jit.script(small()), ("traced or scripted", "before torch.jit.trace")),
        (lambda: nn.Sequential(torch.jit.script(small())), ("traced or scripted",)),
        (lambda: nn.Sequential(torch.compile(small())), ("'0'", "wrapper._orig_mod")),
        (
            lambda: torch.ao.quantization.quantize_dynamic(small()),
            ("'0' (Linear) holds quantised weights", "float model", "quantize_onnx"),
        ),
        (offloaded, ("offloaded", "without device_map")),
        (partly_on_meta, ("'2.weight'", "meta device", "load all weights")),
        (lambda: nn.Sequential(nn.LazyLinear(3)), ("'0.weight'", "run the model once")),
        (with_sparse_weight, ("'0.weight' is sparse", "to_dense()")),
    ],
)
def test_models_that_cannot_be_cut_are_refused(
    make: Callable[[], Any], words: tuple[str, ...]
) -> None:
    refused(lambda: captured(make()), *words)
    refused(
        lambda: compiler.compile(make(), (X,), target=compiler.Target(params=0.5)), *words
    )


def test_a_lazy_model_that_was_run_once_is_captured() -> None:
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 3))
    model(X)
    assert captured(model).prunable


class OfBuffers(nn.Module):
    """Weights that are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(16, 8))
        self.register_buffer("other", torch.randn(4, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.weight.T) @ self.other.T


def test_a_model_of_buffers_only_is_compiled_or_refused_in_words() -> None:
    model = OfBuffers()
    found = compiler.compile(model, (X,), target=compiler.Target(bytes=0.7), measure=False)
    assert found.report.after.bytes < found.report.before.bytes
    assert "parameters" in str(found.report)
    refused(
        lambda: compiler.compile(model, (X,), target=compiler.Target(params=0.5), measure=False),
        "params",
        "bytes",
    )
    refused(
        lambda: compiler.compile(nn.ReLU(), (X,), target=compiler.Target(params=0.5)), "target"
    )


class Cache:
    def get_seq_length(self) -> int:
        return 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((X.to("meta"),), ("input 0", "meta device", "torch.zeros")),
        ((X[:0],), ("input 0 is empty", "[0, 8]", "pass two samples")),
        ((X.to_sparse(),), ("sparse", "x.to_dense()")),
        ((torch.nested.nested_tensor([X[0], X[1]]),), ("nested", "to_padded_tensor")),
        ((X + 0j,), ("complex", "view_as_real")),
        ((X.numpy(),), ("ndarray", "torch.as_tensor(x)")),
        ((X, Cache()), ("input 1", "key-value cache", "use_cache=False")),
        ((torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),), ("quantised", "dequantize()")),
        ((X, X, True, X), ("do not fit Takes.forward", "pass args or kwargs")),
        ((X[:, :3],), ("does not run on the example inputs", "pass inputs on which")),
    ],
)
def test_example_inputs_that_make_no_graph_are_refused(
    args: tuple[Any, ...], words: tuple[str, ...]
) -> None:
    refused(lambda: captured(Takes(), *args), *words)


@pytest.mark.parametrize(
    ("remedied", "made"),
    [
        ("to_dense", X.to_sparse().to_dense()),
        ("zeros", torch.zeros(X.shape, dtype=X.dtype)),
        ("as_tensor", torch.as_tensor(X.numpy())),
        ("two samples", X[:2]),
    ],
)
def test_the_remedies_for_example_inputs_help(remedied: str, made: torch.Tensor) -> None:
    assert captured(Takes(), made).prunable, remedied


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (5, ("args", "not 5", "pass (x,)")),
        ({"x": X}, ("args", "dict", "as kwargs=")),
        (X.numpy(), ("args", "ndarray", "torch.as_tensor")),
    ],
)
def test_arguments_of_forward_are_a_tuple(args: Any, words: tuple[str, ...]) -> None:
    refused(lambda: compiler.capture(small(), args), *words)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"y": {0: torch.export.Dim.AUTO}}, ("'y'", "no input of this call", "name some of x")),
        ({"shift": None}, ("'shift'", "it is not passed", "name some of x")),
        ({"x": {7: torch.export.Dim.AUTO}}, ("axes [7] of 'x'", "0 to 1")),
        (5, ("dynamic_shapes", "not 5", "x")),
        ((None, None), ("dynamic_shapes", "an entry for each of x")),
    ],
)
def test_a_wrong_name_in_dynamic_shapes_lists_the_names(shapes: Any, words: Any) -> None:
    refused(lambda: captured(Takes(), dynamic_shapes=shapes), *words)


def test_dynamic_shapes_may_name_some_of_the_inputs() -> None:
    shift = torch.zeros(16)
    graph = captured(Takes(), X, shift, dynamic_shapes={"x": {0: torch.export.Dim.AUTO}})
    assert graph.program.dynamic
