"""The files of an artifact: regular ones inside its directory, of a bounded size, checked once."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import stat
from collections.abc import Mapping
from typing import Any

from ..errors import ArtifactError

MANIFEST = "prunec.json"
GRAPH, PLAN, CONFIG, GENERATION = "graph.json", "plan.json", "config.json", "generation_config.json"
WEIGHTS, CONSTANTS, REST = "weights.safetensors", "constants.safetensors", "rest.safetensors"
SAMPLES = "samples.safetensors"
READ = (GRAPH, WEIGHTS, CONSTANTS, REST, PLAN, CONFIG, GENERATION, SAMPLES)  # all that `load` reads
NEEDED = (GRAPH, WEIGHTS, CONSTANTS, REST, PLAN)
TEXT_LIMIT = 512 << 20  # bytes of a JSON file: the plan of a large model lists its indices
_SUM = re.compile(r"[0-9a-f]{64}")


class Files:
    """What may be read of an artifact: the files that its manifest lists, each against its sum."""

    def __init__(self, place: pathlib.Path, sums: Mapping[str, str]) -> None:
        self.place = place
        self.sums = sums

    def __contains__(self, name: str) -> bool:
        return name in self.sums

    def path(self, name: str) -> pathlib.Path:
        """A listed file after its checksum was verified. Raises ArtifactError naming it."""
        if name not in self.sums:
            raise ArtifactError(f"{self.place / MANIFEST} does not list {name}: compile again.")
        if checksum(self.place / name) != self.sums[name]:
            raise ArtifactError(
                f"{self.place / name} was altered: its checksum does not match {MANIFEST}."
            )
        return self.place / name

    def json(self, name: str) -> Any:
        """What a listed JSON file holds. Raises ArtifactError when it is not as it was written."""
        return self._parsed(name, read_bytes(self.place / name))

    def text(self, name: str) -> str:
        """A listed text file, against its checksum."""
        return self._verified(name, read_bytes(self.place / name)).decode("utf-8", "replace")

    def _parsed(self, name: str, content: bytes) -> Any:
        return parse_json(self._verified(name, content), self.place / name)

    def _verified(self, name: str, content: bytes) -> bytes:
        if name not in self.sums:
            raise ArtifactError(f"{self.place / MANIFEST} does not list {name}: compile again.")
        if hashlib.sha256(content).hexdigest() != self.sums[name]:
            raise ArtifactError(
                f"{self.place / name} was altered: its checksum does not match {MANIFEST}."
            )
        return content


def listed_files(place: pathlib.Path, sums: Any) -> Files:
    """The files of a manifest's table. Raises ArtifactError for a table that lists a file `load`
    does not read, lacks one that it needs, or holds no SHA-256 sums."""
    if not isinstance(sums, dict) or not sums:
        raise ArtifactError(f"{place / MANIFEST} has no checksums: compile again.")
    for name, value in sums.items():
        if name not in READ or not isinstance(value, str) or not _SUM.fullmatch(value):
            raise ArtifactError(
                f"{place / MANIFEST} has a checksum of {str(name)[:60]!r}, which is no file of an "
                "artifact: compile again."
            )
    absent = [name for name in NEEDED if name not in sums]
    if absent:
        raise ArtifactError(f"{place / MANIFEST} does not list {absent[0]}: compile again.")
    return Files(place, sums)


def open_regular(path: pathlib.Path) -> int:
    """A descriptor of a regular file. Raises ArtifactError for one that is missing, and for links,
    pipes, devices and directories, which are not opened."""
    try:
        kind = os.lstat(path).st_mode
        if not stat.S_ISREG(kind):
            raise ArtifactError(f"{path} is no regular file: copy the artifact without links.")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path.parent} is incomplete: {path.name} is missing.") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be opened: {error.strerror or error}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged since
        os.close(descriptor)
        raise ArtifactError(f"{path} is no regular file: copy the artifact without links.")
    return descriptor


def read_bytes(path: pathlib.Path, limit: int = TEXT_LIMIT) -> bytes:
    """A regular file's content. Raises ArtifactError, for one above the limit too."""
    with os.fdopen(open_regular(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise ArtifactError(f"{path} is larger than {limit:,} bytes: it is damaged or forged.")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ArtifactError(f"{path} is larger than {limit:,} bytes: it is damaged or forged.")
    return content


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a regular file, hexadecimal. Raises ArtifactError."""
    digest = hashlib.sha256()
    with os.fdopen(open_regular(path), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def parse_json(content: bytes, path: pathlib.Path) -> Any:
    """JSON without NaN and infinities. Raises ArtifactError."""

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON: the artifact is damaged.") from error
