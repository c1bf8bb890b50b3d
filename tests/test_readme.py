"""What the README shows runs as it stands."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["result"].verify().passed
    assert pathlib.Path("small.onnx").stat().st_size > 1000
    assert sum(p.numel() for p in names["again"].parameters()) < 0.3 * sum(
        p.numel() for p in names["model"].parameters()
    )


def test_every_file_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
