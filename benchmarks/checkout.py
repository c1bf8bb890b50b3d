"""Makes `prunec` importable from a checkout that is not installed, on import of this module.

The folders compiler/ and passes/ are prunec.compiler and prunec.passes. Passes are then found by
import only, not by a recipe: entry points belong to an installed package.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

if importlib.util.find_spec("prunec") is None:
    _package = types.ModuleType("prunec")
    _package.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["prunec"] = _package
