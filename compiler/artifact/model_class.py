"""A transformers model from a stored configuration: one of transformers' own classes, on meta, with
nothing opened and nothing of the configuration's own choosing run."""

from __future__ import annotations

import contextlib
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..cause import cause
from ..emit.row_values import DTYPES
from ..errors import ArtifactError
from .closed_door import nothing_opened
from .files import parse_json, read_bytes

MODULES_PER_TENSOR = 64  # modules that a class may make for each of its tensors
MODULES_FLOOR = 2_000
INTEGER_LIMIT = 2**24  # of a configuration: lengths of ten million are in use
DEPTH_LIMIT = 12
ITEMS_LIMIT = 2_000_000
# What would name a place to read weights or code from, or code to run attention with.
_STRIPPED = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "auto_map",
        "trust_remote_code",
        "custom_pipelines",
        "custom_pipeline",
        "_commit_hash",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "quantization_config",
        "compression_config",
        "transformers_version",
        "transformers_weights",
        "base_model_name_or_path",
        "adapter_kwargs",
        "kernel_config",
        "use_kernels",
    }
)
_REFUSED = frozenset(
    {"backbone", "use_pretrained_backbone", "use_timm_backbone", "pretrained_backbone"}
)
_REFUSED_TYPES = frozenset({"timm_wrapper", "timm_backbone"})
_DTYPE_KEYS = frozenset({"dtype", "torch_dtype"})
_KEY = re.compile(r"[^\x00-\x1f]{0,300}")
_NAME = re.compile(r"[A-Za-z]\w{0,100}", re.ASCII)


def transformers_class(name: str) -> type | None:
    """transformers' own model class of that full name, looked up in its public table; None where
    it has none."""
    try:
        import transformers
    except ImportError:
        return None
    own = name.rpartition(".")[2]
    if not name.startswith("transformers.") or own not in getattr(transformers, "__all__", ()):
        return None
    try:
        found = getattr(transformers, own)
    except Exception:  # of a lazy import: a package that the class needs is not installed
        return None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        return None
    config = getattr(found, "config_class", None)
    known = isinstance(config, type) and issubclass(config, transformers.PretrainedConfig)
    official = found.__module__.startswith("transformers.models.")
    same = f"{found.__module__}.{found.__qualname__}" == name
    return found if known and official and same else None


def build_model(
    name: str, config: Any, generation: Any, tensors: int, device: str = "meta"
) -> nn.Module:
    """A model of that class, in the sizes of a configuration (JSON values), on meta unless said.

    `generation`: JSON values of a generation configuration, or None. `tensors`: how many tensors
    the model is known to have, which bounds what is made. Raises ArtifactError.
    """
    cls: Any = transformers_class(name)
    if cls is None:
        raise ArtifactError(
            f"transformers has no model class {name[:200]}; install the version it needs."
        )
    plain = checked_config(config)
    if not isinstance(plain, dict):
        raise ArtifactError("config.json holds no configuration: compile the model again.")
    most = MODULES_FLOOR + MODULES_PER_TENSOR * tensors
    try:
        with nothing_opened(), _at_most(most), torch.device(device):
            model = cls(cls.config_class.from_dict(plain))
    except ArtifactError:
        raise
    except Exception as error:  # whatever a class raises for a configuration that is not its own
        raise ArtifactError(
            f"{name} cannot be made from config.json ({cause(error)}): install the transformers "
            "version that wrote it, hand in model=, or load with graph=True."
        ) from error
    if isinstance(generation, dict) and hasattr(model, "generation_config"):
        model.generation_config = _generation(type(model.generation_config), generation)
    return model


def save_config(model: nn.Module, place: pathlib.Path) -> None:
    """Write a transformers model's configurations, where they can be written; one that its own
    class refuses to write is left out."""
    for name in ("config", "generation_config"):
        config: Any = getattr(model, name, None)
        path = place / f"{name}.json"
        if not hasattr(config, "save_pretrained"):
            continue
        try:
            config.save_pretrained(place)
            parse_json(read_bytes(path), path)
        except Exception:  # transformers' own checks raise many kinds
            path.unlink(missing_ok=True)


def checked_config(value: Any, depth: int = 0) -> Any:
    """A configuration without what names code or another checkpoint, at any depth; floats that JSON
    lacks are read as transformers writes them. Raises ArtifactError for what would open a file, and
    for numbers that no model has."""
    if depth > DEPTH_LIMIT:
        raise _config_error("nesting of that depth")
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return _float(value["__float__"])
        return {
            key: _entry(key, inner, depth)
            for key, inner in value.items()
            if key not in _STRIPPED and _allowed(key, inner)
        }
    if isinstance(value, list):
        if len(value) > ITEMS_LIMIT:
            raise _config_error("a list of that length")
        return [checked_config(inner, depth + 1) for inner in value]
    if type(value) is int and abs(value) > INTEGER_LIMIT:
        raise _config_error(f"the number {str(value)[:40]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _config_error("a number that is none")
    return value


def _entry(key: str, value: Any, depth: int) -> Any:
    if key in _DTYPE_KEYS and value is not None and value not in tuple(DTYPES):
        if not isinstance(value, str) or value.removeprefix("torch.") not in DTYPES:
            raise _config_error(f"the dtype {str(value)[:40]!r}")
        return value.removeprefix("torch.")
    return checked_config(value, depth + 1)


def _allowed(key: str, value: Any) -> bool:
    """False for what is left out; raises for what is refused."""
    if not _KEY.fullmatch(key) or key.startswith("__"):
        raise _config_error(f"the key {key[:40]!r}")
    if key in _REFUSED and value:
        raise _config_error(f"'{key}', which would be looked up outside the artifact")
    if key == "model_type" and (not isinstance(value, str) or value in _REFUSED_TYPES):
        raise _config_error(f"the model type {str(value)[:40]!r}")
    return True


def _float(value: Any) -> float:
    known = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
    if not isinstance(value, str) or value not in known:
        raise _config_error("a number that is none")
    return known[value]


def _config_error(what: str) -> ArtifactError:
    return ArtifactError(
        f"config.json has {what}: the artifact is damaged or forged; compile the model again, or "
        "load it with graph=True."
    )


def _generation(cls: Any, values: dict[str, Any]) -> Any:
    """A generation configuration: plain values of the fields that such a one has."""
    fresh = cls()
    plain = checked_config(values)
    own = {
        key: value
        for key, value in plain.items()
        if _NAME.fullmatch(key) and key in vars(fresh) and not callable(getattr(cls, key, None))
    }
    try:
        with nothing_opened():
            return cls.from_dict(own)
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(
            f"generation_config.json cannot be read ({cause(error)}): the artifact is damaged."
        ) from error


@contextlib.contextmanager
def _at_most(modules: int) -> Iterator[None]:
    """Let at most so many modules be registered inside the block. Raises ArtifactError."""
    left = [modules]

    def count(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise ArtifactError(
                f"config.json describes a model of more than {modules:,} modules, which its "
                "tensors do not fill: the artifact is damaged or forged."
            )

    register = torch.nn.modules.module
    handles = [
        register.register_module_module_registration_hook(count),
        register.register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
