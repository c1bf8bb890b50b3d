"""torch.export, tried from the most to the least general: dynamic batch, static, draft."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..cause import cause
from ..errors import CaptureError
from .examples import copied_call, fresh_containers
from .late_buffers import late_buffers_as_attributes
from .quiet_meta import quiet_meta
from .untouched import copy_on_write, untouched

REMEDIES = (
    (
        r"data-dependent|GuardOnDataDependent|Could not guard|unbacked",
        "its Python control flow depends on tensor values; move that branch out of forward, or "
        "replace it with torch.where / torch.cond",
    ),
    (
        r"DynamicCache|unsupported.*Cache|past_key_values",
        "it returns or takes a key-value cache; pass use_cache=False in kwargs",
    ),
    (r"numpy", "it converts tensors to numpy; use torch operations instead"),
    (
        r"missing \d+ required positional|unexpected keyword|required positional",
        "the example inputs do not fit its forward; pass the arguments it needs",
    ),
    (
        r"pytree|unflatten|unsupported.*type|dataclass",
        "it takes or returns a type torch.export does not know; register it with "
        "torch.export.register_dataclass",
    ),
)


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any = None,
    only_dynamic: bool = False,
) -> tuple[Any, str]:
    """The model's ExportedProgram and how it was had.

    `dynamic_shapes` None asks for a dynamic batch (and sequence, for integer token inputs); a
    given value is used as it is. `only_dynamic`: nothing less will do. Raises CaptureError with the
    construct and the remedy.
    """
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:  # said before torch says it in other words
        raise CaptureError(
            f"the example inputs do not fit {type(model).__name__}.forward: {error}; pass args or "
            "kwargs on which model(*args, **kwargs) works."
        ) from error
    attempts: list[tuple[str, Any]] = []
    errors: list[Exception] = []
    with _quiet(), _no_fast_path(), named_keywords(model, kwargs):
        if dynamic_shapes is not None:
            attempts.append(("torch.export (dynamic_shapes as given)", dynamic_shapes))
        else:
            attempts.append(("torch.export, dynamic batch", automatic_shapes(model, args, kwargs)))
            if not only_dynamic:
                attempts.append(("torch.export, static shapes", None))
        for how, shapes in attempts:
            try:
                given, named = _unmarked(args, kwargs)
                with untouched(model):  # what a failed attempt stored would fail the next one
                    late_buffers_as_attributes(model)
                    return torch.export.export(
                        model, given, named, dynamic_shapes=shapes, strict=False
                    ), how
            except Exception as error:  # torch.export raises many kinds
                errors.append(error)
        if only_dynamic:
            raise CaptureError(explain(model, errors[-1])) from errors[0]
        try:
            given, named = _unmarked(args, kwargs)
            with untouched(model):
                late_buffers_as_attributes(model)
                program = torch.export.draft_export(model, given, named, strict=False)
            return program, "torch.export.draft_export, static shapes"
        except Exception as error:
            errors.append(error)
    _require_it_runs(model, args, kwargs)
    raise CaptureError(explain(model, errors[-2] if len(errors) > 1 else errors[-1])) from errors[0]


def _unmarked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The call with tensor objects of its own, over the same memory: torch.export marks axes as
    dynamic on those it is given, and a failed attempt leaves the marks for the next one."""
    return pytree.tree_map_only(Tensor, lambda x: x.detach(), fresh_containers(args, kwargs))


def _require_it_runs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A model that does not even run on its inputs needs other inputs, not another construct."""
    try:
        args, kwargs = copied_call(args, kwargs)
        with torch.no_grad(), untouched(model), copy_on_write(model):
            model(*args, **kwargs)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} does not run on the example inputs ({cause(error)}): pass "
            "inputs on which model(*args, **kwargs) works."
        ) from error


def automatic_shapes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Axis 0 of every tensor input, and axis 1 of integer matrices (tokens), left to torch."""
    auto = torch.export.Dim.AUTO

    def shape(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return None
        if x.dim() == 2 and not x.is_floating_point():
            return {0: auto, 1: auto}
        return {0: auto} if x.dim() > 0 else {}

    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return {
        name: pytree.tree_map(shape, value, is_leaf=lambda x: x is None)
        for name, value in bound.items()
    }


@contextlib.contextmanager
def named_keywords(model: nn.Module, kwargs: dict[str, Any]) -> Iterator[None]:
    """Arguments that forward takes through its **kwargs, as arguments of their own: torch.export
    loses the dynamic shapes of a call that has some."""
    signature = inspect.signature(model.forward)
    parameters = list(signature.parameters.values())
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    extra = [name for name in kwargs if name not in signature.parameters]
    if not extra or len(named) == len(parameters):
        yield
        return
    before, had = model.forward, "forward" in vars(model)

    def forward(*args: Any, **options: Any) -> Any:
        return before(*args, **options)

    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in extra]
    forward.__signature__ = signature.replace(parameters=named + own)  # type: ignore[attr-defined]
    model.forward = forward
    try:
        yield
    finally:
        if had:
            model.forward = before
        else:
            del model.forward


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """nn.TransformerEncoder's fused kernels hide its structure: capture the plain path."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export prints whole graphs on failure; the error says what matters."""
    logger = logging.getLogger("torch")  # its own, and those below without a level of their own
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            quiet_meta(),
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def explain(model: nn.Module, error: Exception) -> str:
    """One sentence: what could not be captured, where in the user's source, and the remedy."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    remedy = "simplify the construct, or capture the submodule that holds the weights instead"
    for pattern, advice in REMEDIES:
        if re.search(pattern, text, re.IGNORECASE):
            remedy = advice
            break
    places = [
        f"{path.rsplit('/', 1)[-1]}:{line}"
        for path, line in re.findall(r'File "([^"]+)", line (\d+)', text)
        if "/torch/" not in path
    ]
    if not places:
        frame = error.__traceback__
        while frame is not None:
            path = frame.tb_frame.f_code.co_filename
            if "/torch/" not in path and "prunec" not in path and "/compiler/" not in path:
                places.append(f"{path.rsplit('/', 1)[-1]}:{frame.tb_lineno}")
            frame = frame.tb_next
    where = f" at {places[-1]}" if places else ""
    return f"{type(model).__name__} cannot be captured{where}: {first[:300]} Remedy: {remedy}."
