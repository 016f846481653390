"""The command that breaks networks: crash."""

from collections.abc import Sequence
from typing import Annotated, Literal

from cyclopts import Parameter
from torch import nn

from bozzetto.analysis import crash as failing
from bozzetto.cli.app import BatchSize, Builder, Data, Flag, Folder, Json, app
from bozzetto.data import load_batches, load_model
from bozzetto.report import Section, add_sections, check_sections
from bozzetto.terminal import show, spinner, watched

Kind = Literal["crash", "stuck", "byzantine", "connections", "bits"]


@app.command
def crash(
    models: Sequence[str],
    /,
    *,
    data: Data,
    p: Annotated[str, Parameter(("-p", "--p"), metavar="CHANCES")],
    fault: Kind = "crash",
    level: float = 1.0,
    channels: Flag = False,
    patterns: int = 256,
    bounded: int = 4,
    layers: Flag = False,
    out: Folder | None = None,
    seed: int = 0,
    batch_size: BatchSize = 64,
    builder: Builder = None,
    as_json: Json = False,
) -> None:
    """Measure what a network's output loses when its neurons fail, with guaranteed bounds.

    Args:
        models: package.module:callable or a saved folder (its target is then broken as well); may
            be repeated, to compare.
        p: Probabilities that a neuron (weight, bit) fails, as 0.001,0.01.
        fault: A failed neuron outputs 0 (crash), LEVEL (stuck) or anything within ±LEVEL
            (byzantine); or a stored weight is lost (connections) or its bits flip (bits).
        level: For stuck and byzantine.
        channels: Whole channels fail, not single neurons.
        patterns: Broken networks to draw at each p.
        bounded: Inputs to bound the mean error on (crash only); 0 for none.
        layers: Also break the first MODEL's layers one at a time.
        out: Folder to whose report.html this is added: a new one, or that of a saved network.
        seed: Of the faults and of the order of images.
    """
    rates, kind = _rates(p), _fault(fault, level)
    if layers and isinstance(kind, failing.WeightFault):
        raise ValueError(f"--layers is for neurons that fail; got --fault {fault}")
    if out is not None:
        check_sections(out)
    networks = _networks(models, builder, data)
    batches = list(watched(load_batches(data, size=batch_size, seed=seed), "reading DATA"))
    unit = "channel" if channels else "neuron"
    bounded = bounded if fault == "crash" else 0
    with spinner() as say:
        say("breaking networks")
        compared = failing.compare_crashes(
            networks,
            batches,
            rates,
            fault=kind,
            unit=unit,
            patterns=patterns,
            seed=seed,
            bounded=bounded,
        )
        sections = [Section("Error when parts fail", compared)]
        tables = {"networks": compared.rows()}
        if layers:
            say("breaking layers")
            assert not isinstance(kind, failing.WeightFault)
            first = next(iter(networks.values()))
            each = failing.crash_by_layer(
                first,
                batches,
                rates,
                fault=kind,
                unit=unit,
                patterns=patterns,
                seed=seed,
                bounded=bounded,
            )
            sections.append(Section("One layer at a time", each))
            tables["layers"] = each.rows()
    if out is not None:
        add_sections(out, sections)
    show(as_json, {} if out is None else {"report": str(out / "report.html")}, tables)


def _rates(text: str) -> list[float]:
    """Probabilities, from "0.001,0.01"."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= p <= 1 for p in found):
        raise ValueError(f"-p needs probabilities in [0, 1], as 0.001,0.01; got {text!r}")
    return found


def _networks(models: Sequence[str], builder: str | None, data: str) -> dict[str, nn.Module]:
    """The models by name, each saved one after its target."""
    networks: dict[str, nn.Module] = {}
    for name in models:
        model = load_model(name, build=builder, data=data)
        if model.target is not None:
            networks.setdefault(model.target.source, model.target.network)
        networks[name] = model.network
    return networks


def _fault(kind: Kind, level: float) -> failing.NeuronFault | failing.WeightFault | None:
    match kind:
        case "crash":
            return None
        case "stuck":
            return failing.StuckAt(level)
        case "byzantine":
            return failing.Byzantine(-level, level)
        case "connections":
            return failing.DroppedConnections()
        case "bits":
            return failing.BitFlips()
