"""What the library withstands: mutated files, kills, drawn networks, load; the long versions.

    python benchmarks/run.py trust-fuzz             # all that is missing, then the result
    python benchmarks/trust.py trust-fuzz 500       # some of it, for 500 s; resumes

Each benchmark is made of chunks that a seed decides; what is done is kept in
benchmarks/cache/trust/NAME.jsonl, one line a chunk.
"""

import json
import os
import subprocess
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
TESTS = HERE.parent / "tests" / "trust"
sys.path.insert(0, str(TESTS))

Row = dict[str, Any]
FUZZ_CHUNK, FUZZ_CHUNKS = 500, 5  # inputs; chunks of a reader
QUICK, MORE = ("plan", "recipe", "budget", "shard", "checkpoint"), 10  # readers that get more
KILLS, KILL_CHUNKS, CASES = 40, 5, 1000


def fuzz_chunks() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Chunks of inputs of every reader."""
    from arguments import fuzz_arguments
    from fuzzing import Tally, fuzz
    from strangers import STRANGERS

    def run(reader: str, inputs: int, seed: int) -> Row:
        return row(reader, fuzz(STRANGERS, reader, inputs, seed))

    def row(reader: str, tally: Tally) -> Row:
        faults = {"faults": len(tally.faults), "which": tally.faults[:20]}
        ends = {"inputs": tally.inputs, "read": tally.accepted, "refused": tally.refused}
        return {"reader": reader} | ends | faults

    for seed in range(100, 100 + FUZZ_CHUNKS):
        for name in STRANGERS:
            inputs = FUZZ_CHUNK * (MORE if name in QUICK and seed > 100 else 1)
            yield (
                f"{name}/{seed}/{inputs}",
                lambda n=name, s=seed, i=inputs: run(n, i, s),
            )
    for seed in (100, 101):
        yield f"arguments/{seed}", lambda s=seed: row("arguments", fuzz_arguments(FUZZ_CHUNK, s))


def kill_chunks() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Jobs that die, in a process of their own a chunk."""

    def run(seed: int) -> Row:
        command = [sys.executable, str(TESTS / "kills.py"), str(KILLS), str(seed)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        told = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
        found = json.loads(told)
        faults = {"faults": len(found["faults"]), "which": found["faults"]}
        ends = {"killed": sum(found["kills"].values()), "ended": found["finished"]}
        return {"job": "all stages"} | ends | found["kills"] | faults

    for seed in range(KILL_CHUNKS):
        yield str(seed), lambda seed=seed: run(seed)


def property_chunks() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Promises on drawn networks."""
    from promises import case, keep_promises

    def run(seeds: range) -> Row:
        row: Row = {"suite": "promises", "cases": len(seeds), "kept": 0, "least": 0, "refused": 0}
        row |= {"faults": 0, "which": []}
        for seed in seeds:
            try:
                row[keep_promises(seed)[0]] += 1
            except Exception as error:
                row["faults"] += 1
                told = f"{type(error).__name__}: {error!s:.300}"
                row["which"].append(f"{seed} {case(seed).way}: {told}")
        return row

    for start in range(1000, 1000 + CASES, 50):
        yield str(start), lambda start=start: run(range(start, start + 50))


def load_chunks() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Many networks in a row, a very large plan, a soak; each in a process of its own."""

    def run(what: str) -> Row:
        command = [sys.executable, str(TESTS / "loads.py"), what]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        told = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
        return {"load": what} | json.loads(told)

    for what in ("row", "plan", "soak", "outliers"):
        yield what, lambda what=what: run(what)


Chunks = Callable[[], Iterator[tuple[str, Callable[[], Row]]]]
CHUNKS: dict[str, tuple[Chunks, str]] = {
    "trust-fuzz": (fuzz_chunks, "reader"),
    "trust-kills": (kill_chunks, "job"),
    "trust-properties": (property_chunks, "suite"),
    "trust-load": (load_chunks, "load"),
}


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


def result(name: str, seconds: float = inf) -> Row:
    """All chunks, or those done when the time is over, added up."""
    rows = summed(work(name, seconds), CHUNKS[name][1])
    numbers = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    return {"total": {key: sum(row.get(key, 0) for row in rows) for key in sorted(numbers)}} | {
        "rows": rows
    }


# TRUST_SECONDS: an end to the work, after which the result is of what was done.
LIMIT = float(os.environ.get("TRUST_SECONDS", "inf"))
BENCHMARKS = {name: lambda name=name: result(name, LIMIT) for name in CHUNKS}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(result(sys.argv[1], float(sys.argv[2])), indent=1))
