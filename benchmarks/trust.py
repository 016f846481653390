"""What the library withstands: mutated files, kills, drawn networks, load; the long versions.

    python benchmarks/run.py trust-fuzz             # all that is missing, then the result
    python benchmarks/trust.py trust-fuzz 500       # some of it, for 500 s; resumes

Each benchmark is made of chunks that a seed decides; what is done is kept in
benchmarks/cache/trust/NAME.jsonl, one line a chunk.
"""

import json
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = HERE / "cache" / "trust"
sys.path.insert(0, str(HERE.parent / "tests" / "trust"))

Row = dict[str, Any]
FUZZ_CHUNK, FUZZ_CHUNKS, ARGUMENT_CHUNKS = 500, 12, 5  # inputs; chunks of a reader


def fuzz_chunks() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Chunks of inputs of every reader."""
    from arguments import fuzz_arguments
    from strangers import STRANGERS, Tally, fuzz

    def row(reader: str, tally: Tally) -> Row:
        faults = {"faults": len(tally.faults), "which": tally.faults[:20]}
        return {"reader": reader, "read": tally.accepted, "refused": tally.refused} | faults

    for seed in range(100, 100 + FUZZ_CHUNKS):
        for name in STRANGERS:
            yield (
                f"{name}/{seed}",
                lambda name=name, seed=seed: row(name, fuzz(name, FUZZ_CHUNK, seed)),
            )
        if seed < 100 + ARGUMENT_CHUNKS:
            yield (
                f"arguments/{seed}",
                lambda seed=seed: row("arguments", fuzz_arguments(FUZZ_CHUNK, seed)),
            )


Chunks = Callable[[], Iterator[tuple[str, Callable[[], Row]]]]
CHUNKS: dict[str, tuple[Chunks, str]] = {"trust-fuzz": (fuzz_chunks, "reader")}


def work(name: str, seconds: float = inf) -> list[Row]:
    """The rows of all chunks, or of those done when the time is over."""
    file = CACHE / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text().splitlines() if file.exists() else []
    done: dict[str, Row] = dict(json.loads(line) for line in lines)
    end = time.monotonic() + seconds
    for key, run in CHUNKS[name][0]():
        if key not in done and time.monotonic() < end:
            began = time.perf_counter()
            done[key] = run() | {"seconds": round(time.perf_counter() - began, 2)}
            with file.open("a") as out:
                out.write(json.dumps([key, done[key]]) + "\n")
    return list(done.values())


def summed(rows: list[Row], by: str) -> list[Row]:
    """Rows with one name added up: numbers add, lists join."""
    found: dict[str, Row] = defaultdict(dict)
    for row in rows:
        total = found[row[by]]
        for name, value in row.items():
            total[name] = (
                value if isinstance(value, str) else total.get(name, type(value)()) + value
            )
    return list(found.values())


def result(name: str) -> Row:
    """All chunks, added up."""
    rows = summed(work(name), CHUNKS[name][1])
    numbers = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    return {"total": {key: sum(row.get(key, 0) for row in rows) for key in sorted(numbers)}} | {
        "rows": rows
    }


BENCHMARKS = {name: lambda name=name: result(name) for name in CHUNKS}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    made = work(sys.argv[1], float(sys.argv[2]))
    print(json.dumps(summed(made, CHUNKS[sys.argv[1]][1]), indent=1))
