"""Models from the libraries that keep them: transformers, timm, torchvision."""

from __future__ import annotations

import importlib
import inspect
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ..cause import cause
from ..errors import SourceError

# Any of these in a directory says that it brings a tokenizer or processor. Without one
# transformers would make up an empty tokenizer from the model's type.
_PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json",
    "spiece.model", "sentencepiece.bpe.model", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
RANDOM = "#random"


def load_transformers(
    name: str, *, trust_remote_code: bool = False
) -> tuple[nn.Module, Any | None]:
    """The model of a local directory or a hub id, in eval mode, and its tokenizer or processor.

    The class is the one the configuration names under `architectures`, else what AutoModel
    chooses. Warns when the checkpoint lacks weights of that class. Raises SourceError when the
    files cannot be found or read, or when they need code that is not trusted.
    """
    import transformers

    local = Path(name).is_dir()
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # a configuration's own checks raise what they like
        raise _unreadable(name, local, error) from error
    named = getattr(config, "architectures", None)
    architecture = str(named[0]) if isinstance(named, (list, tuple)) and named else ""
    cls = getattr(transformers, architecture, None)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code} if cls is None else {}
    try:
        model, loading = (cls or transformers.AutoModel).from_pretrained(
            name, config=config, output_loading_info=True, **options
        )
    except Exception as error:  # the readers of damaged weights raise what they like
        raise _unreadable(name, local, error) from error
    if cls is None and architecture:
        warnings.warn(
            f"{name} names {architecture}, which transformers {transformers.__version__} does not "
            f"have: taken as {type(model).__name__}",
            stacklevel=2,
        )
    missing = sorted(loading["missing_keys"])
    if missing:
        warnings.warn(
            f"{name} has no weights for {len(missing)} tensors of {type(model).__name__} "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): they are random",
            stacklevel=2,
        )
    return model.eval(), _processor(name, local)


def load_timm(name: str) -> nn.Module:
    """A timm model in eval mode, with its pretrained weights or, for `NAME#random`, random."""
    timm = _library("timm")
    plain, random = _without_suffix(name)
    if not timm.is_model(plain.partition(".")[0]):
        near = ", ".join(timm.list_models(f"*{plain}*")[:5])
        raise SourceError(
            f"timm has no model {plain!r}{f' (near it: {near})' if near else ''}: see "
            "timm.list_models()."
        )
    try:
        return timm.create_model(plain, pretrained=not random).eval()
    except (OSError, RuntimeError) as error:
        raise _no_weights("timm", plain, error) from error


def load_torchvision(name: str) -> nn.Module:
    """A torchvision model in eval mode, with its default weights or, for `NAME#random`, random."""
    torchvision = _library("torchvision")
    plain, random = _without_suffix(name)
    if plain not in torchvision.models.list_models():
        raise SourceError(
            f"torchvision has no model {plain!r}: see torchvision.models.list_models()."
        )
    builder = torchvision.models.get_model_builder(plain)
    options: dict[str, Any] = {"weights": None if random else "DEFAULT"}
    if random and "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    try:
        return builder(**options).eval()
    except (OSError, RuntimeError) as error:
        raise _no_weights("torchvision", plain, error) from error


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SourceError(f"{name}:NAME needs the package {name}: pip install {name}.") from error
    except (ImportError, RuntimeError) as error:
        raise SourceError(
            f"{name} is installed but does not load ({cause(error)}): install the builds of torch "
            "and torchvision that belong together."
        ) from error


def _without_suffix(name: str) -> tuple[str, bool]:
    return name.removesuffix(RANDOM), name.endswith(RANDOM)


def _processor(name: str, local: bool) -> Any | None:
    import transformers

    if local and not any((Path(name) / file).exists() for file in _PROCESSOR_FILES):
        return None
    for auto in (transformers.AutoProcessor, transformers.AutoTokenizer):
        try:
            return auto.from_pretrained(name)
        except Exception as error:  # the readers of damaged files raise what they like
            reason = error
    warnings.warn(f"the processor of {name} could not be loaded: {cause(reason)}", stacklevel=3)
    return None


def _unreadable(name: str, local: bool, error: Exception) -> SourceError:
    if local:
        return SourceError(
            f"transformers cannot read {name} ({cause(error)}): check its config.json and "
            "weights, or pass package.module:factory."
        )
    return SourceError(
        f"{name} is no local path and the hub did not give it ({cause(error)}): download it where "
        "there is a connection and pass the directory, or pass package.module:factory."
    )


def _no_weights(library: str, name: str, error: Exception) -> SourceError:
    return SourceError(
        f"no pretrained weights for {library}:{name} ({cause(error)}): {library}:{name}{RANDOM} "
        "takes random ones."
    )
