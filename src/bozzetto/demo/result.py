"""What the demo found, and the page that shows it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bozzetto.analysis.certificate import Certificate
from bozzetto.analysis.latency import Latency
from bozzetto.plan import Plan
from bozzetto.report import Section, write_report

__all__ = ["Demo", "Variant", "write_page"]


@dataclass(frozen=True)
class Variant:
    """One way to have a network.

    Attributes:
        network: the way.
        params: trained values.
        params_kept: fraction of the target's.
        multiply_adds_kept: fraction of the target's, in products and convolutions.
        bytes_on_disk: of the saved folder; None where it is not saved.
        latency_ratio: measured time of a batch over the target's.
        accuracy: on images that no network was trained on; mean over the seeds.
        worst_seed: the lowest of these accuracies.
        best_seed: the highest.
    """

    network: str
    params: int
    params_kept: float
    multiply_adds_kept: float
    bytes_on_disk: int | None
    latency_ratio: float
    accuracy: float
    worst_seed: float
    best_seed: float


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        variants: the target first.
        seeds: of data splits, initial weights and training.
        plan: of the compressed network of the first seed.
        certificate: of that network before it was tuned.
        latency: of all networks of the first seed.
    """

    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    plan: Plan
    certificate: Certificate
    latency: Latency

    def rows(self) -> list[dict[str, object]]:
        """One row a variant."""
        return [vars(variant).copy() for variant in self.variants]

    def figure(self, ax: Any) -> None:
        """Accuracy of every variant: the mean as a dot, from the worst to the best seed a line."""
        places = range(len(self.variants))
        low = [100 * v.worst_seed for v in self.variants]
        high = [100 * v.best_seed for v in self.variants]
        ax.hlines(places, low, high, color="C0", alpha=0.45, linewidth=5)
        ax.plot([100 * v.accuracy for v in self.variants], places, "o", color="C0", markersize=8)
        names = [f"{v.network} ({100 * v.params_kept:.0f} %)" for v in self.variants]
        ax.set_yticks(places, names)
        ax.invert_yaxis()
        ax.margins(y=0.1)
        ax.grid(axis="x", alpha=0.25)
        ax.set_xlabel("test accuracy in %; in brackets: values kept")


def write_page(path: Path, made: Demo) -> Path:
    """Write the report of a demo."""
    target, *small = made.variants
    seeds = ", ".join(map(str, made.seeds))
    sections = [
        Section(
            "What is kept",
            made,
            "All small networks have at most the same number of trained values. Accuracy is of 597 "
            f"test images, as mean, worst and best of the seeds {seeds}: each is another split of "
            "the data and another training. One image is 0.0017. Multiply-adds count matrix "
            "products and convolutions; the additions of a folding sketch are not among them. "
            "Bytes are of the folders beside this page.",
        ),
        Section(
            "Error of each layer, guaranteed and measured",
            made.certificate,
            "Of the compressed network before it was tuned, first seed. Both columns are relative "
            "to the output of the dense layer: bound is what the weights and the mean and spread "
            "of the inputs guarantee, measured is from running both layers on the training images. "
            "On any input x whatever, the error of a layer is at most gain · ‖x − mean‖ + offset.",
        ),
        Section(
            "The plan",
            made.plan,
            "Which layer became what, first seed. Error is the prediction from calibration, "
            "weighed by what matters to the output.",
        ),
        Section(
            "Latency",
            made.latency,
            "One batch of 64 images, all networks in turn in one process; the ratio is the median "
            "over rounds of a network's time over the target's, below 1 is faster, with quartiles.",
        ),
    ]
    return write_report(
        path,
        sections,
        title=f"{max(variant.params_kept for variant in small):.0%} of a network",
        text="A convolutional network for handwritten digits "
        f"({target.params:,} trained values) and smaller networks that do its work.",
    )
