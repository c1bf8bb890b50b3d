"""What an installation must have. CI runs this on the built wheel, with PRUNEC_TEST_WHEEL=1."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PASSES: dict[str, str] = PYPROJECT["project"]["entry-points"]["prunec.passes"]
FROM_WHEEL = os.environ.get("PRUNEC_TEST_WHEEL") == "1"


def modules() -> list[str]:
    """Every module that the checkout has, by the name it is installed under."""
    paths = sorted(p for folder in ("compiler", "passes") for p in (ROOT / folder).rglob("*.py"))
    dotted = (".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths)
    names = [f"prunec.{name.removesuffix('.__init__')}" for name in dotted]
    return ["prunec", "prunec.__main__", *names]


@pytest.mark.parametrize("name", modules())
def test_module_is_installed(name: str) -> None:
    module = importlib.import_module(name)
    if FROM_WHEEL:
        installed = Path(sysconfig.get_path("purelib")).resolve()
        assert Path(str(module.__file__)).resolve().is_relative_to(installed)


@pytest.mark.parametrize("word", PASSES)
def test_pass_is_found_by_its_entry_point(word: str) -> None:
    (found,) = importlib.metadata.entry_points(group="prunec.passes", name=word)
    assert found.value == PASSES[word]
    assert found.load().name == word


def test_recipes_and_type_marker_travel_along() -> None:
    compiler = importlib.resources.files("prunec.compiler")
    recipes = [r.name for r in compiler.joinpath("recipes").iterdir() if r.name.endswith(".toml")]
    assert sorted(recipes) == sorted(p.name for p in (ROOT / "compiler/recipes").glob("*.toml"))
    assert recipes
    assert compiler.joinpath("py.typed").is_file()
    assert importlib.resources.files("prunec.passes").joinpath("py.typed").is_file()


@pytest.mark.skipif(not FROM_WHEEL, reason="a checkout's metadata lists its own folders")
def test_nothing_else_is_installed() -> None:
    """The folders are called compiler and passes; no module may be installed under those names."""
    files = importlib.metadata.files("prunec") or []
    assert {file.parts[0] for file in files if file.suffix == ".py"} == {"prunec"}


def test_version_is_the_one_declared() -> None:
    assert importlib.metadata.version("prunec") == PYPROJECT["project"]["version"]


@pytest.mark.slow
def test_command_says_what_it_does(tmp_path: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / f"prunec{sysconfig.get_config_var('EXE') or ''}"
    module = [sys.executable, "-m"]
    for command in ([str(script)], [*module, "prunec"], [*module, "prunec.compiler"]):
        shown = subprocess.run(
            [*command, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert shown.returncode == 0, shown.stderr
        for word in ("compile", "explain", "bench", "verify"):
            assert word in shown.stdout
