"""Run the benchmarks one after the other, each in a process of its own.

python benchmarks/run.py [NAME ...]

`gpu` runs only when it is named: it needs a CUDA device.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = (
    "digits_compile",
    "llama_small",
    "full_size",
    "cost",
    "speedup",
    "planted",
    "repair",
    "recovery",
    "minilm_compile",
    "headlines",
)


def main() -> None:
    """Run the named benchmarks, all by default; the first that fails ends the run."""
    for name in sys.argv[1:] or NAMES:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).parent / f"{name}.py")], check=True)


if __name__ == "__main__":
    main()
