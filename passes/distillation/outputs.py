"""Which tensors of a model's output distillation matches, and which of their positions count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .losses import IGNORED, DistillError

Which = str | int | Sequence[str | int] | None

# What stands for the whole output, in this order. A sentence embedding comes before the hidden
# states it is pooled from: it is what the model is used for.
_PREFERRED = ("sentence_embedding", "last_hidden_state", "pooler_output")

_BARE = "output"


class Match(NamedTuple):
    """One output of both models, of the same meaning; `name` is its key or dotted path."""

    name: str
    student: Tensor
    teacher: Tensor

    @property
    def is_logits(self) -> bool:
        return _is_logits(self.name)

    @property
    def is_embedding(self) -> bool:
        return self.name in _PREFERRED


def matched_outputs(student: Any, teacher: Any, which: Which = None) -> list[Match]:
    """The outputs to match, paired by name.

    Outputs are floating tensors of at least one axis, named by their key, field or index, nested
    ones by path ("hidden_states.3"). Without `which` they are: `logits`; else every `*_logits` (the
    start and end of a span); else a sentence embedding, the last hidden state or the pooled
    output; else the first that both models have.

    Raises:
        DistillError: an output that one of the two models does not have, or no float tensor.
    """
    of_student, of_teacher = named_outputs(student), named_outputs(teacher)
    if which is None:
        names = _chosen(of_student, of_teacher)
    else:
        names = [str(name) for name in ([which] if isinstance(which, (str, int)) else which)]
    if not names or any(name not in of_student and name not in of_teacher for name in names):
        raise DistillError(
            f"There is no float output {_list(names)} among {_list(of_teacher)}: name one of these"
            " with output=."
        )
    return [
        Match(name, _named(name, of_student, "student"), _named(name, of_teacher, "teacher"))
        for name in names
    ]


def named_outputs(output: Any) -> dict[str, Tensor]:
    """Every floating tensor of a model's output, by dotted path; a bare tensor is "output"."""
    if isinstance(output, Tensor):
        return {_BARE: output} if _matchable(output) else {}
    return dict(_walk(output, ""))


def position_mask(
    arguments: Mapping[str, Any], output: Tensor, decoder: bool = True
) -> Tensor | None:
    """The attention mask of `[B, S, D]` values, True at tokens; None where there is none.

    In an encoder-decoder, what the decoder gives, as the output, has its positions: where it is
    given no mask, those with a label count. Values of its encoder: `decoder` False.
    """
    decodes = any(key.startswith("decoder_") for key in arguments)
    mask = arguments.get("attention_mask")
    if decodes and decoder:
        mask, labels = arguments.get("decoder_attention_mask"), arguments.get("labels")
        if mask is None and isinstance(labels, Tensor):
            mask = labels != IGNORED
    if isinstance(mask, Tensor) and output.ndim == 3 and mask.shape == output.shape[:2]:
        return mask.to(output.device) > 0
    return None


def classes_last(output: Tensor, labels: Tensor | None = None) -> Tensor:
    """The output with its class or channel axis last: `[B, C, H, W]` becomes `[B, H, W, C]`.

    Labels tell where the axis is; without them axis 1 is taken from four axes on, as torch's
    losses do, and the last axis below that. `[B]` becomes `[B, 1]`.
    """
    if output.ndim == 1:
        return output.unsqueeze(-1)
    second = output.ndim >= 4
    if labels is not None and output.ndim >= 3:
        fits_last = labels.shape == output.shape[:-1]
        fits_second = labels.shape == output.shape[:1] + output.shape[2:]
        second = fits_second and (second or not fits_last)
    return output.movedim(1, -1) if second else output


def _chosen(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> list[str]:
    shared = [name for name in teacher if name in student]
    if not shared:
        # Some models return a bare tensor in one mode, and a tuple or fields in the other.
        shared = [name for name in ("logits", *teacher, *student) if _both(name, student, teacher)]
    if "logits" in shared:
        return ["logits"]
    spans = [name for name in shared if _is_logits(name)]
    preferred = [name for name in _PREFERRED if name in shared]
    names = spans or preferred[:1] or shared[:1]
    if not names:
        raise DistillError(
            f"The student returns {_list(student)} and the teacher {_list(teacher)}, with no float"
            " tensor in common: name what to match with output=."
        )
    return names


def _both(name: str, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> bool:
    """True where one model has the name and the other a bare tensor of the same shape."""
    for named, bare in ((student, teacher), (teacher, student)):
        if name in named and list(bare) == [_BARE]:
            return named[name].shape == bare[_BARE].shape
    return False


def _named(name: str, outputs: dict[str, Tensor], whose: str) -> Tensor:
    if name in outputs:
        return outputs[name]
    if list(outputs) == [_BARE]:
        return outputs[_BARE]
    raise DistillError(
        f'The {whose} has no float output "{name}", it returns {_list(outputs)}:'
        " name one that both models have with output=."
    )


def _walk(output: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        if _matchable(output):
            yield prefix.removesuffix("."), output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _walk(value, f"{prefix}{key}.")
    elif isinstance(output, (tuple, list)):
        fields = getattr(output, "_fields", range(len(output)))
        for key, value in zip(fields, output, strict=True):
            yield from _walk(value, f"{prefix}{key}.")


def _matchable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 0


def _is_logits(name: str) -> bool:
    return name == "logits" or name.endswith("_logits")


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
