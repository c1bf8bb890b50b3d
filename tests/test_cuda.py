"""On a CUDA device: every structure, every pass, speed targets, artifacts, half precision."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import structures as structures  # fills the table
import torch
import torch.utils._pytree as pytree
from nets import STRUCTURES, lively
from test_structures import only_exact, random_cut
from tiny_models import IDS, IMAGES, small_cnn, tiny_bert, tiny_llama
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler import Target
from prunec.compiler.cause import cause
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import CaptureError
from prunec.compiler.measure.model_timing import compare_modules
from prunec.compiler.plan import Plan
from prunec.compiler.rewrite.rewrite import rewrite
from prunec.compiler.verify.oracles import permutation, restricted_statistics, zero_mask
from prunec.compiler.verify.prove import verification_inputs
from prunec.compiler.verify.structure import check_structure

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def moved(value: Any, dtype: torch.dtype | None = None) -> Any:
    def move(t: Tensor) -> Tensor:
        return t.to("cuda", dtype if t.is_floating_point() else None)

    return pytree.tree_map_only(Tensor, move, value)


def devices(model: nn.Module) -> set[str]:
    return {t.device.type for t in (*model.parameters(), *model.buffers())}


class Wide(nn.Module):
    """Large enough that its time goes by its widths: 8192 tokens through 1024 x 8192."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(1024, 8192)
        self.down = nn.Linear(8192, 1024)
        self.head = nn.Linear(1024, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(torch.relu(self.up(x))))


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_is_cut_exactly_there_too(name: str) -> None:
    entry = STRUCTURES[name]
    torch.manual_seed(0)
    model = entry.build().eval()
    lively(model)
    model, args, kwargs = model.cuda(), moved(entry.args), moved(entry.kwargs)
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        pytest.skip(f"the net itself does not run there: {cause(error)[:100]}")
    try:
        graph = compiler.capture(model, args, kwargs=kwargs)
    except CaptureError as error:
        pytest.skip(f"torch.export itself fails there: {cause(error)[:100]}")
    inputs = verification_inputs(Compilation(graph))
    assert permutation(graph, inputs[:1]).passed
    cut = random_cut(graph, seed=1, share=0.5)
    kept = Plan(kept=cut, graph=graph).planned()
    dense = rewrite(graph, kept)
    check_structure(graph, dense, kept)
    assert restricted_statistics(graph, dense, kept, inputs).passed
    plan = Plan(kept=only_exact(graph, cut), graph=graph)
    dense = rewrite(graph, plan.planned())
    assert zero_mask(graph, dense, plan.planned(), inputs).passed


@pytest.mark.parametrize(
    ("build", "example"),
    [(small_cnn, IMAGES), (tiny_bert, {"input_ids": IDS}), (tiny_llama, {"input_ids": IDS})],
)
def test_a_model_is_compiled_on_a_device_and_its_original_stays(
    build: Callable[[], nn.Module], example: Any, tmp_path: pathlib.Path
) -> None:
    model = build()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    batches = [
        {k: torch.randint_like(v, 99) for k, v in example.items()}
        if isinstance(example, dict)
        else torch.randn_like(example)
        for _ in range(6)
    ]
    args, kwargs = ((), example) if isinstance(example, dict) else ((example,), {})
    result = compiler.compile(
        model,
        args,
        kwargs=kwargs,
        target=Target(params=0.7),
        calibration=batches,
        train=batches,
        device="cuda",
        options={"distill": {"steps": 4, "progress": False}},
    )
    assert type(result.model) is type(model)
    assert devices(result.model) == {"cuda"}
    assert devices(model) == {"cpu"}
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert result.report.after.params <= 0.7 * result.report.before.params
    assert all(c.passed for c in result.report.checks)
    assert result.verify().passed
    timed = result.report.latency[0]
    assert (timed.device, timed.ratio > 0) == ("cuda", True)
    assert min(timed.peak_before_bytes or 0, timed.peak_after_bytes or 0) > 0

    place = result.save(tmp_path / "small", onnx=True)
    fresh = None if hasattr(model, "config") else build()
    loaded = compiler.load(place, model=fresh)
    wanted = result.model.eval()(*moved(args), **moved(kwargs))
    with torch.no_grad():
        for a, b in zip(
            pytree.tree_leaves(loaded.eval()(*args, **kwargs)),
            pytree.tree_leaves(wanted),
            strict=True,
        ):
            if isinstance(a, Tensor):
                assert torch.allclose(a, b.cpu(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_judged_in_full(dtype: torch.dtype) -> None:
    model = tiny_llama().to("cuda", dtype)
    graph = compiler.capture(model, kwargs={"input_ids": IDS.cuda()})
    pipeline = [passes.MagnitudeScore(), passes.PruneHeads(ratio=0.5)]
    pipeline += [passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    result = compiler.PassManager(pipeline).run(graph)
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    proofs = ("zero mask", "restricted statistics", "permutation")
    judged = {c.dtype for c in result.report.checks if c.name in proofs and not c.skipped}
    assert judged <= {"float32", "float64"}
    assert type(result.model) is type(model)


@pytest.mark.parametrize("score", ["SecondOrderScore", "TaylorScore", "ActivationScore"])
def test_scores_and_repairs_run_there(score: str) -> None:
    batches = [torch.randn(16, 3, 8, 8, device="cuda") for _ in range(4)]
    graph = compiler.capture(small_cnn().cuda(), (IMAGES.cuda(),))
    pipeline = [getattr(passes, score)(batches), passes.PruneChannels(ratio=0.5)]
    pipeline += [passes.SparseToDense(), passes.Reconstruct(batches)]
    pipeline += [passes.RecalibrateBatchNorm(batches)]
    result = compiler.PassManager(pipeline).run(graph)
    assert devices(result.model) == {"cuda"}
    details = next(p for p in result.report.passes if p.name == "reconstruct").details
    before, after = details["output error"]
    assert after < before


def test_branches_go_and_training_of_every_kind_runs(tmp_path: pathlib.Path) -> None:
    model = tiny_bert(hidden_dropout_prob=0.0).cuda()
    batches = [{"input_ids": torch.randint(99, (4, 7), device="cuda")} for _ in range(4)]
    graph = compiler.capture(model, kwargs=batches[0])
    distill = passes.Distill(
        batches,
        steps=6,
        precision="bf16",
        ema=0.9,
        metric=lambda m: -float(m(**batches[0]).logits.abs().sum()),
        checkpoint=tmp_path / "run",
        teacher_cache=tmp_path / "answers",
        progress=False,
    )
    pipeline = [passes.DropLayers(count=1, unit="branch"), passes.SparseToDense(), distill]
    first = compiler.PassManager(pipeline).run(graph, batches)
    again = compiler.PassManager(pipeline).run(graph, batches)  # resumed at its end
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    plain = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    grown = passes.Distill(batches, steps=6, gradual=0.5, progress=False)
    result = compiler.PassManager([*plain, grown]).run(graph, batches)
    assert devices(result.model) == {"cuda"}


@pytest.mark.parametrize("runtime", ["torch", "compile"])
def test_a_speed_asked_for_is_measured(runtime: str) -> None:
    model = Wide().to("cuda", torch.bfloat16).eval()
    x = torch.randn(2, 1024, device="cuda", dtype=torch.bfloat16)
    target = Target(speedup=2.0, runtime=runtime, batch=8192)
    result = compiler.compile(model, (x,), target=target, calibration=[], measure=False)
    aim = result.report.aim
    assert aim is not None
    timed = compare_modules(
        model, result.model, (x,), runtime=runtime, device="cuda", batch=8192, attempts=2
    )
    assert timed.ratio == pytest.approx(2.0, rel=0.15)
    assert aim.measured == pytest.approx(2.0, rel=0.1)
