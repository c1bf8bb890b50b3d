"""An artifact loaded in a process of its own: by what is on disk, and nothing that is in memory."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from ..errors import ArtifactError

SECONDS = 1800
_LOAD = "import sys; from prunec import compiler; compiler.load(sys.argv[1])"


def try_in_fresh_process(directory: pathlib.Path) -> None:
    """Raise ArtifactError, with where it lies, unless the artifact loads in a new process."""
    command = [sys.executable, "-c", _LOAD, str(directory.resolve())]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(
            f"{directory} was written, and had not loaded in a fresh process after "
            f"{SECONDS // 60} minutes; --no-try leaves that out."
        ) from error
    if ended.returncode != 0:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        said = lines[-1].strip() if lines else f"it ended with {ended.returncode}"
        raise ArtifactError(
            f"{directory} was written, and does not load in a fresh process: {said[:500]}"
        )
