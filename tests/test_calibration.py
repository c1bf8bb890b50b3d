"""Statistics on calibration data: rows of each kind of layer, moments, streams, padding, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny_models import IDS, IMAGES, small_cnn, tiny_bert
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler.errors import PlanError
from prunec.compiler.verify.interpreter import ProgramInterpreter
from prunec.passes.calibration.moments import Moments
from prunec.passes.calibration.rows import Patches, flat_rows, sample
from prunec.passes.calibration.streams import Stream, measuring
from prunec.passes.calibration.tokens import TokenMasks

CONVOLUTIONS: list[tuple[type[Any], tuple[int, ...], dict[str, Any]]] = [
    (nn.Conv2d, (3, 8, 9, 7), {"kernel_size": 3, "padding": 1}),
    (nn.Conv2d, (3, 8, 9, 7), {"kernel_size": (3, 2), "stride": 2, "padding": (1, 0)}),
    (nn.Conv2d, (3, 8, 9, 9), {"kernel_size": 3, "dilation": 2, "groups": 4}),
    (nn.Conv2d, (3, 8, 9, 9), {"kernel_size": (4, 3), "padding": "same", "groups": 8}),
    (nn.Conv2d, (3, 8, 9, 9), {"kernel_size": 3, "padding": "valid"}),
    (nn.Conv2d, (8, 9, 9), {"kernel_size": 3, "padding": 1}),
    (nn.Conv1d, (3, 8, 11), {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 3}),
    (nn.Conv1d, (3, 8, 11), {"kernel_size": 4, "padding": "same", "groups": 2}),
]


@pytest.mark.parametrize(("cls", "shape", "options"), CONVOLUTIONS)
def test_patches_times_weights_are_the_convolution(
    cls: type[Any], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    layer = cls(8, 16, bias=False, **options).double()
    x = torch.randn(shape, dtype=torch.float64)
    given = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "groups")}
    patches = Patches.of(given, layer.kernel_size)
    weight = layer.weight.reshape(layer.groups, 16 // layer.groups, -1).mT
    blocks = list(patches.blocks(x, layer(x)))
    for inputs, outputs in blocks:
        torch.testing.assert_close(inputs @ weight, outputs)
    assert sum(y.numel() for _, y in blocks) == layer(x).numel()


def test_patches_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    patches = Patches((3, 3), (1, 1), (0, 0), (1, 1), 1)
    x, y = torch.randn(5, 4, 8, 8), torch.randn(5, 6, 6, 6)
    whole = list(patches.blocks(x, y))
    monkeypatch.setattr("prunec.passes.calibration.rows.BLOCK", 2 * 36 * 36)
    parts = list(patches.blocks(x, y))
    assert (len(whole), len(parts)) == (1, 3)
    assert torch.equal(torch.cat([p[0] for p in parts], 1), whole[0][0])


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_patches_of_one_large_sample_come_in_blocks(
    stride: int, dilation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = Patches((3, 3), (stride, 1), (0, 0), (dilation, 1), 1)
    x = torch.randn(2, 4, 15, 8)
    y = nn.functional.conv2d(x, torch.randn(6, 4, 3, 3), stride=(stride, 1), dilation=(dilation, 1))
    whole = list(patches.blocks(x, y))
    monkeypatch.setattr("prunec.passes.calibration.rows.BLOCK", 2 * 6 * 36)
    parts = list(patches.blocks(x, y))
    assert len(parts) >= 4
    assert all(p[0].numel() <= 2 * 6 * 36 for p in parts)
    for i in range(2):
        assert torch.equal(torch.cat([p[i] for p in parts], 1), whole[0][i])


def test_rows_are_sampled_evenly_and_by_seed() -> None:
    x = torch.arange(200.0).reshape(1, 100, 2)
    pairs = [sample(x, x, 0.3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert all(inputs.shape == (1, 30, 2) and torch.equal(inputs, y) for inputs, y in pairs)
    assert torch.equal(pairs[0][0], pairs[1][0])
    assert not torch.equal(pairs[0][0], pairs[2][0])
    assert sample(x, x, 1.0, torch.Generator())[0] is x


def test_moments_give_the_error_after_any_change() -> None:
    torch.manual_seed(0)
    x, e = torch.randn(2, 50, 3), torch.randn(2, 50, 4) + 1
    moments = Moments(2, 3, 4, x.device)
    for part in (slice(0, 20), slice(20, 50)):
        moments.add(x[:, part], e[:, part])
    change, shift = torch.randn(2, 3, 4).double(), torch.randn(2, 4).double()
    direct = e - x.double() @ change - shift[:, None]
    assert moments.error(change, shift) == pytest.approx(float(direct.square().sum()))
    assert moments.error(shift=shift) == pytest.approx(float((e - shift[:, None]).square().sum()))
    assert moments.error() == pytest.approx(float(e.square().sum()))


def test_stream_gives_what_the_program_gives_and_sees_changed_weights() -> None:
    model = small_cnn()
    graph = compiler.capture(model, (IMAGES,))
    raw = passes_to_dense(graph)
    program = raw._state.dense.program
    stream = Stream(program, [[IMAGES], [IMAGES + 1]])
    middle = stream.by_name["conv2d_1"]
    last = stream.by_name["linear"]
    with measuring():
        stream.advance(middle)
        assert not stream.passed(middle)
        program.tensors["head.weight"].mul_(2)
        stream.advance(last, through=True)
    for batch, x in enumerate((IMAGES, IMAGES + 1)):
        stream.turn_to(batch)
        assert torch.equal(stream.value_of(last), ProgramInterpreter(program)([x])[0])
    assert stream.passed(middle)
    assert list(stream.env) == [last]  # what nothing reads any more is gone


def passes_to_dense(graph: Any) -> Any:
    """The graph at half its width."""
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    return compiler.PassManager(steps).run(graph)


def padded(fill: int) -> list[dict[str, Tensor]]:
    """Token ids whose last three of seven are padding, of value `fill`, but for row 0."""
    batches: list[dict[str, Tensor]] = []
    for seed in range(6):
        ids = torch.randint(0, 99, (8, 7), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones_like(ids)
        mask[1:, 4:] = 0
        batches.append({"input_ids": torch.where(mask > 0, ids, fill), "attention_mask": mask})
    return batches


def test_padding_does_not_count() -> None:
    kwargs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    graph = compiler.capture(tiny_bert(), None, kwargs=kwargs)
    steps = [
        passes.MagnitudeScore(),
        passes.PruneChannels(ratio=0.5, exact_only=True),
        passes.SparseToDense(),
        passes.Reconstruct(),
    ]
    results = [compiler.PassManager(steps).run(graph, padded(fill)) for fill in (3, 77)]
    name = "bert.encoder.layer.0.output.dense.weight"
    first, second = (r.model.get_parameter(name) for r in results)
    assert torch.equal(first, second)
    layers = results[0].report.passes[-1].details["layers"]
    assert layers[name]["rows"] == 6 * (7 + 7 * 4)
    unmasked = [
        {**batch, "attention_mask": torch.ones_like(IDS[:1]).expand(8, 7)} for batch in padded(3)
    ]
    other = compiler.PassManager(steps).run(graph, unmasked)
    assert not torch.equal(first, other.model.get_parameter(name))


def test_masks_fit_the_values_they_have_the_shape_of() -> None:
    kwargs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    program = compiler.capture(tiny_bert(), None, kwargs=kwargs).program
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    masks = TokenMasks(program, [program.flat_inputs((), {**kwargs, "attention_mask": mask})])
    node = next(n for n in program.graph.nodes if n.name == "linear")
    assert masks.rows(node, 0, [2, 7]).tolist() == (mask.reshape(-1) > 0).tolist()
    assert masks.rows(node, 0, [14]).sum() == 12
    assert masks.rows(node, 0, [7, 2]) is None
    assert masks.rows(node, 0, [2]) is None


def test_memory_limits_the_batches_and_one_is_always_used() -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    batches = list(torch.randn(6, 4, 3, 8, 8))
    used: list[tuple[int, int]] = []
    for memory in (1, 90_000, 2**31):
        repair = passes.Reconstruct(memory=memory)
        steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
        report = compiler.PassManager([*steps, repair]).run(graph, batches).report
        details = report.passes[-1].details
        used.append((details["batches"], details["batches left out"]))
    assert used[0] == (1, 5)
    assert 1 < used[1][0] < 6
    assert sum(used[1]) == 6
    assert used[2] == (6, 0)


def test_a_decoder_has_its_own_padding() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        d_model=16, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8, vocab_size=99
    )
    model = transformers.T5Model(config).eval()
    call = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    call |= {f"decoder_{name}": value for name, value in call.items()}
    program = compiler.capture(model, None, kwargs=call).program
    encoder, decoder = torch.ones_like(IDS), torch.ones_like(IDS)
    encoder[:, 5:], decoder[:, 2:] = 0, 0
    call |= {"attention_mask": encoder, "decoder_attention_mask": decoder}
    masks = TokenMasks(program, [program.flat_inputs((), call)])
    counts: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target == torch.ops.aten.linear.default:
            rows = masks.rows(node, 0, [2, 7])
            assert rows is not None
            counts[str(node.args[1].target)] = int(rows.sum())
    of_encoder = {n for n in counts if n.startswith("encoder") or ".EncDecAttention.k" in n}
    of_encoder |= {n for n in counts if ".EncDecAttention.v" in n}
    assert len(of_encoder) == 8
    assert counts == {name: 10 if name in of_encoder else 4 for name in counts}


class FixedLength(nn.Module):
    """A length written into forward, and so fixed by capture; the batch is dynamic."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.head(y.reshape(-1, 6, 16).mean(1))


def test_batches_of_shapes_that_capture_fixed_are_left_out() -> None:
    torch.manual_seed(0)
    graph = compiler.capture(FixedLength().eval(), (torch.randn(4, 6, 8),))
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    batches = [torch.randn(16, 6, 8), torch.randn(9, 6, 8), torch.randn(4, 5, 8)]
    report = compiler.PassManager([*steps, passes.Reconstruct(batches)]).run(graph).report
    assert report.passes[-1].details["batches"] == 2
    assert "1 of 3 batches left out" in report.passes[-1].summary
    with pytest.raises(PlanError, match=r"none of the .* \[4, 6, 8\], .* \[4, 5, 8\]"):
        compiler.PassManager([*steps, passes.Reconstruct(batches[2:])]).run(graph)


def test_without_calibration_data_repair_is_refused() -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    with pytest.raises(PlanError, match="reconstruct needs calibration data"):
        compiler.PassManager([*steps, passes.Reconstruct()]).run(graph)


def test_flat_rows_keep_positions_together() -> None:
    x = torch.randn(2, 5, 3)
    ((inputs, outputs),) = flat_rows(x, x[..., :2])
    assert torch.equal(inputs[0, 7], x[1, 2])
    assert torch.equal(outputs[0, 7], x[1, 2, :2])
