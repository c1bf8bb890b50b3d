"""The ways into prunec that read a directory somebody else may have written, and how each ended."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import checkout  # noqa: F401
import torch
import torch.utils._pytree as pytree
import transformers
from fuzz_subjects import SUBJECTS
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler.__main__ import main
from prunec.compiler.errors import PrunecError

if TYPE_CHECKING:
    from fork_server import Call

_ROOT = Path(__file__).resolve().parent.parent
_MODELS = ("load", "load graph", "load into")  # those that return a model
_expected: dict[tuple[str, str], Any] = {}
_homes: dict[str, Path] = {}
_classes: set[type] = set()


def warm(subjects: Path) -> None:
    """Run every entry point that loads on every sound artifact, and keep the outputs."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    importlib.import_module("prunec.compiler.cost_model.onnx_op")  # as a compile does
    with contextlib.suppress(Exception):  # its file imports an installed package, as it is found
        _ = transformers.RagModel
    for name in SUBJECTS:
        _homes[name] = subjects / name
        for entry in _MODELS:
            model = _model(entry, name, _homes[name])
            _expected[entry, name] = _outputs(model, name)
            _classes.update(_classes_of(model))
        with contextlib.redirect_stdout(io.StringIO()):
            main(["verify", str(_homes[name])])
    gc.collect()
    gc.freeze()


def call(call: Call) -> dict[str, str]:
    """Run the call; what came of it, as fields of an Outcome."""
    before = _process_state()
    try:
        same = _run(call)
        end = {"kind": "identical load" if same else "different outputs", "text": "", "where": ""}
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        text = f"{type(error).__name__}: {error}"
        kind = "clear error" if isinstance(error, PrunecError) else "other exception"
        kind = "memory" if _out_of_memory(error) else kind
        end = {"kind": kind, "text": text[:2000], "where": _place(error)}
    changed = _changes(before, _process_state())
    return {"kind": "changed the process", "text": changed, "where": ""} if changed else end


def _run(call: Call) -> bool:
    if call.entry in _MODELS:
        model = _model(call.entry, call.subject, Path(call.directory))
        found = _outputs(model, call.subject)
        return any(_same(found, _expected[entry, call.subject]) for entry in _MODELS)
    if call.entry == "python":  # what tests of the harness itself do
        exec(call.arguments[0], {"directory": str(call.directory)})
        return True
    commands = {
        "verify": ["verify", str(call.directory)],
        "bench": ["bench", str(call.directory), str(call.directory), "--batch", "1"],
        "compile": ["compile", str(call.directory), "--target", "width=0.5", "--no-measure"],
        "command": [],
    }
    main(["--debug", *commands[call.entry], *call.arguments])
    return True


def _model(entry: str, subject: str, directory: Path) -> nn.Module:
    if entry == "load into":
        return compiler.load(directory, SUBJECTS[subject].model())
    return compiler.load(directory, graph=entry == "load graph")


def _outputs(model: nn.Module, subject: str) -> Any:
    with torch.no_grad():
        return model(*SUBJECTS[subject].args, **SUBJECTS[subject].kwargs)


def _same(found: Any, expected: Any) -> bool:
    """Bit for bit, in the same containers."""
    (some, spec), (others, other_spec) = pytree.tree_flatten(found), pytree.tree_flatten(expected)
    if str(spec) != str(other_spec):
        return False
    return all(_equal(a, b) for a, b in zip(some, others, strict=True))


def _equal(a: Any, b: Any) -> bool:
    if type(a) is type(b) and type(a).__module__.startswith("transformers."):
        return vars(a).keys() == vars(b).keys() and all(
            _same(value, vars(b)[key]) for key, value in vars(a).items()
        )  # a cache, its layers
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if (a.dtype, a.shape, a.device) != (b.dtype, b.shape, b.device):
            return False
        return torch.equal(a, b) or bool(torch.isclose(a, b, 0, 0, equal_nan=True).all())
    return type(a) is type(b) and a == b


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and one not in chain:
            chain.append(one)
            pending += [one.__cause__, one.__context__]
    return chain


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out anywhere below, whatever was made of that."""
    texts = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "bad_alloc")
    return any(
        isinstance(one, MemoryError) or any(text in str(one) for text in texts)
        for one in _chain(error)
    )


def _place(error: BaseException) -> str:
    """`file.py:function` of the innermost frame in prunec."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    folders = (str(_ROOT / "compiler"), str(_ROOT / "passes"))
    own = [code for code in codes if code.co_filename.startswith(folders)]
    if not own:
        return f"the first forward ({Path(codes[-1].co_filename).name})" if codes else ""
    return f"{Path(own[-1].co_filename).relative_to(_ROOT)}:{own[-1].co_name}"


def _process_state() -> dict[str, Any]:
    """What a forged file might change for all that runs later: classes, defaults, paths."""
    state: dict[str, Any] = {
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "environment": dict(os.environ),
        "sys.path": list(sys.path),
        "recursion limit": sys.getrecursionlimit(),
        "threads": torch.get_num_threads(),
    }
    for cls in _classes:
        for name, value in list(vars(cls).items()):
            if not name.startswith(("__", "_abc")):
                state[f"{cls.__module__}.{cls.__qualname__}.{name}"] = id(value)
    return state


def _classes_of(model: nn.Module) -> set[type]:
    """All that its modules and its configuration inherit from."""
    parts = [*model.modules(), getattr(model, "config", model)]
    return {cls for part in parts for cls in type(part).__mro__ if cls is not object}


def _changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    return ", ".join(sorted(k for k, v in before.items() if after.get(k) != v))[:500]
