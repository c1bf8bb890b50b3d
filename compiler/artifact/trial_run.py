"""A loaded model is run once before it is handed out: what its files say of it may not fit."""

from __future__ import annotations

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..capture.batch import Arguments
from ..capture.untouched import copy_on_write, untouched
from ..cause import cause
from ..errors import ArtifactError


def run_once(model: nn.Module, call: Arguments) -> None:
    """Raise ArtifactError where a model does not run on a call like those it was compiled for.

    A model on meta, or on several devices, is not run.
    """
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    if len(devices) > 1 or torch.device("meta") in devices:
        return
    device = next(iter(devices), torch.device("cpu"))
    args, kwargs = pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, call)
    try:
        with untouched(model), copy_on_write(model), torch.no_grad():
            model(*args, **kwargs)
    except torch.OutOfMemoryError:  # says nothing of the files
        return
    except Exception as error:  # whatever a model raises whose parts do not fit each other
        raise ArtifactError(
            f"{type(model).__name__} was read but does not run on the inputs it was compiled with "
            f"({cause(error)}): the artifact is damaged or forged, or `model` is not the one it "
            "was made from. Compile again."
        ) from error
