"""The demo itself: train, make small in three ways, measure, save and report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from torch import nn

import bozzetto as bz
from bozzetto.analysis.latency import latency
from bozzetto.batches import Batch
from bozzetto.demo.digits import held_out
from bozzetto.demo.result import Demo, Variant, write_page
from bozzetto.demo.ways import SKETCHED, SVD_TUNED, TARGET, TUNED, Run, Scale, run
from bozzetto.io import check_output
from bozzetto.prices import price_model
from bozzetto.timing import with_threads

__all__ = ["demo"]

FOLDERS = {TARGET: "target", TUNED: "compressed", SKETCHED: "sketched", SVD_TUNED: "svd"}
PAGE = "report.html"
_DEFAULT = Scale()


def demo(
    folder: Path | str,
    *,
    scale: Scale = _DEFAULT,
    seeds: Sequence[int] = (0, 1, 2),
    say: Callable[[str], None] = lambda what: None,
) -> Demo:
    """Train a network, make it small in three ways, measure all, and write what came of it.

    The ways, all within the same number of trained values: `compress` with calibration data, then
    tuned; `sketch`, trained from scratch for as long as target and tuning together; and the
    truncated SVD of the weights at a common fraction, the output layer left whole, then tuned too.
    Torch runs on one thread meanwhile: with networks this small, more only wait for each other.

    Args:
        folder: for report.html and the networks of the first seed. What an earlier demo wrote
            there is replaced.
        scale: how much to do.
        seeds: each gives a split of the data, initial weights and an order of training.
        say: is told what goes on.

    Raises:
        FileExistsError: if the folder holds anything else than an earlier demo.
        ValueError: without seeds.
    """
    folder = _check_folder(Path(folder))
    if not seeds:
        raise ValueError("the demo needs at least one seed; got none")
    with with_threads(1):
        runs = [run(seed, scale, say) for seed in seeds]
        first, batch = runs[0], next(iter(held_out(seeds[0])))
        say("measuring latency")
        speed = latency(first.networks, batch, repeats=40)
    sizes = _save(folder, first)
    ratios = {name: speed.ratio(name) for name in first.networks}
    accuracies = {name: [found.accuracy[name] for found in runs] for name in first.networks}
    variants = _variants(first.networks, batch, sizes, ratios, accuracies)
    made = Demo(variants, tuple(seeds), first.plans[TUNED], first.certificate, speed)
    write_page(folder / PAGE, made)
    return made


def _check_folder(folder: Path) -> Path:
    """The folder, if all that it holds is of a demo."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"an output folder is needed; {folder} is a file")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if foreign := found - {*FOLDERS.values(), PAGE}:
        raise FileExistsError(
            f"the demo needs a new folder or that of an earlier demo; {folder} also holds "
            f"{sorted(foreign)[:5]}"
        )
    for part in found - {PAGE}:
        check_output(folder / part, force=True)
    return folder


def _save(folder: Path, made: Run) -> dict[str, int]:
    """Save the networks that have a folder; bytes of each."""
    sizes = {}
    for name, part in FOLDERS.items():
        written = bz.save(
            folder / part, made.networks[name], made.plans[name],
            source="bozzetto.demo:network", force=True,
        )  # fmt: skip
        sizes[name] = sum(file.stat().st_size for file in written.iterdir())
    return sizes


def _variants(
    networks: Mapping[str, nn.Module],
    batch: Batch,
    sizes: Mapping[str, int],
    ratios: Mapping[str, float],
    accuracies: Mapping[str, Sequence[float]],
) -> tuple[Variant, ...]:
    prices = {name: price_model(net, batch) for name, net in networks.items()}
    whole = prices[TARGET]
    return tuple(
        Variant(
            name,
            price.params,
            price.params / whole.params,
            price.flops / whole.flops,
            sizes.get(name),
            ratios[name],
            fmean(accuracies[name]),
            min(accuracies[name]),
            max(accuracies[name]),
        )
        for name, price in prices.items()
    )
