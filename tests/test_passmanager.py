"""Pipelines: their order, what holds after every pass, and that the user's model is left alone."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import structures as structures  # fills the table
import torch
from nets import IMAGE, STRUCTURES, TOKENS, captured, lively
from torch import nn

from prunec.compiler import Pass, PassManager, PassResult, Target, capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import PassOrderError, PlanError, VerificationError
from prunec.passes import (
    AllocateWidths,
    MagnitudeScore,
    PruneChannels,
    PruneHeads,
    SparseToDense,
)


def pipeline(ratio: float = 0.5) -> list[Pass]:
    return [MagnitudeScore(), PruneChannels(ratio), SparseToDense()]


# order


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([PruneHeads(0.5)], "PruneHeads needs scores.*one of .*MagnitudeScore.* before it"),
        ([PruneChannels(0.5), MagnitudeScore()], "PruneChannels needs scores"),
        ([AllocateWidths(Target(width=0.5))], "AllocateWidths needs scores"),
        (
            [*pipeline(), PruneChannels(0.5)],
            "PruneChannels cannot stand after SparseToDense: the graph is dense",
        ),
        ([*pipeline(), SparseToDense()], "SparseToDense cannot stand after SparseToDense"),
        (
            [MagnitudeScore(), PruneHeads(0.5), AllocateWidths(Target(width=0.5))],
            "AllocateWidths cannot stand after PruneHeads: there is a plan",
        ),
        ([MagnitudeScore], "is not a pass; pass instances"),
    ],
)
def test_an_order_that_cannot_work_is_refused_before_anything_runs(
    steps: list[Any], said: str
) -> None:
    with pytest.raises(PassOrderError, match=said):
        PassManager(steps)


@dataclasses.dataclass
class Note(Pass):
    """A third party's pass."""

    text: str = "noted"

    name: ClassVar[str] = "note"
    needs: ClassVar[tuple[str, ...]] = ("dense", "recovered")

    def run(self, state: Compilation) -> PassResult:
        return PassResult(False, self.text)


def test_a_need_that_nothing_before_provides_is_named() -> None:
    with pytest.raises(PassOrderError, match=r"Note needs recovered.*put Distill before it"):
        PassManager([*pipeline(), Note()])


@pytest.mark.parametrize("declared", ["needs", "provides", "forbids"])
def test_a_fact_that_there_is_none_of_is_refused(declared: str) -> None:
    wrong = type("Misspelt", (Note,), {"needs": (), declared: ("dens",)})
    with pytest.raises(PassOrderError, match=f"Misspelt {declared} 'dens', which is no fact"):
        PassManager([*pipeline(), wrong()])


# runs


def test_passes_run_in_order_and_are_reported_with_their_options() -> None:
    seen: list[str] = []
    manager = PassManager(pipeline(), lambda step, result, seconds: seen.append(step.name))
    result = manager.run(captured("residual"))
    assert seen == ["magnitude-score", "prune-channels", "sparse-to-dense"]
    assert [r.name for r in result.report.passes] == seen
    assert result.report.passes[1].options["ratio"] == 0.5
    assert result.report.passes[1].details["removed"] == {"stem:residual": 4, "first:channel": 3}


def test_a_pipeline_that_plans_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match="changed nothing"):
        PassManager([MagnitudeScore()]).run(captured("residual"))


def test_without_a_rewrite_the_result_is_the_masked_model() -> None:
    result = PassManager([MagnitudeScore(), PruneChannels(0.5)]).run(captured("residual"))
    kept = result.plan.kept["first:channel"]
    weight = result.model.first.weight  # type: ignore[union-attr]
    rows = weight.flatten(1).abs().sum(1).nonzero().reshape(-1)  # type: ignore[operator]
    assert rows.tolist() == kept
    with pytest.raises(PlanError, match="no SparseToDense"):
        result.verify()


@dataclasses.dataclass
class Spoil(Pass):
    """Leaves an invalid state behind."""

    how: str = ""

    name: ClassVar[str] = "spoil"

    def run(self, state: Compilation) -> PassResult:
        if self.how == "plan":
            state.plan.kept["first:channel"] = [3, 1]
        elif self.how == "empty":
            state.plan.kept["first:channel"] = []
        elif self.how == "weights":
            assert state.dense is not None
            next(state.dense.model.parameters()).data.fill_(float("nan"))
        elif self.how == "graph":
            assert state.dense is not None
            name = next(n for n in state.dense.program.tensors if n.endswith("first.weight"))
            tensors = state.dense.program.tensors
            tensors[name] = nn.Parameter(tensors[name].detach()[:-1])
        elif self.how == "module":
            assert state.dense is not None
            clone = state.dense.program.tensors["head.bias"].detach().clone() + 1
            state.dense.program.tensors["head.bias"] = nn.Parameter(clone)
        return PassResult(True)


@pytest.mark.parametrize("how", ["plan", "empty"])
def test_an_invalid_plan_is_found_after_the_pass_that_made_it(how: str) -> None:
    with pytest.raises(PlanError, match="the plan for 'first:channel' is invalid"):
        PassManager([MagnitudeScore(), Spoil(how), SparseToDense()]).run(captured("residual"))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("weights", "holds non-finite values"),
        ("graph", "dense graph (is inconsistent|does not run) at node conv2d_1"),
        ("module", "differs from the dense graph"),
    ],
)
def test_a_spoilt_dense_model_is_found_after_the_pass_that_spoilt_it(how: str, said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        PassManager([*pipeline(), Spoil(how)]).run(captured("residual"))


def test_the_result_verifies_again_on_other_inputs() -> None:
    for name in ("residual", "gpt2_linear"):
        verification = PassManager(pipeline()).run(captured(name)).verify(seed=3)
        assert verification.passed
        assert verification.masked_error is not None
        assert {c.name for c in verification.checks} >= {"permutation", "zero mask"}


def test_calibration_batches_are_proven_on_too() -> None:
    batches = [torch.randn(5, 4, 6, 6), (torch.randn(2, 4, 6, 6),)]
    result = PassManager(pipeline()).run(captured("residual"), batches)
    plain = PassManager(pipeline()).run(captured("residual"))
    counts = [{c.name: c.inputs for c in r.report.checks}["zero mask"] for r in (result, plain)]
    assert counts[0] == counts[1] + 2


def test_the_same_model_and_options_give_the_same_plan() -> None:
    texts = []
    for _ in range(2):
        torch.manual_seed(11)
        model = STRUCTURES["gpt2_linear"].build().eval()
        lively(model)
        torch.manual_seed(torch.seed() % 1000)  # what was drawn in between must not matter
        result = PassManager(pipeline(0.3)).run(capture(model, (TOKENS,)))
        texts.append(result.plan.to_json())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("training", [False, True])
def test_the_users_model_is_left_as_it_was(training: bool) -> None:
    torch.manual_seed(3)
    model = STRUCTURES["residual"].build()
    lively(model)
    model.train(training)
    model.first.requires_grad_(False)  # type: ignore[union-attr]
    before = {name: (t, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    image = IMAGE.clone()
    result = PassManager(pipeline()).run(capture(model, (image,)))
    assert torch.equal(image, IMAGE)
    assert all(m.training is training for m in model.modules())
    after = model.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    for name, (tensor, values) in before.items():
        assert after[name] is tensor
        assert torch.equal(tensor, values)
        assert tensor.grad is None
    own = {t.untyped_storage().data_ptr() for t, _ in before.values()}
    for p in (*result.model.parameters(), *result.model.buffers()):
        assert p.untyped_storage().data_ptr() not in own
    frozen = {n for n, p in result.model.named_parameters() if not p.requires_grad}
    assert frozen == {"first.weight", "first.bias"}


def test_the_graph_is_left_as_it_was() -> None:
    graph = captured("gpt2_linear")
    before = str(graph.program.graph), graph.explain()
    PassManager(pipeline()).run(graph)
    assert (str(graph.program.graph), graph.explain()) == before
