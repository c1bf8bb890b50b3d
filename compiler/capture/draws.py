"""New values for one input, of the kind that the example's are.

What a model takes for granted of its inputs is kept, since a proof on inputs that it answers with
NaN proves nothing: every value lies between two of the example's own (of its column or channel,
where their scales differ), integers are the example's, rows in order (masks, positions, sizes) stay
as they are, the ends of integer rows (class, end and padding tokens) stay in place, vectors that
are probabilities or of length 1 stay such, and so do places that hold no finite value.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALES = 10.0  # columns whose largest values differ by more are drawn column by column
ONE_SIGN = 8  # values of one sign in a row are no chance
ORDERED = 4  # floats in order are no chance from here on


def drawn(x: Tensor, generator: torch.Generator) -> Tensor:
    """Another tensor of the shape, dtype and device, and of the range; the same where nothing can
    be varied."""
    if x.is_meta or x.numel() < 2:
        return x
    value = x.detach().cpu()
    if value.is_complex() or value.is_quantized:
        return _trade(value, generator).to(x.device) if value.is_complex() else x
    if value.dtype == torch.bool or not value.is_floating_point():
        return _integers(value, generator).to(x.device)
    return _floats(value, generator).to(x.device)


def _integers(x: Tensor, generator: torch.Generator) -> Tensor:
    if _in_order(x.to(torch.int64)):
        return x
    distinct = x.unique()
    if x.dim() != 2 or len(distinct) <= 2:
        return _trade(x, generator)
    ends = torch.cat([x[:, 0], x[:, -1], distinct[-1:]]).unique()
    free = ~torch.isin(x, ends)
    pool = x[free]
    if not len(pool):
        return _trade(x, generator) if x.shape[1] == 2 else x
    found = x.clone()
    found[free] = pool[torch.randint(len(pool), (len(pool),), generator=generator)]
    return found


def _floats(x: Tensor, generator: torch.Generator) -> Tensor:
    wide = x.to(torch.float64)
    finite = wide.isfinite()
    values = wide[finite]
    if not len(values):
        return x
    if len(values.unique()) <= 2 or not bool(finite.all()):
        return x if _in_order(wide) or not bool(finite.all()) else _trade(x, generator)
    if bool((values == values.round()).all()):  # numbers of something: never in between
        return x if _in_order(wide) and x.shape[-1] >= ORDERED else _trade(x, generator)
    if _distributions(wide):
        return _mixed(wide, _trade(wide, generator), generator, wide.dim() - 1).to(x.dtype)
    found = wide.clone()
    for part in _parts(wide):
        own = wide[part].reshape(-1)
        picks = torch.randint(len(own), (2, len(own)), generator=generator)
        a, b = own[picks[0]], own[picks[1]]
        share = torch.rand(len(own), generator=generator, dtype=torch.float64)
        share[torch.rand(len(own), generator=generator) < 0.5] = 1  # half as they are: the tails
        found[part] = (b + share * (a - b)).reshape(wide[part].shape).clamp(own.min(), own.max())
    if _in_order(wide) and x.shape[-1] >= ORDERED:
        falling = bool((wide[..., -1] < wide[..., 0]).any())
        found = found.sort(-1, descending=falling).values
    if _unit(wide):
        found = found / found.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return found.to(x.dtype)


def _in_order(x: Tensor) -> bool:
    """Whether every row along the last axis rises, or every one falls (level ones do both)."""
    steps = x.diff(dim=-1)
    if x.is_floating_point():
        steps = torch.where(x[..., 1:] == x[..., :-1], 0.0, steps)  # equal infinities
    return bool(((steps >= 0).all(-1) | (steps <= 0).all(-1)).all())


def _trade(x: Tensor, generator: torch.Generator) -> Tensor:
    """Within each sample, its entries (from three axes on its vectors along the last) trade
    places."""
    if x.dim() == 1:
        return x[torch.randperm(len(x), generator=generator)]
    shape = x.shape if x.dim() == 2 else (x.shape[0], -1, x.shape[-1])
    rows = x.reshape(shape)
    return torch.stack(
        [row[torch.randperm(row.shape[0], generator=generator)] for row in rows]
    ).reshape(x.shape)


def _mixed(x: Tensor, other: Tensor, generator: torch.Generator, axis: int) -> Tensor:
    """Between two tensors, every vector along the axis by a share of its own."""
    shape = [1 if a == axis else s for a, s in enumerate(x.shape)]
    share = torch.rand(shape, generator=generator, dtype=torch.float64)
    return share * x + (1 - share) * other


def _distributions(x: Tensor) -> bool:
    """Whether the vectors along the last axis are probabilities."""
    if x.dim() < 2 or x.shape[-1] < 2 or bool((x < 0).any()):
        return False
    return bool(((x.sum(-1) - 1).abs() < 1e-2).all())


def _unit(x: Tensor) -> bool:
    """Whether the vectors along the last axis are of length 1."""
    if x.dim() < 2 or x.shape[-1] < 2:
        return False
    return bool(((x.norm(dim=-1) - 1).abs() < 1e-3).all())


def _parts(x: Tensor) -> list[tuple[slice | int, ...]]:
    """The indices of what is drawn from a range of its own: the columns or the channels, where
    those differ in scale or in sign; everything otherwise."""
    everything: list[tuple[slice | int, ...]] = [(...,)]  # type: ignore[list-item]
    if x.dim() < 2:
        return everything
    chosen, most = None, SCALES
    for axis in dict.fromkeys((x.dim() - 1, 1)):
        others = [a for a in range(x.dim()) if a != axis]
        sizes = x.abs().amax(others)
        sizes = sizes[sizes > 0]
        ratio = float(sizes.max() / sizes.min()) if len(sizes) else 0.0
        low, high = x.amin(others), x.amax(others)
        signed = bool((x < 0).any()) and bool((x > 0).any())
        own_sign = signed and x.numel() // x.shape[axis] >= ONE_SIGN
        if own_sign and bool(((low >= 0) | (high <= 0)).any()):
            ratio = max(ratio, SCALES + 1)
        if ratio > most:
            chosen, most = axis, ratio
    if chosen is None:
        return everything
    lead = (slice(None),) * chosen
    return [(*lead, i) for i in range(x.shape[chosen])]
