"""NaN and infinities in data and weights, named before a pass meets them.

An infinity may be meant: a mask that is added to attention scores, a NaN that stands for a missing
value. What says so is the model: with such a value it stays finite where layers compute and in its
outputs.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..errors import NonFiniteError
from .batches import forward_arguments

T = TypeVar("T")
Call = tuple[tuple[Any, ...], dict[str, Any]]

_COMPUTING = (nn.Linear, _ConvNd, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.RNNBase)


class FiniteCheck:
    """Tells bad values from those that `model` is made for; the model itself is not run."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._copy: nn.Module | None = None

    def batch(self, call: Call, what: str) -> None:
        """Raise NonFiniteError naming the input of `what` ("calibration batch 3") that has NaN or
        infinite values on which the model does not stay finite."""
        args, kwargs = call
        bad = [(name, text) for name, t in _inputs(self.model, args, kwargs) if (text := bad_in(t))]
        if bad and not self._stays_finite(call):
            name, text = bad[0]
            raise NonFiniteError(
                f"{what} has {text} in the input '{name}': correct or leave out that sample; what"
                " is missing can be masked, or given a value."
            )

    def batches(
        self, items: Iterable[T], what: str, call_of: Callable[[T], Call] = forward_arguments
    ) -> Iterator[T]:
        """The batches, each looked at as it is read; they are numbered from 1."""
        for i, item in enumerate(items, 1):
            self.batch(call_of(item), f"{what} {i}")
            yield item

    def weights(self, call: Call) -> None:
        """Raise NonFiniteError naming the parameter or buffer that has NaN or infinite values with
        which the model computes in this call. A constant (a mask of infinities, a table that is not
        read) is none where the model stays finite."""
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        bad = [(name, t, text) for name, t in named if (text := bad_in(t))]
        if not bad:
            return
        finite = self._stays_finite(call)
        for name, t, text in bad:
            trained = isinstance(t, nn.Parameter) and (t.requires_grad or bool(t.isnan().any()))
            if trained or not finite:
                raise NonFiniteError(
                    f"the model has {text} in '{name}': load its weights anew, or train it again"
                    " at a lower learning rate."
                )

    @torch.no_grad()
    def _stays_finite(self, call: Call) -> bool:
        """Whether layers read, and the model returns, finite values only."""
        if self._copy is None:
            self._copy = copy.deepcopy(self.model).eval()
        seen: list[bool] = []

        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(not args or bad_in(args[0]) is None)

        args, kwargs = pytree.tree_map(lambda x: x, call)  # containers of its own
        with contextlib.ExitStack() as hooks, torch.random.fork_rng(devices=[]):
            for module in self._copy.modules():
                if isinstance(module, _COMPUTING):
                    hooks.callback(module.register_forward_pre_hook(look).remove)
            try:
                found = self._copy(*args, **kwargs)
            except Exception:  # of a call that does not fit the model, or of the values
                return False
        leaves = [t for t in pytree.tree_leaves(_plain(found)) if isinstance(t, Tensor)]
        return all(seen) and all(bad_in(t) is None for t in leaves)


def bad_in(value: Any) -> str | None:
    """How many NaN and infinite values a tensor has, in words; None where it has none."""
    if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
        return None
    if not (value.is_floating_point() or value.is_complex()) or value.is_quantized:
        return None
    plain = value.detach()
    if plain.is_floating_point() and plain.element_size() == 1:  # few ops know 8 bits
        plain = plain.float()
    if plain.numel() == 0 or bool(plain.isfinite().all()):
        return None
    nan = int(plain.isnan().sum())
    infinite = plain.numel() - int(plain.isfinite().sum()) - nan
    parts = [f"{n:,} {word}" for n, word in ((nan, "NaN"), (infinite, "infinite")) if n]
    return f"{' and '.join(parts)} of {plain.numel():,} values"


def _inputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """The leaves of a call, by the names that forward gives them."""
    try:
        names = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):  # of traced modules
        names = []
    named = {names[i] if i < len(names) else str(i): value for i, value in enumerate(args)}
    for path, leaf in pytree.tree_flatten_with_path({**named, **kwargs})[0]:
        parts = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        yield ".".join(parts), leaf


def _plain(outputs: Any) -> Any:
    """Output classes that are dicts, whether registered or not, as dicts."""
    return dict(outputs) if isinstance(outputs, Mapping) else outputs
