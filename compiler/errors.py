"""Every error prunec raises on purpose: one sentence that names the thing and the remedy."""

from __future__ import annotations

import pathlib


class PrunecError(Exception):
    """Base of all errors raised on purpose; the command prints it without a traceback.

    `kept`: the directory that holds what had been made by then, where there is one.
    """

    kept: pathlib.Path | None = None


class CaptureError(PrunecError):
    """The model could not be captured as a graph."""


class InputError(PrunecError):
    """A batch does not fit the call the model was captured with."""


class CallError(InputError, ValueError):
    """A call is none that the graph was captured for: a size, a constant or a dtype."""


class NonFiniteError(PrunecError):
    """A batch, an example input or a weight has NaN or infinite values that are not meant."""


class RuleError(PrunecError):
    """An op rule was declared wrongly (unknown argument, duplicate name)."""


class PlanError(PrunecError):
    """A plan names dimensions or indices that the model does not have, or would change nothing."""


class ArgumentError(PlanError, TypeError):
    """An argument or option is missing, unknown, or of a type that it does not take."""


class PassError(PrunecError):
    """A pass broke its contract: its result, its facts, or the tensors of the original."""


class PassOrderError(PrunecError):
    """A pass stands where its needs are not met; raised before anything runs."""


class VerificationError(PrunecError):
    """The dense model differs from its reference: the compile stops and nothing is written."""


class TargetError(PrunecError):
    """The target cannot be met; the message names what was reachable."""


class QualityError(PrunecError):
    """`evaluate` fell below `floor`, or gave no number to judge by: nothing is written."""


class SourceError(PrunecError):
    """MODEL or DATA could not be resolved."""


class InterruptedCompile(PrunecError):
    """Ctrl-C when there was something to keep: the message says where it is."""


class ArtifactError(PrunecError):
    """An artifact directory is incomplete, altered, or of another format version."""


class ExportError(PrunecError):
    """ONNX export failed or its output disagrees with the model's."""


class MeasureError(PrunecError):
    """A timing was asked for that would not compare like with like, or cannot be run here."""
