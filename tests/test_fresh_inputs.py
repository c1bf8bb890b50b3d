"""Fresh inputs are of the example's kind: what a model takes for granted of its inputs holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunec.compiler.capture.examples import fresh_inputs


def fresh(*args: Tensor, seed: int = 3) -> tuple[Tensor, ...]:
    return fresh_inputs(args, {}, seed)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("low", [1e-3, -2.0, -9.0])
def test_floats_stay_in_the_range_of_the_example(dtype: torch.dtype, low: float) -> None:
    x = (torch.rand(4, 3, 9) * 1.5 + low).to(dtype)
    (y,) = fresh(x)
    assert y.dtype == dtype
    assert x.min() <= y.min() <= y.max() <= x.max()
    assert not torch.equal(x.sort(0).values, y.sort(0).values)


def test_columns_of_other_scales_keep_their_own_ranges() -> None:
    x = torch.stack([torch.rand(32), 1e5 + 1e5 * torch.rand(32), -torch.rand(32) - 1], 1)
    (y,) = fresh(x)
    assert bool((y.amin(0) >= x.amin(0)).all() & (y.amax(0) <= x.amax(0)).all())
    images = torch.rand(2, 3, 5, 5) * torch.tensor([1.0, 1e3, 1e-3]).view(3, 1, 1)
    (z,) = fresh(images)
    assert bool((z.amax((0, 2, 3)) <= images.amax((0, 2, 3))).all())


def test_masks_of_leading_ones_stay_such_and_stay_with_their_tokens() -> None:
    lengths = torch.tensor([3, 7, 5])
    mask = (torch.arange(8) < lengths[:, None]).long()
    ids = torch.randint(5, 90, (3, 8)) * mask
    new_ids, new_mask, new_lengths = fresh(ids, mask, lengths)
    assert torch.equal(new_mask.sum(1), new_lengths)
    assert bool((new_mask.diff(dim=1) <= 0).all())
    assert torch.equal(new_ids != 0, new_mask != 0)
    assert set(new_ids.unique().tolist()) <= set(ids.unique().tolist())


def test_the_end_of_a_sequence_stays_at_its_end() -> None:
    ids = torch.randint(5, 90, (3, 12))
    ids[:, 0], ids[:, 7], ids[:, 8:] = 1, 99, 0
    (new,) = fresh(ids)
    assert torch.equal(new.argmax(-1), ids.argmax(-1))
    assert torch.equal(new[:, 0], ids[:, 0])
    assert not torch.equal(new.sort(-1).values.sort(0).values, ids.sort(-1).values.sort(0).values)


def test_positions_stay_in_order_and_times_are_drawn_in_order() -> None:
    positions, times = torch.arange(9).expand(2, 9), torch.rand(2, 9).sort(-1).values
    new, drawn = fresh(positions, times)
    assert torch.equal(new, positions)
    assert bool((drawn.diff(dim=-1) >= 0).all())
    assert not torch.equal(drawn, times)


def test_probabilities_sum_to_one_and_one_hot_vectors_stay_such() -> None:
    shares, hot = torch.rand(4, 6, 5).softmax(-1), torch.eye(5)[torch.randint(5, (4, 6))]
    new, still = fresh(shares, hot)
    assert torch.allclose(new.sum(-1), torch.ones(4, 6))
    assert bool((new >= 0).all())
    assert torch.equal(still.sum(-1), torch.ones(4, 6))
    assert set(still.unique().tolist()) == {0.0, 1.0}


def test_vectors_of_length_one_stay_such() -> None:
    x = torch.nn.functional.normalize(torch.randn(4, 6, 3), dim=-1)
    (y,) = fresh(x)
    assert torch.allclose(y.norm(dim=-1), torch.ones(4, 6), atol=1e-5)


def test_masks_of_minus_infinity_leave_every_row_something() -> None:
    mask = torch.full((2, 1, 6, 6), -torch.inf).triu(1)
    (new,) = fresh(mask)
    assert torch.equal(new, mask)
    assert bool(new.softmax(-1).isfinite().all())


def test_whole_numbers_kept_as_floats_stay_whole() -> None:
    x = torch.randint(0, 256, (2, 3, 8, 8)).float()
    (y,) = fresh(x)
    assert torch.equal(y, y.round())
    assert set(y.unique().tolist()) <= set(x.unique().tolist())


def test_boxes_stay_boxes() -> None:
    corners = torch.randint(0, 500, (2, 7, 2))
    boxes = torch.cat([corners, corners + torch.randint(1, 400, (2, 7, 2))], -1)
    (new,) = fresh(boxes)
    assert bool((new[..., 2:] > new[..., :2]).all())


def test_complex_values_are_the_examples_own() -> None:
    x = torch.randn(3, 8, dtype=torch.complex64)
    (y,) = fresh(x)
    assert set(y.flatten().tolist()) == set(x.flatten().tolist())
    assert not torch.equal(x, y)


def test_the_same_seed_draws_the_same_and_another_another() -> None:
    x, ids = torch.randn(3, 8), torch.randint(0, 50, (3, 9))
    for a, b in zip(fresh(x, ids), fresh(x, ids), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(fresh(x, ids)[0], fresh(x, ids, seed=4)[0])


@pytest.mark.parametrize(
    "x", [torch.zeros(0, 3), torch.ones(()), torch.zeros(2, 3), torch.rand(3, 4, device="meta")]
)
def test_what_cannot_be_varied_is_passed_on(x: Tensor) -> None:
    (y,) = fresh(x)
    assert y.shape == x.shape
    assert y.device == x.device
