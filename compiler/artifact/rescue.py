"""What has been made and cannot be put where it was to go is kept elsewhere, and said where."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ..cause import cause
from ..errors import ArtifactError, PrunecError
from .place import OutputPlace, free_name
from .tensor_store import save_tensors

if TYPE_CHECKING:
    from ..compilation import Compilation

Write = Callable[[pathlib.Path], None]


def told(
    error: BaseException, kept: pathlib.Path | None, failed: str | None = None
) -> BaseException:
    """The error with where the result is: of its own type where that is one of prunec's, or an
    interruption; an ArtifactError otherwise. `kept` is its attribute, too. `failed`: what was not
    made of an artifact that is complete without it."""
    own = isinstance(error, PrunecError)
    text = (str(error) if own else cause(error)).rstrip(".")
    if failed is not None:
        text = f"{failed} failed ({text}); the torch artifact was written: {kept}"
    else:
        where = f"what was made is kept in {kept}" if kept else "and no other place took it either"
        text = f"the artifact could not be written ({text}); {where}"
    own = own or not isinstance(error, Exception)  # as Ctrl-C
    made = type(error)(f"{text}.") if own else ArtifactError(f"{text}.")
    vars(made)["kept"] = kept
    return made


def rescued(state: Compilation, target: pathlib.Path, write: Write) -> pathlib.Path | None:
    """Write the artifact elsewhere: beside its place, else where temporary files go; the weights
    and the plan alone where it is the artifact that cannot be written."""
    for attempt in (write, lambda place: _bare(state, place)):
        for folder in (target.parent, pathlib.Path(tempfile.gettempdir())):
            try:
                kept = free_name(folder / target.name)
                kept.mkdir()
            except OSError:
                continue
            try:
                attempt(kept)
                return kept
            except Exception:  # of another disk that is full, or again of the artifact
                shutil.rmtree(kept, ignore_errors=True)
            except BaseException:  # a second Ctrl-C
                shutil.rmtree(kept, ignore_errors=True)
                raise
    return None


def moved(held: OutputPlace, write: Write) -> pathlib.Path | None:
    """The directory that could not be put in place, under another name; else written anew."""
    with contextlib.suppress(OSError):
        return held.keep()
    folder = pathlib.Path(tempfile.gettempdir())
    try:
        kept = free_name(folder / held.target.name)
        kept.mkdir()
        write(kept)
        return kept
    except Exception:
        return None


def _bare(state: Compilation, place: pathlib.Path) -> None:
    """Enough to go on with by hand: the weights by their names in the model, and the plan."""
    tensors: dict[str, Tensor] = {n: t.detach().contiguous() for n, t in _named(state)}
    save_tensors(tensors, place / "model.safetensors")
    (place / "plan.json").write_text(state.plan.to_json())


def _named(state: Compilation) -> list[tuple[str, Tensor]]:
    return list(state.model.state_dict().items())
