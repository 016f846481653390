"""What the commands measure of a small network, as sections of its report."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

import bozzetto as bz
from bozzetto.analysis.certificate import certificate
from bozzetto.analysis.front import front
from bozzetto.analysis.latency import latency
from bozzetto.compress import Measure
from bozzetto.report import Section

FRONT, PLAN, SPEED = "Size against quality", "The plan", "Latency"
ERRORS, TRAINING = "Error of each layer", "Training"


def measured(
    target: nn.Module,
    networks: Mapping[str, nn.Module],
    batches: Sequence[Any],
    measures: Mapping[str, Measure],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Results that compare networks with their target, by title."""
    say("measuring quality")
    found: dict[str, Any] = {FRONT: front(target, networks, batches, metrics=measures)}
    say("measuring latency")
    return found | {SPEED: latency({"target": target, **networks}, batches[0])}


def certified(
    target: nn.Module,
    small: nn.Module,
    plan: bz.Plan,
    batches: Sequence[Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The plan and the errors of the layers that it changes, by title."""
    say("measuring errors")
    return {PLAN: plan, ERRORS: certificate(target, small, plan, batches)}


def sections(results: Mapping[str, Any]) -> list[Section]:
    """Results by title, as sections."""
    return [Section(title, result) for title, result in results.items()]
