"""English text that is not about code: licences, and descriptions of scientific data sets.

Both come with the packages that the benchmarks need: the licence files of what is installed, and
the descriptions of scikit-learn's data sets. What exactly there is depends on the packages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import sklearn.datasets

_LICENCE = re.compile(r"licen[sc]e|copying|notice", re.IGNORECASE)


@cache
def paragraphs(minimum_words: int = 8) -> list[str]:
    """Paragraphs of prose, each on one line, without repetitions, in a stable order."""
    found: dict[str, str] = {}
    for text in sorted({*_licences(), *_descriptions()}):
        for paragraph in re.split(r"\n\s*\n", text):
            line = " ".join(paragraph.split())
            letters = sum(c.isalpha() or c == " " for c in line)
            if len(line.split()) >= minimum_words and letters >= 0.85 * len(line):
                found.setdefault(re.sub(r"[^a-z]+", "", line.lower()), line)
    return list(found.values())


def _licences() -> Iterator[str]:
    for distribution in distributions():
        for file in distribution.files or ():
            if ".dist-info" in str(file) and _LICENCE.search(file.name):
                path = Path(str(file.locate()))
                if path.is_file():
                    yield path.read_text(encoding="utf-8", errors="ignore")


def _descriptions() -> Iterator[str]:
    for path in (Path(sklearn.datasets.__file__).parent / "descr").glob("*.rst"):
        yield path.read_text(encoding="utf-8")
