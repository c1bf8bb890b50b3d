"""What MODEL may be: a directory or hub id, a factory, a library's name, a `.pt2`, an artifact."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..cause import cause
from ..errors import SourceError
from ..inputs.example_inputs import Arguments, example_inputs
from ..option_types import shown
from ..user_code import UserCodeError, call_user, user_code
from .pretrained import load_timm, load_torchvision, load_transformers

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HUB_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
ARTIFACT_FILE = "prunec.json"


@dataclass
class Source:
    """A model, arguments it runs on (`model(*args, **kwargs)`), and where it came from.

    `kind` is transformers, factory, timm, torchvision, exported or artifact; `name` is MODEL as
    the user wrote it. An artifact that loads as a graph has no arguments unless shapes were given.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    kind: str
    name: str
    processor: Any | None = None

    @property
    def tokenizer(self) -> Any | None:
        """The tokenizer, also where it is part of a processor; None where there is none."""
        inner = getattr(self.processor, "tokenizer", None)
        if inner is not None:
            return inner
        return self.processor if hasattr(self.processor, "convert_tokens_to_ids") else None

    @property
    def class_name(self) -> str:
        """The model's class with its module: `torchvision.models.resnet.ResNet`."""
        return f"{type(self.model).__module__}.{type(self.model).__qualname__}"


def resolve_model(
    spec: str,
    *,
    input_spec: Sequence[str] | None = None,
    batch: int = 2,
    trust_remote_code: bool = False,
    load_artifact: Callable[[Path], nn.Module] | None = None,
) -> Source:
    """Turn MODEL into a model in eval mode and arguments that it runs on.

    `input_spec` gives shapes (`3x224x224`, `ids:2x128`) and wins over what the model or its
    factory says; `batch` is the batch size wherever a shape has none. `load_artifact` opens an
    artifact directory. Raises SourceError, with the remedy, for a MODEL that does not resolve; and
    UserCodeError, with the line, for what the user's factory raises.
    """
    path = Path(spec)
    if not spec.strip():
        raise SourceError("MODEL is empty: pass a directory, hub id or package.module:factory.")
    processor = None
    inputs: Arguments | None = None
    if (path / ARTIFACT_FILE).is_file():
        if load_artifact is None:
            raise SourceError(f"{spec} is a prunec artifact: open it with compiler.load.")
        kind, model = "artifact", load_artifact(path)
    elif path.is_dir():
        kind = "transformers"
        if not (path / "config.json").is_file():
            raise SourceError(
                f"{spec} has neither config.json (transformers) nor {ARTIFACT_FILE} (prunec): "
                "pass one of these directories, or package.module:factory."
            )
        model, processor = load_transformers(spec, trust_remote_code=trust_remote_code)
    elif path.suffix == ".pt2":
        kind, (model, inputs) = "exported", _load_exported(path)
    elif spec.startswith("timm:"):
        kind, model = "timm", load_timm(spec.removeprefix("timm:"))
        inputs = None if input_spec else _image_inputs(model, batch)
    elif spec.startswith("torchvision:"):
        kind, model = "torchvision", load_torchvision(spec.removeprefix("torchvision:"))
        inputs = None if input_spec else example_inputs(model, ["3x224x224"], batch)
    elif _FACTORY.fullmatch(spec):
        kind, (model, inputs) = "factory", _call_factory(spec)
    elif path.exists():
        raise SourceError(
            f"{spec} is a file of unknown kind: pass a directory or a .pt2 (torch.export)."
        )
    elif _HUB_ID.fullmatch(spec):
        kind = "transformers"
        model, processor = load_transformers(spec, trust_remote_code=trust_remote_code)
    else:
        raise SourceError(
            f"{spec!r} is no existing path: pass a directory, hub id, package.module:factory, "
            "timm:NAME or torchvision:NAME."
        )
    if kind == "artifact" and not input_spec and not hasattr(model, "config"):
        inputs = (), {}
    elif inputs is None or input_spec:
        inputs = example_inputs(model, input_spec, batch)
    return Source(model, *inputs, kind=kind, name=spec, processor=processor)


def import_factory(spec: str) -> Any:
    """What `package.module:name` names, importable from the working directory too.

    Raises SourceError when the module or the name does not exist, UserCodeError for what the module
    raises.
    """
    module_name, _, attribute = spec.partition(":")
    if "" not in sys.path and (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        with user_code(f"the import of {module_name}"):
            module = importlib.import_module(module_name)
    except UserCodeError as error:
        missing = error.__cause__
        name = missing.name if isinstance(missing, ModuleNotFoundError) else None
        if name and (module_name == name or module_name.startswith(name + ".")):
            raise SourceError(
                f"{spec}: no module {name!r} is found: run in its directory or install it."
            ) from missing
        raise
    if not hasattr(module, attribute):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise SourceError(
            f"{spec}: {module_name} has no {attribute!r}: name one of {', '.join(public)}."
        )
    return getattr(module, attribute)


def require_callable_without(
    spec: str, parameters: Iterable[inspect.Parameter], *given: str
) -> None:
    """Raise SourceError where a factory needs arguments beside those `given`."""
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and p.name not in given
    ]
    if needed:
        raise SourceError(
            f"{spec} needs {', '.join(needed)}, and is called without arguments: give defaults, or "
            "name a function that calls it."
        )


def _call_factory(spec: str) -> tuple[nn.Module, Arguments | None]:
    made = import_factory(spec)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise SourceError(
                f"{spec} is {shown(made)}: name an nn.Module, or a function that gives one."
            )
        with contextlib.suppress(TypeError, ValueError):  # a built-in does not tell
            require_callable_without(spec, inspect.signature(made).parameters.values())
        made = call_user(spec, made)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise SourceError(
            f"{spec} gave {type(made).__name__}: return an nn.Module, or (module, inputs)."
        )
    return model.eval(), None if inputs is None else _arguments(spec, inputs)


def _arguments(spec: str, inputs: Any) -> Arguments:
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    if hasattr(inputs, "keys"):
        return (), dict(inputs)
    raise SourceError(
        f"{spec} gave inputs of type {type(inputs).__name__}: return a tensor, a tuple of "
        "arguments, or a dict of them."
    )


def _image_inputs(model: Any, batch: int) -> Arguments:
    """timm says the size of image that each model was trained on."""
    size = (model.pretrained_cfg or {}).get("input_size") or (3, 224, 224)
    return example_inputs(model, ["x".join(map(str, size))], batch)


def _load_exported(path: Path) -> tuple[nn.Module, Arguments | None]:
    """A program saved by torch.export, with the inputs saved beside it.

    The file holds pickled parts: like a factory, it is for files the user trusts.
    """
    if not path.is_file():
        raise SourceError(f"{path} does not exist: check the path.")
    logger = logging.getLogger("torch.export")  # it writes the traceback of what it raises
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        program = torch.export.load(path)
    except Exception as error:  # the loader raises whatever the damage leads to
        raise SourceError(
            f"torch.export cannot read {path} ({cause(error)}): save it with torch.export.save."
        ) from error
    finally:
        logger.setLevel(level)
    saved = program.example_inputs
    module = program.module()
    for refused in ("train", "eval"):  # torch puts what raises there; the graph has one mode anyway
        vars(module).pop(refused, None)
    return module, (tuple(saved[0]), dict(saved[1])) if saved else None
