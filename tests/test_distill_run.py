"""A training run as people rely on it: features, checkpoints, the best weights, processes."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from test_distill import X, Y, distil, mlp, same, weights
from tiny_models import tiny_bert
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunec import compiler, passes
from prunec.passes.distillation.average import Average
from prunec.passes.distillation.features import feature_loss
from prunec.passes.distillation.losses import DistillError
from prunec.passes.distillation.outputs import position_mask

HERE = pathlib.Path(__file__).parent


def shuffled() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), 8, shuffle=True)


# Features.


def test_feature_loss_is_the_mean_of_normalised_squared_errors() -> None:
    trained = nn.Parameter(torch.ones(()))
    s = {"a": [torch.tensor([[1.0, 2.0]])], "b": [torch.zeros(1, 3), torch.ones(1, 3)]}
    s = {path: [value * trained for value in values] for path, values in s.items()}
    t = {"a": [torch.tensor([[1.0, 0.0]])], "b": [torch.ones(1, 3), torch.ones(1, 3)]}
    loss = feature_loss(s, t, {})
    assert loss is not None
    assert loss.item() == pytest.approx((4 / 1 + 3 / 3 + 0) / 3)
    other = {"a": [torch.zeros(1, 5) * trained], "b": [torch.zeros(1, 3)]}
    assert feature_loss(other, t, {}) is None  # another width, and one that nothing trains


def test_a_decoder_without_a_mask_counts_what_has_a_label() -> None:
    hidden = torch.zeros(2, 3, 4)
    seen = torch.tensor([[1, 1, 0], [1, 1, 1]])
    arguments = {
        "attention_mask": seen,
        "decoder_input_ids": torch.ones(2, 3),
        "labels": torch.tensor([[5, -100, -100], [5, 5, 5]]),
    }
    mask = position_mask(arguments, hidden)
    assert mask is not None
    assert mask.tolist() == [[True, False, False], [True] * 3]
    inside = position_mask(arguments, hidden, decoder=False)
    assert inside is not None
    assert inside.tolist() == seen.bool().tolist()


def test_padding_does_not_count_in_features() -> None:
    mask = torch.tensor([[1, 0]])
    s, t = torch.tensor([[[1.0], [9.0]]]), torch.tensor([[[2.0], [1.0]]])
    s.requires_grad_()
    loss = feature_loss({"a": [s]}, {"a": [t]}, {"attention_mask": mask})
    assert loss is not None
    assert loss.item() == pytest.approx(1 / 4)


def test_matched_modules_are_the_readers_of_what_was_cut_and_the_norms_behind_them() -> None:
    model = tiny_bert()
    tokens = torch.randint(0, 90, (4, 7))
    graph = compiler.capture(model, kwargs={"input_ids": tokens})
    batches = [{"input_ids": torch.randint(0, 90, (4, 7))} for _ in range(2)]
    pipeline = [
        passes.MagnitudeScore(),
        passes.PruneChannels(ratio=0.5, include="hidden"),
        passes.SparseToDense(),
        passes.Distill(batches, steps=2, progress=False),
    ]
    result = compiler.PassManager(pipeline).run(graph)
    found = result.report.passes[-1].details["features"]
    for i in range(len(model.bert.encoder.layer)):
        layer = f"bert.encoder.layer.{i}"
        assert f"{layer}.output.dense" in found
        assert f"{layer}.output.LayerNorm" in found
        assert f"{layer}.intermediate.dense" not in found  # its width was cut
        assert f"{layer}.attention.self.query" not in found  # it reads nothing cut


def test_features_pull_the_inside_towards_the_teacher() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 3))

    def inside(features: float) -> float:
        graph = compiler.capture(model, (X,))
        pipeline = [
            passes.MagnitudeScore(),
            passes.PruneChannels(ratio=0.5, include="0:*"),
            passes.SparseToDense(),
            passes.Distill(
                [X], steps=60, learning_rate=1e-2, features=features, features_until=1.0
            ),
        ]
        small = compiler.PassManager(pipeline).run(graph).model
        with torch.no_grad():
            return (small[:3](X) - model[:3](X)).square().mean().item()

    assert inside(10.0) < inside(0.0) * 0.8


# Runs.


def test_gradients_of_several_batches_make_one_step() -> None:
    teacher = mlp(16, classes=4).eval()
    one, several = (nn.Linear(6, 4) for _ in range(2))
    several.load_state_dict(one.state_dict())
    halves = [X[:16], X[16:]]
    distil(one, teacher, [X], steps=3)
    distil(several, teacher, halves, steps=3, accumulate=2)
    for a, b in zip(weights(one), weights(several), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # the norm of a sum is no sum


def test_the_best_weights_are_kept() -> None:
    values = iter([0.1, 0.5, 0.9, 0.3, 0.2])
    seen: list[list[Tensor]] = []

    def metric(model: nn.Module) -> float:
        assert not model.training
        seen.append(weights(model))
        return next(values)

    student = mlp(8)
    result = distil(student, mlp(16), steps=4, metric=metric, evaluate_every=1)
    assert same(weights(student), seen[2])
    assert result.details["metric"] == [[0, 0.1], [1, 0.5], [2, 0.9], [3, 0.3], [4, 0.2]]
    assert "0.9 at step 2, which was kept" in result.summary


def test_a_run_that_only_gets_worse_changes_nothing() -> None:
    values = iter([0.9, float("nan"), 0.2])
    student = mlp(8)
    before = weights(student)
    distil(student, mlp(16), steps=2, metric=lambda _: next(values), evaluate_every=1)
    assert same(weights(student), before)


def test_a_metric_may_run_the_original(tmp_path: pathlib.Path) -> None:
    """What it runs is no target of the values inside, and does not get into what is cached."""
    graph = compiler.capture(mlp(16), (X,))
    values = iter(range(100))

    def trained(**options: Any) -> nn.Module:
        steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
        train = passes.Distill([X, -X], steps=6, learning_rate=1e-2, progress=False, **options)
        return compiler.PassManager([*steps, train]).run(graph).model

    def metric(model: nn.Module) -> float:
        graph.source(X + 1)
        return next(values)

    watched = {"metric": metric, "evaluate_every": 1}
    plain = weights(trained())
    assert same(plain, weights(trained(**watched)))
    assert same(plain, weights(trained(**watched, teacher_cache=tmp_path)))


def test_an_average_that_is_read_back_stays_where_it_is() -> None:
    average = Average(0.5, lambda: [torch.ones(3)])
    own = average.kept[0]
    average.load_state_dict({"kept": [torch.full((3,), 2.0)]})
    assert average.kept[0] is own
    assert own.tolist() == [2.0] * 3


def test_patience_ends_a_run() -> None:
    values = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    result = distil(
        mlp(8), mlp(16), steps=20, metric=lambda _: next(values), evaluate_every=1, patience=2
    )
    assert result.details["steps"] == 3
    assert "stopped early, 20 were planned" in result.summary
    with pytest.raises(DistillError, match="patience needs a metric"):
        distil(mlp(8), mlp(16), patience=2)


def test_the_average_of_the_weights_is_kept() -> None:
    path: list[list[Tensor]] = []
    teacher = nn.Linear(6, 3)
    plain, averaged = nn.Linear(6, 3), nn.Linear(6, 3)
    averaged.load_state_dict(plain.state_dict())
    start = weights(plain)
    hook = plain.register_forward_pre_hook(lambda *_: path.append(weights(plain)))
    distil(plain, teacher, [X], steps=3)
    hook.remove()
    path = [*path[1:], weights(plain)]
    expected = start
    for step in path:
        expected = [0.5 * a + 0.5 * b for a, b in zip(expected, step, strict=True)]
    distil(averaged, teacher, [X], steps=3, ema=0.5)
    for a, b in zip(weights(averaged), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_is_gone_afterwards() -> None:
    student = mlp(8)
    distil(student, mlp(16), steps=2, precision="bf16")
    assert student(X).dtype == torch.float32
    assert "forward" not in vars(student)
    plain = mlp(8)
    distil(plain, mlp(16), steps=2)
    assert not same(weights(student), weights(plain))


# What is kept on disk.


@pytest.mark.parametrize("stop", [4, 7])
def test_resuming_is_exact(tmp_path: pathlib.Path, stop: int) -> None:
    """With dropout, a shuffling loader, an average and a schedule."""
    options: dict[str, Any] = {"epochs": 3, "ema": 0.9, "checkpoint_every": 2, "dropout": True}
    whole = mlp(8, dropout=0.3)
    distil(whole, mlp(16), shuffled(), **options)

    class Interrupted(Exception):
        pass

    seen = []

    def interrupt(*_: Any) -> None:
        seen.append(1)
        if len(seen) > stop:
            raise Interrupted

    student = mlp(8, dropout=0.3)
    hook = student.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted):
        distil(student, mlp(16), shuffled(), checkpoint=tmp_path, **options)
    hook.remove()
    resumed = mlp(8, dropout=0.3)
    result = distil(resumed, mlp(16), shuffled(), checkpoint=tmp_path, **options)
    assert result.details["resumed at"] == stop // 2 * 2
    assert same(weights(resumed), weights(whole))


def test_a_checkpoint_of_a_run_from_other_weights_is_refused(tmp_path: pathlib.Path) -> None:
    first, other, close = mlp(8), mlp(8), mlp(8)
    with torch.no_grad():
        other[0].weight[3] += 0.5
        close[0].weight.mul_(1 + 1e-5)  # a repair that was solved again
    distil(first, mlp(16), steps=2, checkpoint=tmp_path)
    with pytest.raises(DistillError, match="the weights that the smaller model begins with"):
        distil(other, mlp(16), steps=2, checkpoint=tmp_path)
    assert distil(close, mlp(16), steps=2, checkpoint=tmp_path).details["resumed at"] == 2
    assert same(weights(close), weights(first))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: pathlib.Path) -> None:
    distil(mlp(8), mlp(16), steps=2, checkpoint=tmp_path)
    with pytest.raises(DistillError, match=r"another run .*options"):
        distil(mlp(8), mlp(16), steps=2, checkpoint=tmp_path, temperature=2.0)


def test_a_finished_run_is_not_run_again(tmp_path: pathlib.Path) -> None:
    one, two = mlp(8), mlp(8)
    distil(one, mlp(16), steps=3, checkpoint=tmp_path)
    calls: list[int] = []
    hook = two.register_forward_pre_hook(lambda *_: calls.append(1))
    distil(two, mlp(16), steps=3, checkpoint=tmp_path)
    hook.remove()
    assert not calls
    assert same(weights(one), weights(two))


def test_the_teachers_answers_are_read_from_disk(tmp_path: pathlib.Path) -> None:
    teacher, calls = mlp(16).eval(), []
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    plain, cached = mlp(8), mlp(8)
    distil(plain, teacher, epochs=3)
    assert len(calls) == 6
    calls.clear()
    distil(cached, teacher, epochs=3, teacher_cache=tmp_path)
    assert len(calls) == 2
    assert same(weights(plain), weights(cached))
    calls.clear()
    with torch.no_grad():
        teacher[0].weight.mul_(1.5)  # another teacher: nothing of it is there
    distil(mlp(8), teacher, epochs=1, teacher_cache=tmp_path)
    assert len(calls) == 2
    next(iter(tmp_path.glob("*.safetensors"))).write_bytes(b"broken")
    distil(mlp(8), teacher, epochs=1, teacher_cache=tmp_path)


# Processes.

SCRIPT = """
import os, sys, time, torch
sys.path.insert(0, {here!r})
from test_distill import X, Y, distil, mlp
torch.set_num_threads(1)
student = mlp(8)
student[1] = torch.nn.Identity()
options = {options!r}
{before}
distil(student, mlp(16).eval(), {loader}, **options)
if os.environ.get("RANK", "0") == "0":
    torch.save(student.state_dict(), {out!r})
if torch.distributed.is_initialized():
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


def script(place: pathlib.Path, out: pathlib.Path, **fields: Any) -> pathlib.Path:
    defaults = {
        "options": {},
        "before": "",
        "loader": "[(X[i:i+8], Y[i:i+8]) for i in (0, 8, 16, 24)]",
    }
    place.write_text(SCRIPT.format(here=str(HERE), out=str(out), **{**defaults, **fields}))
    return place


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}


def in_two_processes(file: pathlib.Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--master_port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    run = subprocess.run(
        [*command, str(file)], env=environment(), timeout=300, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def assert_trained_as_one(found: dict[str, Tensor]) -> None:
    """As one process does that makes each step of two batches."""
    student = mlp(8)
    student[1] = nn.Identity()
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16, 24)]
    distil(student, mlp(16).eval(), batches, steps=4, accumulate=2)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batches(tmp_path: pathlib.Path) -> None:
    in_two_processes(script(tmp_path / "two.py", tmp_path / "two.pt", options={"steps": 4}))
    assert_trained_as_one(torch.load(tmp_path / "two.pt", weights_only=True))


# accelerate shards on accelerators only; torch does on CPUs too, and so does what it calls.
SHARDED = """
import accelerate
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from prunec.passes.distillation import training
def sharding(**options):
    made = accelerate.Accelerator(**options)
    for kept in (accelerate.state.PartialState._shared_state, made.state._shared_state):
        kept["distributed_type"] = DistributedType.FSDP
    made.state._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(fsdp_version=2)
    return made
training.Accelerator = sharding
"""


@pytest.mark.slow
def test_sharded_weights_train_as_whole_ones_and_resume(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "kept"
    for checkpoint in (None, str(place), str(place)):  # the last run resumes at its end
        options = {"steps": 4, "checkpoint": checkpoint, "checkpoint_every": 2}
        file = script(tmp_path / "run.py", tmp_path / "out.pt", options=options, before=SHARDED)
        in_two_processes(file)
        assert_trained_as_one(torch.load(tmp_path / "out.pt", weights_only=True))
    assert [p.name for p in place.glob("step-*")] == ["step-4"]


@pytest.mark.slow
def test_a_killed_run_loses_at_most_the_last_interval(tmp_path: pathlib.Path) -> None:
    kept = tmp_path / "kept"
    options = {"epochs": 20, "checkpoint": str(kept), "checkpoint_every": 2}
    slow = "student.register_forward_pre_hook(lambda *_: time.sleep(0.05))"
    file = script(tmp_path / "run.py", tmp_path / "out.pt", options=options, before=slow)
    run = subprocess.Popen([sys.executable, str(file)], env=environment())
    deadline = time.monotonic() + 120
    while not any(kept.glob("step-1[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "out.pt").exists()
    whole = [p.name for p in kept.glob("step-*") if not p.name.endswith(".part")]
    assert len(whole) <= 2  # the one before goes once the newest is there
    assert max(int(name.removeprefix("step-")) for name in whole) >= 10
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16, 24)]

    def trained(**more: Any) -> list[Tensor]:
        student = mlp(8)
        student[1] = nn.Identity()
        distil(student, mlp(16).eval(), batches, epochs=20, checkpoint_every=2, **more)
        return weights(student)

    assert same(trained(checkpoint=str(kept)), trained())


ALONE = """
import sys, os, torch
sys.path.insert(0, {here!r})
from prunec import compiler, passes
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import TargetError
from prunec.passes import allocate_widths
from prunec.passes.allocation.reached import Reached
from tiny_models import IMAGES, small_cnn
rank = int(os.environ["RANK"])
def measured(state, solver, target):
    state.notes.append(f"by {{rank}}")
    if target.value > 9:
        raise TargetError(f"out of reach of {{rank}}")
    return Reached(solver.at_share(0.5 if rank == 0 else 0.25), True, 2.0, 2.0)
allocate_widths.closed_loop = measured
state = Compilation(compiler.capture(small_cnn(), (IMAGES,)))
passes.MagnitudeScore().run(state)
passes.AllocateWidths(compiler.Target(speedup=2.0)).run(state)
assert set(state.widths.values()) == {{8, 12}}, (rank, state.widths)
assert state.notes == ["by 0"], state.notes
try:
    passes.AllocateWidths(compiler.Target(speedup=10.0)).run(state)
    raise SystemExit(3)
except TargetError as error:
    assert str(error) == "out of reach of 0"
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_take_the_widths_that_the_first_one_measured(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "alone.py"
    file.write_text(ALONE.format(here=str(HERE)))
    in_two_processes(file)
