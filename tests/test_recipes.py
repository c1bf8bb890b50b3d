"""Recipe files, their options, and passes that other packages bring."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from compiled import compress, halved
from tiny_models import (
    small_cnn,
)

from prunec.compiler import Pass, PassResult, Target
from prunec.compiler.errors import (
    PlanError,
)
from prunec.compiler.option_types import check_options, takes

SCORES = '[[pass]]\nuse = "magnitude-score"\nnorm = 1\n'
REWRITE = '[[pass]]\nuse = "sparse-to-dense"\n'


def test_recipe_file_lists_passes_and_options(recipe: Callable[[str], pathlib.Path]) -> None:
    path = recipe(
        f'{SCORES}\n[[pass]]\nuse = "allocate-widths"\nround-to = 8\n'
        f'[[pass]]\nuse = "prune-channels"\n{REWRITE}'
    )
    result = compress(recipe=path, target=Target(width=0.6))
    assert [p.name for p in result.report.passes] == [
        "magnitude-score",
        "allocate-widths",
        "prune-channels",
        "sparse-to-dense",
    ]
    assert result.report.passes[0].options["norm"] == 1
    assert (result.model.first.out_channels, result.model.second.out_channels) == (8, 16)


def test_options_given_to_compile_win_over_the_recipe(
    recipe: Callable[[str], pathlib.Path],
) -> None:
    path = recipe(f'{SCORES}[[pass]]\nuse = "prune-channels"\nratio = 0.5\n{REWRITE}')
    result = compress(recipe=path, options={"prune-channels": {"ratio": 0.25}})
    assert result.model.first.out_channels == 12


def test_recipe_that_ignores_the_target_says_so(recipe: Callable[[str], pathlib.Path]) -> None:
    path = recipe(f'{SCORES}[[pass]]\nuse = "prune-channels"\nratio = 0.5\n{REWRITE}')
    assert any("takes the target" in note for note in compress(recipe=path).report.notes)
    assert not any("takes the target" in note for note in halved().report.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[pass]]\nuse = "prune-chanels"', "no pass 'prune-chanels'; installed .*prune-channels"),
        ('[[pass]]\nuse = "magnitude-score"\nnrm = 1', "no option 'nrm'; it has norm"),
        (
            f'{SCORES}[[pass]]\nuse = "prune-channels"\nratio = "half"\n{REWRITE}',
            "'prune-channels' takes a number or a table of numbers for 'ratio', not 'half'",
        ),
        (
            '[[pass]]\nuse = "magnitude-score"\nnorm = "2"',
            "takes a whole number for 'norm', not '2'",
        ),
        (
            '[[pass]]\nuse = "distill"\nmetric = "fac:ev"',
            "takes a function .* for 'metric', not 'fac:ev'",
        ),
        ('[[pass]]\nuse = "distill"', "'distill' needs 'train_loader'"),
        ('[[pass]]\nuse = "distill"\nneeds = "labels"', "needs = 'labels', which is none of"),
        ("[[pass]]\nnorm = 1", "each with use"),
        ('pass = ["magnitude-score"]', "each with use"),
        ('[pass]\nuse = "magnitude-score"', "each with use"),
        ("", "each with use"),
        ("[[pass]", "is not TOML"),
        (f"{REWRITE}{SCORES}", "nothing to remove"),
    ],
)
def test_recipe_that_is_wrong_is_refused(
    recipe: Callable[[str], pathlib.Path], text: str, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        compress(recipe=recipe(text))


def test_options_take_what_their_annotations_say() -> None:
    """All that a pass of ours is given by its defaults passes."""
    for entry in importlib.metadata.entry_points(group="prunec.passes"):
        cls = entry.load()
        own = {f.name: f.default for f in dataclasses.fields(cls)}
        check_options(
            entry.name, cls, {k: v for k, v in own.items() if v is not dataclasses.MISSING}
        )
    assert takes(float | None, 1)
    assert not takes(int, True)
    assert takes(str | Sequence[str], ["a", "b"])
    assert not takes(str | Sequence[str], [1])
    assert not takes(Sequence[int], "abc")
    assert not takes(Mapping[str, float], {"a": "b"})


def test_recipe_that_cannot_be_read_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        compress(recipe=tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(PlanError, match="cannot be read"):
        compress(recipe=tmp_path / "latin.toml")


def test_options_for_a_pass_that_the_recipe_does_not_use_are_refused() -> None:
    with pytest.raises(PlanError, match="options for 'prune-filters', which the recipe does not"):
        compress(options={"prune-filters": {"ratio": 0.5}})


@dataclasses.dataclass
class KeepFirst(Pass):
    """Plan to keep the first `count` entries of every channel dimension."""

    count: int = 8

    name: ClassVar[str] = "keep-first"
    provides: ClassVar[tuple[str, ...]] = ("plan",)
    forbids: ClassVar[tuple[str, ...]] = ("dense",)

    def run(self, state: Any) -> PassResult:
        removed = 0
        for dimension in state.graph.prunable.values():
            if dimension.kind == "channel":
                removed += state.plan.remove(dimension.name, range(self.count, dimension.size))
        return PassResult(bool(removed), f"{removed} channels")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's package with two entry points, one of which is no pass."""
    module = types.ModuleType("thirdparty")
    module.KeepFirst = KeepFirst  # type: ignore[attr-defined]
    module.helper = len  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "thirdparty", module)
    real = importlib.metadata.entry_points

    def entry_points(**select: Any) -> Any:
        own = [
            importlib.metadata.EntryPoint("keep-first", "thirdparty:KeepFirst", "prunec.passes"),
            importlib.metadata.EntryPoint("no-pass", "thirdparty:helper", "prunec.passes"),
        ]
        return [*real(**select), *(own if select.get("group") == "prunec.passes" else ())]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


@pytest.mark.usefixtures("installed")
def test_third_party_pass_is_found_by_entry_point(recipe: Callable[[str], pathlib.Path]) -> None:
    result = compress(recipe=recipe(f'[[pass]]\nuse = "keep-first"\ncount = 5\n{REWRITE}'))
    assert result.report.passes[0].summary == "30 channels"
    assert torch.equal(result.model.first.weight, small_cnn().first.weight[:5])


@pytest.mark.usefixtures("installed")
def test_entry_point_that_is_no_pass_is_refused(recipe: Callable[[str], pathlib.Path]) -> None:
    with pytest.raises(PlanError, match="'no-pass' is not a Pass"):
        compress(recipe=recipe('[[pass]]\nuse = "no-pass"'))
