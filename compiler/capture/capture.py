"""model + example inputs -> Graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from .. import rules as rules  # fills the op table
from ..errors import CaptureError, SourceError
from ..inference.graph import Graph
from ..inputs.example_inputs import example_inputs
from ..option_types import checked
from .cache import without_cache
from .eval_mode import eval_mode
from .examples import distinct
from .graph_call import positional_call
from .inline import drop_unused
from .inputs import named_shapes, positional, require_inputs
from .masks import masked, without_masks
from .models import plain_model
from .outputs import select_outputs
from .side_branches import side_branches
from .stale_caches import without_stale_caches
from .strided import without_strides
from .untouched import untouched
from .widened import program_for


@checked("model", "args")
def capture(
    model: nn.Module,
    args: Sequence[Any] | Tensor | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    outputs: Sequence[str | int] | str | int | None = None,
    untie_tables: bool = False,
    mode: str = "auto",
) -> Graph:
    """Capture a model, an nn.Module, as a graph with its dimensions inferred; DataParallel,
    DistributedDataParallel and torch.compile around it are taken off.

    `args`, `kwargs`: example inputs of forward; a batch of 1 is captured as one of 3 where
    the model allows; without any tensor, a
    transformers model's are made from its configuration. `dynamic_shapes`: as
    torch.export takes them; by default the batch (and token) axes are left dynamic where the model
    allows. `outputs`: keys, dotted paths or indices of the outputs that matter; the graph returns
    those, and only those block what they touch. The model is captured as it runs in eval mode and
    is not changed. `untie_tables`: where several modules read one table (rotary embeddings), each
    selects its own entries, so that their widths are independent; by default they are tied, which
    the user's class can express. `mode`: "auto" also captures, in train mode, branches with
    parameters that eval mode hides (auxiliary heads), so that they follow the widths they read;
    "eval" does not. Raises CaptureError with the construct and the remedy.
    """
    if mode not in ("auto", "eval"):
        raise CaptureError(f"mode is 'auto' or 'eval', not {mode!r}.")
    user_model = plain_model(model)
    model = without_masks(user_model)
    own, given = _example(model, positional(args), dict(kwargs or {}))
    require_inputs(model, own, given)
    call = distinct(*positional_call(model, own, {**without_cache(model), **given}))
    if dynamic_shapes is not None:
        dynamic_shapes = named_shapes(model, *call, dynamic_shapes)
    with untouched(model), eval_mode(model):
        program = without_stale_caches(
            model, call, lambda m: program_for(m, call, dynamic_shapes)
        )
    model = program.source
    call = program.args, program.kwargs
    if "draft" in program.how:
        program.notes.append(
            "captured by draft_export: branches that depend on values are fixed to those the "
            "example inputs take"
        )
    if masked(user_model):
        names = masked(user_model)
        program.notes.append(
            f"{len(names)} masks of torch.nn.utils.prune were made permanent "
            f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): the result holds plain "
            "weights with their zeros; the model that was given keeps its masks"
        )
    without_strides(program)
    if outputs is not None:
        outputs = [outputs] if isinstance(outputs, (str, int)) else list(outputs)
        select_outputs(program, outputs)
        drop_unused(program.graph)
    used = {str(n.target) for n in program.graph.nodes if n.op == "get_attr"}
    program.tensors = {name: t for name, t in program.tensors.items() if name in used}
    with untouched(model):
        sides = side_branches(model, call, program, mode == "auto")
    return Graph(program, outputs, sides, untie_tables)


def _example(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call as given; one of flags only is completed from the model's configuration."""
    tensors = any(isinstance(x, Tensor) for x in pytree.tree_leaves(kwargs))
    if args or tensors or not hasattr(getattr(model, "config", None), "to_dict"):
        return args, kwargs
    try:
        _, made = example_inputs(model)
    except SourceError as error:
        raise CaptureError(
            f"no example inputs were given, and none could be made: {str(error).split(': give')[0]}"
            f"; pass args or kwargs on which {type(model).__name__} runs."
        ) from error
    return (), {**made, **kwargs}
