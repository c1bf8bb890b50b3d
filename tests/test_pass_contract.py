"""A pass that does not keep to its contract is named by the manager, whatever it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import structures as structures  # fills the table
import torch
from nets import IMAGE, STRUCTURES, lively
from torch import nn

from prunec.compiler import Pass, PassManager, PassResult, capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import PassError, VerificationError
from prunec.compiler.inference.graph import Graph
from prunec.passes import MagnitudeScore, PruneChannels, SparseToDense


@dataclasses.dataclass
class Do(Pass):
    """Does something and says that nothing changed."""

    act: Callable[[Compilation], Any]

    name: ClassVar[str] = "do"

    def run(self, state: Compilation) -> PassResult:
        self.act(state)
        return PassResult(False)


class Scores(Do):
    """The same, of a pass that provides scores."""

    provides: ClassVar[tuple[str, ...]] = ("scores", "errors")


def fresh() -> Graph:
    """A graph of its own: it is written to."""
    torch.manual_seed(0)
    model = STRUCTURES["residual"].build().eval()
    lively(model)
    return capture(model, (IMAGE,))


def run(step: Pass, dense: bool = True) -> None:
    before = [MagnitudeScore(), PruneChannels(0.5), *([SparseToDense()] if dense else [])]
    PassManager([*before, step]).run(fresh())


def weight(state: Compilation) -> torch.Tensor:
    return state.graph.program.tensors["first.weight"]


def dense_weight(state: Compilation) -> torch.Tensor:
    assert state.dense is not None
    return next(state.dense.model.parameters())


def permute(state: Compilation) -> None:
    weight(state).data.copy_(weight(state).data.flip(0))


WRITES: dict[str, Callable[[Compilation], Any]] = {
    "in no_grad": lambda s: torch.no_grad()(lambda: weight(s).mul_(0.5))(),
    "through data": lambda s: weight(s).data.mul_(0.5),
    "through numpy": lambda s: weight(s).detach().numpy().__imul__(0.5),
    "a permutation": permute,
    "the user's model": lambda s: nn.init.zeros_(s.graph.source.get_parameter("first.weight")),
    "a swap of memory": lambda s: setattr(weight(s), "data", torch.zeros_like(weight(s))),
}


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("how", WRITES)
def test_a_write_to_the_original_is_an_error_that_names_pass_and_tensor(
    how: str, dense: bool
) -> None:
    with pytest.raises(PassError, match=r"Do wrote to 'first.weight' of the original"):
        run(Do(WRITES[how]), dense)


def test_values_that_are_not_finite_are_found_though_nothing_changed_was_said() -> None:
    with pytest.raises(VerificationError, match="non-finite"):
        run(Do(lambda s: dense_weight(s).data.fill_(torch.nan)))


def test_a_result_is_a_pass_result() -> None:
    @dataclasses.dataclass
    class Nothing(Pass):
        name: ClassVar[str] = "nothing"

        def run(self, state: Compilation) -> Any:
            return None

    with pytest.raises(PassError, match=r"Nothing.run returned None.*PassResult"):
        run(Nothing())


def scores(state: Compilation, **changed: Any) -> None:
    state.scores = {n: torch.ones(d.size) for n, d in state.graph.prunable.items()} | changed
    state.errors = {}


LEFT: dict[str, tuple[Callable[[Compilation], Any], str]] = {
    "no scores": (lambda s: None, "provides scores, but left state.scores unset"),
    "no errors": (lambda s: scores(s) or setattr(s, "errors", None), "provides errors, but left"),
    "a wrong length": (
        lambda s: scores(s, **{"first:channel": torch.ones(2)}),
        r"scores of 'first:channel' of shape \[2\]: a tensor of 6",
    ),
    "no tensor": (lambda s: scores(s, **{"first:channel": [1.0] * 6}), "of shape list"),
    "not finite": (
        lambda s: scores(s, **{"first:channel": torch.full((6,), torch.nan)}),
        "scores of 'first:channel' that are not finite",
    ),
    "a name of none": (lambda s: scores(s, typo=torch.ones(6)), "'typo', which is no prunable"),
    "one left out": (
        lambda s: scores(s) or s.scores.pop("first:channel"),  # type: ignore[union-attr]
        "'first:channel' without a score",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_facts_and_attributes_agree(case: str) -> None:
    act, said = LEFT[case]
    with pytest.raises(PassError, match=f"Scores .*{said}"):
        PassManager([Scores(act), SparseToDense()]).run(fresh())


@pytest.mark.parametrize(
    ("name", "value"),
    [("widths", {"first:channel": 3}), ("errors", {}), ("dense", object())],
)
def test_an_attribute_that_is_set_without_saying_so_is_named(name: str, value: Any) -> None:
    with pytest.raises(PassError, match=f"Do sets state.{name} without saying so: add '{name}'"):
        run(Do(lambda s: setattr(s, name, value)), dense=False)


@pytest.mark.parametrize("width", [0, 7, 2.0])
def test_widths_are_whole_numbers_within_the_dimension(width: Any) -> None:
    class Widths(Do):
        provides: ClassVar[tuple[str, ...]] = ("widths",)

    with pytest.raises(PassError, match=f"Widths left a width {width!r} for 'first:channel'"):
        run(Widths(lambda s: setattr(s, "widths", {"first:channel": width})), dense=False)
