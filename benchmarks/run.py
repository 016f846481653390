"""Run a benchmark by name and write benchmarks/results/NAME.json: python benchmarks/run.py NAME.

Every module of this folder may define BENCHMARKS = {name: function}; a function returns a dict that
JSON can hold, with "rows". This script adds the machine, the versions and the command.
"""

import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def benchmarks() -> dict[str, Callable[[], dict[str, Any]]]:
    """All benchmarks by name."""
    sys.path.insert(0, str(HERE))
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for file in sorted(HERE.glob("*.py")):
        if file.stem != "run":
            found |= getattr(importlib.import_module(file.stem), "BENCHMARKS", {})
    return found


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }


def write(name: str, result: dict[str, Any]) -> Path:
    """Write a result whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def main(names: list[str]) -> int:
    """Run the named benchmarks; without a name, list them."""
    known = benchmarks()
    if not names or not set(names) <= set(known):
        print("python benchmarks/run.py NAME, one of:", *known, sep="\n  ")
        return 2 if names else 0
    for name in names:
        began = time.perf_counter()
        result = known[name]()
        seconds = round(time.perf_counter() - began, 1)
        head = {"command": f"python benchmarks/run.py {name}", "seconds": seconds}
        path = write(name, head | {"machine": machine()} | result)
        print(path, f"({seconds} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
