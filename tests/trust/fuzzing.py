"""Fuzzing: a stranger's files, each time one of them mutated, read under guard."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from guarding import fault
from mutating import mutate_bytes

Change = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Stranger:
    """A reader of a folder, and how its files may come.

    Attributes:
        write: puts valid files into a folder.
        read: reads the folder, to the end of what its content decides.
        changes: of files whose names end so; other files are mutated as bytes only.
        reseal: mends what a forger would mend too, such as checksums.
        modules: packages of which reading may import parts.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    changes: dict[str, Change] = field(default_factory=dict)
    reseal: Callable[[Path], object] = lambda folder: None
    modules: frozenset[str] = frozenset()


@dataclass
class Tally:
    """What became of the inputs of one reader."""

    accepted: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + len(self.faults)


def fuzz(strangers: Mapping[str, Stranger], name: str, inputs: int, seed: int) -> Tally:
    """Read so many mutations of a stranger's files; each is made by (name, seed, its number)."""
    stranger, tally = strangers[name], Tally()
    with TemporaryDirectory(prefix="trust-", dir=fast_folder()) as place:
        folder = Path(place)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            stranger.write(folder)
            valid = {f: f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
            stranger.read(folder)  # loads what it needs before it is watched
        for number in range(inputs):
            mutate(stranger, valid, Random(f"{name}/{seed}/{number}"))
            try:
                end, wrong = fault(lambda: stranger.read(folder), folder, modules=stranger.modules)
            finally:
                restore(folder, valid)
            if wrong is not None:
                tally.faults.append(f"{name}/{seed}/{number}: {wrong}")
            elif end == "accepted":
                tally.accepted += 1
            else:
                tally.refused += 1
    return tally


def fast_folder() -> str | None:
    """Where files cost no disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def mutate(stranger: Stranger, valid: dict[Path, bytes], random: Random) -> None:
    """Change one of the files."""
    file = random.choice(list(valid))
    change = stranger.changes.get(file.suffix, mutate_bytes)
    change = mutate_bytes if random.random() < 0.25 else change
    data = change(valid[file], random)
    file.write_bytes(data)
    if random.random() < 0.01:
        file.unlink()
    if random.random() < 0.9:
        stranger.reseal(file.parents[1])


def restore(folder: Path, valid: dict[Path, bytes]) -> None:
    """The valid files again, and nothing else."""
    for file in folder.rglob("*"):
        if file.is_file() and file not in valid:
            file.unlink()
    for file, data in valid.items():
        if not file.exists() or file.read_bytes() != data:
            file.write_bytes(data)
