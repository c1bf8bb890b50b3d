"""Which options of Distill are accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from .losses import DistillError, EmbeddingLoss
from .objective import Kind

if TYPE_CHECKING:
    from ..distill import Distill

Precision = Literal["no", "bf16", "fp16"]
Schedule = Literal["cosine", "linear"]


def refuse_options(options: Distill) -> None:
    """Raise DistillError, naming it, for the first option that is out of range."""
    whole = ("epochs", "accumulate", "seed", "checkpoint_every")
    for option in (*whole, "steps", "evaluate_every", "patience"):
        value = getattr(options, option)
        if type(value) is not int and not (value is None and option not in whole):
            raise DistillError(f"{option}={value!r} must be a whole number.")
    for option in ("dropout", "undo"):
        if not isinstance(getattr(options, option), bool):
            raise DistillError(f"{option}={getattr(options, option)!r} must be True or False.")
    accepted = {
        "epochs": ("at least 1", options.epochs >= 1),
        "steps": ("at least 1, or None", options.steps is None or options.steps >= 1),
        "temperature": ("above 0", options.temperature > 0),
        "alpha": ("between 0 and 1", 0 <= options.alpha <= 1),
        "learning_rate": ("above 0", options.learning_rate > 0),
        "weight_decay": ("at least 0", options.weight_decay >= 0),
        "warmup": ("at least 0 and below 1", 0 <= options.warmup < 1),
        "clip": ("above 0, or None", options.clip is None or options.clip > 0),
        "features": ("at least 0", options.features >= 0),
        "features_until": ("above 0 and at most 1", 0 < options.features_until <= 1),
        "evaluate_every": (
            "at least 1, or None",
            options.evaluate_every is None or options.evaluate_every >= 1,
        ),
        "patience": ("at least 1, or None", options.patience is None or options.patience >= 1),
        "ema": ("between 0 and 1, or None", options.ema is None or 0 < options.ema < 1),
        "gradual": (
            "above 0 and below 1, or None",
            options.gradual is None or 0 < options.gradual < 1,
        ),
        "accumulate": ("at least 1", options.accumulate >= 1),
        "checkpoint_every": ("at least 1", options.checkpoint_every >= 1),
        "precision": (" or ".join(get_args(Precision)), options.precision in get_args(Precision)),
        "schedule": (" or ".join(get_args(Schedule)), options.schedule in get_args(Schedule)),
        "objective": (" or ".join(get_args(Kind)), options.objective in get_args(Kind)),
        "embedding_loss": (
            " or ".join(get_args(EmbeddingLoss)),
            options.embedding_loss in get_args(EmbeddingLoss),
        ),
    }
    for option, (allowed, holds) in accepted.items():
        if not holds:
            raise DistillError(f"{option}={getattr(options, option)!r} must be {allowed}.")
    if options.patience is not None and options.metric is None:
        raise DistillError("patience needs a metric to watch: give metric=, or leave it out.")
