"""The command that makes networks smaller: compress."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from torch import nn

import bozzetto as bz
from bozzetto.analysis.sensitivity import sensitivity
from bozzetto.analysis.spectrum import Spectra, spectra
from bozzetto.card import model_card
from bozzetto.cli.app import BatchSize, Builder, Data, Folder, Force, Json, Names, app, kept
from bozzetto.cli.evidence import ERRORS, FRONT, SPEED, certified, measured, sections
from bozzetto.compress import Measure, Survey, survey
from bozzetto.data import Model, load_batches, load_model
from bozzetto.io import check_output
from bozzetto.report import add_sections, write_report
from bozzetto.terminal import show, spinner, watched

Shown = tuple[dict[str, Any], dict[str, Any]]  # facts, and tables by name
_AIM = Parameter(group="How small")
Bound = Annotated[float | None, _AIM, Parameter(metavar="FRACTION")]
_LOWER = ("loss", "mse")  # metrics that are better when lower


@app.command
def compress(
    model: str,
    /,
    *,
    data: Data,
    out: Folder,
    keep: Bound = None,
    flops: Bound = None,
    size: Bound = None,
    latency: Bound = None,
    sweep: Annotated[str | None, _AIM, Parameter(metavar="FRACTIONS")] = None,
    floor: Annotated[float | None, _AIM] = None,
    metric: Annotated[Names, _AIM] = None,
    val: Annotated[str | None, _AIM, Parameter(metavar="DATA")] = None,
    methods: Names = None,
    layers: Annotated[Names, Parameter(metavar="PATTERN")] = None,
    measured: int = 0,
    robustness: float = 0.0,
    license: Annotated[str | None, Parameter(metavar="NAME")] = None,
    base: Annotated[str | None, Parameter(metavar="NAME")] = None,
    seed: int = 0,
    batch_size: BatchSize = 64,
    force: Force = False,
    builder: Builder = None,
    as_json: Json = False,
) -> None:
    """Write a smaller network that approximates a trained one, and a report of what that costs.

    Args:
        model: package.module:callable, a saved folder or a transformers folder.
        out: Folder for plan.json, model.safetensors and report.html.
        keep: Of the trained values to keep, in (0, 1].
        flops: Of the multiply-adds to keep.
        size: Of the bytes to keep.
        latency: Of the time of a call to keep, measured on this machine.
        sweep: Fractions of the bounds above (of the trained values without any), as
            0.5,0.25,0.125: a network for each in a folder of its own, and a page that compares.
        floor: What the first METRIC must still reach (loss, mse: at most); the bounds above then
            shrink as far as it does.
        metric: accuracy, top5, loss, mse, cosine; measured on VAL; may be repeated.
        val: Labelled batches for METRIC, as DATA; DATA itself without it.
        methods: Method to choose from, layer by layer; may be repeated. All that suit by default.
        layers: Paths of layers that may become smaller; may be repeated. All by default.
        measured: On how many batches to measure what each layer's change does to the outputs,
            for a better plan; 0 predicts it.
        robustness: Chance that a neuron fails for which layers are chosen and fitted.
        license: Of the source model, as apache-2.0 or unknown: writes a model card, README.md.
        base: The source model's name on the hub, for the card.
        seed: Of random sketches and of the order of images.
    """
    bounds = {"params": keep, "flops": flops, "bytes": size, "latency": latency}
    if set(bounds.values()) == {None} and (sweep or floor is not None):
        bounds["params"] = 1.0
    budget = bz.Budget(**bounds)
    fractions = None if sweep is None else _fractions(sweep)
    if floor is not None and (fractions or not metric):
        raise ValueError("a floor goes with a metric and without a sweep")
    if base is not None and license is None:
        raise ValueError("a model card needs --license, that of the source model; unknown is one")
    folders = [out] if fractions is None else [out / f"{f:g}" for f in fractions]
    check_output(out, force=force, also=[f.name for f in folders if f != out])
    for folder in folders:
        check_output(folder, force=force)
    target = load_model(model, build=builder, data=data)
    batches = list(watched(load_batches(data, size=batch_size, seed=seed), "reading DATA"))
    measures = _measures(metric, batches if val is None else load_batches(val, size=batch_size))
    with spinner() as say:
        say("calibrating")
        made = survey(
            target.network,
            batches,
            methods=methods or "auto",
            layers=layers or "*",
            timed=budget.latency is not None,
            measured=measured,
            robustness=robustness,
            seed=seed,
        )
        job = _Job(target, made, measures, license, base, force, say)
        if fractions is not None:
            head, tables = job.sweep(out, [budget.scaled(f) for f in fractions], folders)
        elif floor is None or not metric:
            say("planning and fitting")
            head, tables = job.write(out, *made.compress(budget))
        else:
            say("searching")
            sign, measure = -1 if metric[0] in _LOWER else 1, measures[metric[0]]
            found = made.smallest(budget, sign * floor, lambda small: sign * measure(small))
            head, tables = job.write(out, *found)
    show(as_json, head, tables)


def _fractions(text: str) -> list[float]:
    """Fractions to keep, from "0.5,0.25"."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < f <= 1 for f in found) or len(set(found)) < len(found):
        raise ValueError(f"a sweep needs different fractions in (0, 1], as 0.5,0.25; got {text!r}")
    return found


def _measures(names: Sequence[str] | None, batches: Iterable[Any]) -> dict[str, Measure]:
    """The metrics on labelled batches, as functions of a network."""
    held = list(batches) if isinstance(batches, Iterator) else batches  # passed over more than once

    def measure(network: nn.Module, name: str) -> float:
        return bz.evaluate(network, held, name)

    return {name: partial(measure, name=name) for name in names or []}


@dataclass(frozen=True)
class _Job:
    """What is shared by all networks that one call writes."""

    target: Model
    survey: Survey
    measures: dict[str, Measure]
    license: str | None
    base: str | None
    force: bool
    say: Callable[[str], None]

    @cached_property
    def spectra(self) -> Spectra:
        """Those of the target."""
        self.say("taking spectra")
        return spectra(self.target.network, self.survey.stats)

    def write(self, out: Path, small: nn.Module, plan: bz.Plan) -> Shown:
        """One network with its report; what to show of it."""
        results = self._compared({out.name: small})
        results |= certified(self.target.network, small, plan, self.survey.batches, self.say)
        results["Sensitivity of each layer"] = sensitivity(self.survey.menu, plan)
        results["Spectra"] = self.spectra
        head = {"folder": str(out), "made_from": self.target.source} | kept(plan)
        head["latency_ratio"] = results[SPEED].ratio(out.name)
        head |= results[FRONT].points[1].quality
        card = None if self.license is None else self._card(out, plan, results)
        source = self.target.source
        bz.save(out, small, plan, source=source, card=card, force=self.force)
        add_sections(out, sections(results))
        return head, {"layers": plan.rows(), "errors": results[ERRORS].rows()}

    def _card(self, out: Path, plan: bz.Plan, results: dict[str, Any]) -> str:
        assert self.license is not None
        shown = {title: results[title] for title in (FRONT, SPEED, ERRORS)}
        return model_card(plan, license=self.license, base=self.base, title=out.name, results=shown)

    def sweep(self, out: Path, budgets: Sequence[bz.Budget], folders: Sequence[Path]) -> Shown:
        """A network for every budget and the page that compares them; what to show of them."""
        networks: dict[str, nn.Module] = {}
        for budget, folder in zip(budgets, folders, strict=True):
            self.say(f"planning and fitting {folder.name}")
            networks[folder.name], plan = self.survey.compress(budget)
            self.write(folder, networks[folder.name], plan)
        results = self._compared(networks)
        write_report(out / "report.html", sections(results), title=out.name)
        head = {"folder": str(out), "made_from": self.target.source}
        return head, {"networks": results[FRONT].rows(), "latency": results[SPEED].rows()}

    def _compared(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        target, batches = self.target.network, self.survey.batches
        return measured(target, networks, batches, self.measures, self.say)
