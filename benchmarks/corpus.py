"""English text that every Python brings along: the docstrings of its standard library.

Nothing is imported or run: the sources are parsed. The paragraphs are the same on every run with
one version of Python, and differ a little between versions.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

# Tests and tables say little, and what is installed beside Python differs between machines.
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "encodings", "pydoc_data"}
_HELD_OUT_SHARE = 5  # one module in five

Split = Literal["train", "held-out"]


def paragraphs(split: Split, minimum_words: int = 8) -> list[str]:
    """Paragraphs of prose, each on one line, without repetitions.

    `train` and `held-out` come from different top-level modules, and no paragraph of the first is
    in the second. Raises ValueError for another split, RuntimeError where Python was installed
    without its sources.
    """
    if split not in ("train", "held-out"):
        raise ValueError(f"split is {split!r}: take 'train' or 'held-out'")
    train, held_out = _all_paragraphs()
    chosen = train if split == "train" else held_out
    return [p for p in chosen if len(p.split()) >= minimum_words]


def with_installed(judged: Sequence[str], minimum_words: int = 8) -> list[str]:
    """The paragraphs of `train`, and those of the packages installed beside Python, but for what
    has eight words in a row in common with a text that is `judged`. What there is depends on the
    packages."""
    found = {_normalised(paragraph): paragraph for paragraph in _all_paragraphs()[0]}
    for path in _sources(Path(sysconfig.get_path("purelib"))):
        for paragraph in _prose(path):
            found.setdefault(_normalised(paragraph), paragraph)
    known = {run for text in judged for run in _runs(_normalised(text))}
    return [
        paragraph
        for key, paragraph in found.items()
        if len(paragraph.split()) >= minimum_words and known.isdisjoint(_runs(key))
    ]


def _runs(normalised: str, length: int = 8) -> Iterator[str]:
    words = normalised.split()
    for start in range(max(1, len(words) - length + 1)):
        yield " ".join(words[start : start + length])


def varied(texts: Sequence[str], words: Sequence[str], seed: int = 0) -> list[str]:
    """Every second text, on average, with three words in ten replaced by any of `words`: a teacher
    answers those as well, and what it knows beyond the domain of the texts is asked for."""
    draw = random.Random(seed)
    return [_replaced(text, words, draw) if draw.random() < 0.5 else text for text in texts]


def _replaced(text: str, words: Sequence[str], draw: random.Random) -> str:
    own = (draw.choice(words) if draw.random() < 0.3 else word for word in text.split())
    return " ".join(own)


@cache
def _all_paragraphs() -> tuple[list[str], list[str]]:
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[bool, dict[str, str]] = {False: {}, True: {}}
    for path in _sources(root):
        module = path.relative_to(root).parts[0].removesuffix(".py").lstrip("_")
        held_out = zlib.crc32(module.encode()) % _HELD_OUT_SHARE == 0
        for paragraph in _prose(path):
            found[held_out].setdefault(_normalised(paragraph), paragraph)
    if not found[False]:
        raise RuntimeError(f"no Python sources below {root}: install Python with its library")
    held_out_only = [text for key, text in found[True].items() if key not in found[False]]
    return list(found[False].values()), held_out_only


def _sources(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in _LEFT_OUT:
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _prose(path: Path) -> Iterator[str]:
    """The paragraphs of a file's docstrings that read as sentences, not as code or tables."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # deliberately broken samples
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        for paragraph in re.split(r"\n\s*\n", text or ""):
            line = " ".join(paragraph.split())
            letters = sum(c.isalpha() or c == " " for c in line)
            if line and not line.startswith((">>>", "$", "#")) and letters >= 0.85 * len(line):
                yield line


def _normalised(paragraph: str) -> str:
    return re.sub(r"[^a-z]+", " ", paragraph.lower()).strip()
