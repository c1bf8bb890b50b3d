"""Key-value caches of transformers models: off while a model is captured, unless asked for."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def without_cache(model: nn.Module) -> dict[str, Any]:
    """The argument that turns a model's cache off, {} for a model without one.

    A cache among the outputs would block the widths it holds, and torch.export does not know its
    class. A model of several senses hands `use_cache` on to its text model through **kwargs.
    """
    config = getattr(model, "config", None)
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" in parameters:
        return {"use_cache": False} if hasattr(config, "to_dict") else {}
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    text = getattr(config, "get_text_config", None)
    if not passes_on or text is None:
        return {}
    try:
        return {"use_cache": False} if getattr(text(), "use_cache", None) else {}
    except ValueError:  # raised where there are several texts
        return {}
