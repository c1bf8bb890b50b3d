"""The direction of imports, the size of files and the list of packages, read from the sources."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINES_AT_MOST = 500

# From the ground up: each may import only what stands before it, and its own row without a cycle.
# A word is a sub-package or a file of compiler/; one that is missing here fails its own test only.
LAYERS = (
    (
        "errors",
        "cause",
        "digest",
        "durable",
        "processes",
        "device",
        "option_types",
        "user_code",
        "console",
    ),
    ("ir",),
    ("inference",),
    ("rules",),
    ("capture", "inputs"),
    ("rewrite",),
    ("verify",),
    ("emit",),
    ("onnx_files",),
    ("measure",),
    ("cost_model",),
    ("plan_data", "plan"),
    ("artifact",),
    (
        "target",
        "report",
        "compilation",
        "facts",
        "original",
        "pass_class",
        "registry",
        "weights",
        "rounds",
        "passmanager",
        "result",
        "check_pass",
        "recipe",
        "resume",
    ),
    ("sources",),
    ("driver", "preconditions", "quality", "sweep", "sweep_plot"),
    ("__init__",),
    ("commands",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Passes are told what to do; they do not read MODEL or DATA and run no pipeline.
ABOVE_PASSES = LEVEL["sources"]


def python_files() -> list[Path]:
    return sorted(p for folder in ("compiler", "passes") for p in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """compiler/ir/graph.py -> compiler.ir.graph; an __init__ keeps its name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def known_modules() -> set[str]:
    return {module_name(p) for p in python_files()}


def imported_modules(path: Path, known: set[str]) -> Iterator[str]:
    """The modules of prunec that a file imports, in functions too; not those for types only."""
    package = path.relative_to(ROOT).parent.parts
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        pending.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = ".".join((*base, *filter(None, [node.module])))
            targets = [f"{full}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            continue
        for target in targets:
            target = target.removeprefix("prunec.")
            parent = target.rpartition(".")[0]
            forms = (target, f"{target}.__init__", parent, f"{parent}.__init__")
            found = next((m for m in forms if m in known), None)
            if found not in (None, module_name(path)):
                yield found


def layer_of(module: str) -> str:
    """compiler.ir.graph -> ir, compiler.driver -> driver."""
    return module.split(".")[1]


def level(module: str) -> int:
    return LEVEL.get(layer_of(module), -1)


@cache
def imports() -> dict[str, set[str]]:
    known = known_modules()
    return {module_name(p): set(imported_modules(p, known)) for p in python_files()}


def test_every_file_of_the_compiler_has_a_layer() -> None:
    layers = {layer_of(m) for m in known_modules() if m.startswith("compiler.")}
    assert layers - set(LEVEL) == set()


def test_compiler_imports_only_downwards_and_no_pass() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, all_imported in imports().items()
        if module.startswith("compiler.")
        for imported in all_imported
        if imported.startswith("passes.") or level(imported) > level(module) >= 0
    ]
    assert wrong == []


def test_passes_import_nothing_that_drives_them() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, all_imported in imports().items()
        if module.startswith("passes.")
        for imported in all_imported
        if imported.startswith("compiler.") and level(imported) >= ABOVE_PASSES
    ]
    assert wrong == []


def test_imports_are_acyclic() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", python_files(), ids=module_name)
def test_file_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_AT_MOST


def test_listed_packages_are_the_folders_there_are() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {"prunec"} | {
        f"prunec.{'.'.join(p.parent.relative_to(ROOT).parts)}"
        for p in python_files()
        if p.name == "__init__.py"
    }
    without_init = {p.parent for p in python_files()} - {
        p.parent for p in python_files() if p.name == "__init__.py"
    }
    assert sorted(settings["tool"]["setuptools"]["packages"]) == sorted(folders)
    assert without_init == set()


def test_an_upward_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of imports finds every form there is, so that the tests above can fail."""
    (tmp_path / "compiler" / "ir").mkdir(parents=True)
    (tmp_path / "passes").mkdir()
    for name in ("compiler/__init__", "compiler/driver", "compiler/ir/graph", "passes/distill"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path, raising=True)
    forms = {
        "from ..driver import compile": {"compiler.driver"},
        "from .. import driver": {"compiler.driver"},
        "import prunec.passes.distill": {"passes.distill"},
        "def f():\n    from prunec.passes import distill": {"passes.distill"},
        "from .. import Pass": {"compiler.__init__"},
        "if TYPE_CHECKING:\n    from ..driver import compile": set(),
    }
    path = tmp_path / "compiler" / "ir" / "graph.py"
    for text, expected in forms.items():
        path.write_text(text)
        assert set(imported_modules(path, known_modules())) == expected, text
