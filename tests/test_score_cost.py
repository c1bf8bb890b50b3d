"""Second-order scores of wide layers: through directions, in blocks, within a limit of memory."""

from __future__ import annotations

import pytest
import torch
from repair_cases import Chain, data, seeded
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler.compilation import Compilation
from prunec.passes.calibration import reduction as reduction_module
from prunec.passes.calibration.reduction import GroupMoments, Groups, reduction
from prunec.passes.sensitivity import input_moments


def scored(model: nn.Module, batches: list[Tensor], **options: int) -> tuple[Compilation, dict]:
    graph = compiler.capture(model, (batches[0],))
    state = Compilation(graph, [graph.program.flat_inputs((b,), {}) for b in batches])
    found = passes.SecondOrderScore(progress=False, **options).run(state)
    return state, found.details


def errors(state: Compilation) -> Tensor:
    assert state.errors is not None
    (found,) = state.errors.values()
    return found


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Layers of more than 24 inputs are wide."""
    for module in (input_moments, reduction_module):
        monkeypatch.setattr(module, "EXACT", 24)
        monkeypatch.setattr(module, "REDUCED", 24)
    return monkeypatch


def taps(outputs: int = 4) -> Chain:
    return Chain(nn.Conv1d(3, 8, 5), nn.Conv1d(8, outputs, 8))


def test_directions_of_a_group_are_those_of_its_singular_values() -> None:
    x = torch.cat(data(50, 12)) @ torch.cat(data(12, 12, count=1))
    weight = torch.cat(data(12, 3, count=1))[None]
    groups = Groups.of(torch.arange(12) // 6)
    own = GroupMoments(groups, 1, x.device)
    own.add(x[None])
    covariance = own.covariance(centred=True)
    matrix = groups.weights(weight, slice(None))
    found = reduction(groups, covariance, matrix @ matrix.mT, 3)
    seen, left = found.weights(weight)
    told = found.rows(x[None])[0]
    centred = told - told.mean(0)
    for group in range(2):  # three outputs need no more than three directions
        own_x = x[:, 6 * group : 6 * group + 6]
        expected = (own_x - own_x.mean(0)) @ weight[0, 6 * group : 6 * group + 6]
        part = slice(3 * group, 3 * group + 3)
        torch.testing.assert_close(centred[:, part] @ seen[0, part], expected)
        own_covariance = centred[:, part].T @ centred[:, part] / len(x)
        torch.testing.assert_close(own_covariance, torch.eye(3, dtype=torch.float64))
    assert float(left.max()) < 1e-8 * float(matrix.square().sum())


def test_errors_of_a_wide_convolution_are_never_below_the_exact_ones(
    narrow: pytest.MonkeyPatch,
) -> None:
    model, batches = seeded(taps), data(40, 3, 30)
    wide, details = scored(model, batches)
    told = details["approximated"]["second.weight"]
    assert "8 groups of up to 8 inputs through 3 directions" in told
    assert any("through fewer directions" in note for note in wide.notes)
    narrow.undo()
    exact, told = scored(model, batches)
    assert not told["approximated"]
    assert not exact.notes
    assert bool((errors(wide) >= errors(exact) * (1 - 1e-6)).all())
    assert float(errors(wide)[4]) < 3 * float(errors(exact)[4])


def test_channels_of_a_flattened_image_are_seen_as_channels(narrow: pytest.MonkeyPatch) -> None:
    model = seeded(lambda: Chain(nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(8 * 49, 4)))
    state, details = scored(model, data(60, 2, 9, 9))
    assert "8 groups of up to 49" in details["approximated"]["behind.weight"]
    assert errors(state).shape == (9,)


def test_a_redundant_channel_of_a_wide_layer_is_free(narrow: pytest.MonkeyPatch) -> None:
    model = seeded(lambda: taps(outputs=3))
    with torch.no_grad():
        model.first.weight[5], model.first.bias[5] = model.first.weight[2], model.first.bias[2]
        model.second.weight[:, 5] = model.second.weight[:, 2]
    state, _ = scored(model, data(40, 3, 30))
    assert float(errors(state)[7]) < 1e-6


def test_more_entries_than_are_solved_for_go_in_blocks(narrow: pytest.MonkeyPatch) -> None:
    narrow.setattr(input_moments, "BLOCK", 16)
    narrow.setattr(input_moments, "LEAST", 4)
    model = seeded(lambda: Chain(nn.Linear(6, 50), nn.Linear(50, 5)))
    with torch.no_grad():
        model.first.weight[3], model.first.bias[3] = model.first.weight[2], model.first.bias[2]
    state, details = scored(model, data(100, 6))
    assert "4 blocks of 13" in details["approximated"]["second.weight"]
    found = errors(state)
    assert float(found[49]) < 1e-6
    assert bool((found.diff() <= 0).all())


def test_blocks_are_as_large_as_memory_allows(narrow: pytest.MonkeyPatch) -> None:
    narrow.setattr(input_moments, "LEAST", 4)
    model = seeded(lambda: Chain(nn.Linear(6, 50), nn.Linear(50, 5)))
    batches = data(100, 6, count=1)
    _, details = scored(model, batches, memory=3 * 8 * 50 * 10)
    assert "5 blocks of 10" in details["approximated"]["second.weight"]
    _, details = scored(model, batches, memory=3 * 8 * 50 * 3)
    assert details["variances only"] == ["second.weight"]
