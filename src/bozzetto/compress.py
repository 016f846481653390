"""The main job: `compress` a trained model."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor, nn

from bozzetto.batches import batches_of, call, in_mode, tensors
from bozzetto.budget import Budget
from bozzetto.expand import checked
from bozzetto.grouped import GroupedStats
from bozzetto.knapsack import Unreachable
from bozzetto.menu import Menu, Methods, menu, methods_for
from bozzetto.plan import Plan
from bozzetto.prices import count_bytes
from bozzetto.rebuilding import rebuild
from bozzetto.refit import refit_
from bozzetto.stats import Loss, Stats
from bozzetto.timely import agreed, timely

Measure = Callable[[nn.Module], Any]  # a number, the higher the better
_HELD = 1 << 30  # bytes of moments that are held at once however small the target is


@dataclass(frozen=True)
class Survey:
    """A target measured once, from which networks of several sizes are made; see `survey`."""

    model: nn.Module
    batches: list[Any]
    stats: Mapping[str, Stats]
    menu: Menu
    robustness: float = 0.0

    def compress(self, budget: Budget) -> tuple[nn.Module, Plan]:
        """The network of least predicted loss within a budget, and its plan.

        Raises:
            Unreachable: for a budget that no plan meets.
        """
        made = self._plan(budget)
        small = rebuild(self.model, made, self.stats)
        if self.robustness:  # fitting to the inputs that layers really get would undo it
            return small, made
        return refit_(small, self.model, made, self.stats, self.batches), made

    def _plan(self, budget: Budget) -> Plan:
        if budget.latency is None:
            return self.menu.choose(budget)
        return timely(self.menu, self.model, self.batches[0], budget)

    def measured(self, batches: int) -> "Survey":
        """With what each layer's forms are predicted to cost scaled to what one of them does.

        The prediction takes a layer's errors at all positions for independent, which they are not
        where positions are pooled or attended to. Here every layer in turn takes its form nearest
        half of its values, and the squared change of the network's outputs on some calibration
        batches scales the impacts of all its forms. That takes a forward pass a layer.

        Args:
            batches: how many, spread over the calibration.

        Raises:
            ValueError: unless it is a number >= 1.
        """
        if type(batches) is not int or batches < 1:
            raise ValueError(f"costs are measured on 1 batch or more; got {batches!r}")
        used = self.batches[:: max(1, len(self.batches) // batches)][:batches]
        scales: dict[str, float] = {}
        with torch.inference_mode(False), torch.no_grad(), in_mode(self.model, training=False):
            wanted = [_outputs(self.model, batch) for batch in used]
            for path in dict.fromkeys(c.site for c in self.menu.candidates):
                form = self.menu.nearest(path, 0.5)
                assert form.choice is not None
                small = rebuild(self.model, Plan({path: form.choice}, {}), self.stats).eval()
                outputs = [_outputs(small, batch) for batch in used]
                change = sum(
                    float((y - x).square().sum())
                    for ys, xs in zip(outputs, wanted, strict=True)
                    for y, x in zip(ys, xs, strict=True)
                )
                scales[path] = change / max(form.impact, 1e-300)
        return replace(self, menu=self.menu.scaled(scales))

    def smallest(self, budget: Budget, floor: float, metric: Measure) -> tuple[nn.Module, Plan]:
        """The smallest network found whose metric reaches the floor, all bounds shrunk alike.

        The scale of the budget is halved until the floor is missed, then bisected to 3 %.

        Raises:
            TypeError: if the metric returns something else than a number.
            ValueError: if it returns NaN.
            Unreachable: if neither the target nor a network within the budget reaches the floor.
        """
        if (own := _measured(metric, self.model)) < floor:
            raise Unreachable(f"the target itself is below the floor {floor}: it has {own:.6g}")
        best, low, high, scale = None, 0.0, 1.0, 1.0
        while high > 1.03 * low:
            try:
                found = self.compress(budget.scaled(scale))
            except Unreachable:
                if best is None:
                    raise
                found, value = None, -math.inf
            else:
                value = _measured(metric, found[0])
            if value >= floor:
                best, high = found, scale
            elif best is None:
                raise Unreachable(f"no network within {budget} reaches {floor}: got {value:.6g}")
            else:
                low = scale
            scale = (low * high) ** 0.5 if low else high / 2
        return cast(tuple[nn.Module, Plan], best)


def _outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    """The floating tensors that a model gives, in double precision."""
    return [y.double() for y in tensors(call(model, batch)) if y.is_floating_point()]


def _measured(metric: Measure, model: nn.Module) -> float:
    """A metric's value, a number."""
    with in_mode(model, training=False), torch.no_grad():
        value = metric(model)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"a metric returns one number, the higher the better; got {came}")
    if math.isnan(value):
        raise ValueError("a metric returns a number, the higher the better; got NaN")
    return float(value)


def survey(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    methods: Methods = "auto",
    layers: Sequence[str] | str = "*",
    loss: Loss | None = None,
    timed: bool = False,
    measured: int = 0,
    robustness: float = 0.0,
    seed: int = 0,
) -> Survey:
    """Measure a target on calibration data; arguments as of `compress`.

    `timed` measures the latency of all candidates too, for budgets that bound it.
    """
    batches = list(batches_of(calibration))
    if not batches:
        raise ValueError("calibration needs at least one batch; got none")
    most = max(count_bytes(checked(model)), _HELD)
    stats = GroupedStats(model, batches, most=most, loss=loss, robustness=robustness)
    made = menu(
        model, stats, methods=methods, layers=layers, batch=batches[0], timed=timed, seed=seed
    )
    if timed:
        made = agreed(made, model, batches[0])
    found = Survey(model, batches, stats, made, robustness)
    return found.measured(measured) if measured else found


def compress(
    model: nn.Module,
    keep: float | Budget,
    calibration: Iterable[Any],
    *,
    floor: float | None = None,
    metric: Measure | None = None,
    methods: Methods = "auto",
    layers: Sequence[str] | str = "*",
    loss: Loss | None = None,
    measured: int = 0,
    robustness: float = 0.0,
    seed: int = 0,
) -> tuple[nn.Module, Plan]:
    """A smaller network that approximates a trained one, and the plan that made it.

    Args:
        model: the target; never changed.
        keep: fraction of the trained values to keep, or a `Budget`.
        calibration: batches (see `bozzetto.batches`), labelled or not; kept in memory while layers
            are fitted one after the other.
        floor: what `metric` must still reach on the delivered network. All bounds of `keep` then
            shrink together as far as it does: `keep=1.0` asks for the fewest values,
            `Budget(latency=1.0)` for the fastest network.
        metric: a network -> a number, the higher the better.
        methods: names of methods, {name: options}, or "auto": those that suit what `keep` bounds.
        layers: patterns of the paths that may become smaller; see `plan`. Dense layers behind them
            are still fitted to the inputs that they get.
        loss: (output, target) -> scalar; see `collect`.
        measured: on how many batches to measure what each layer's change does to the outputs, for
            a better plan (`Survey.measured`): a forward pass a layer and batch. 0 predicts it.
        robustness: the chance that a neuron fails for which layers are chosen and fitted, each to
            the target's with such inputs (`Stats.crashed`): it costs accuracy while none fails.
        seed: of random sketches.

    Raises:
        ValueError: for a keep outside (0, 1], a robustness outside [0, 1), calibration that is
            empty or not finite, a model without layers to compress, or a metric that is NaN.
        TypeError: for a metric that does not return a number.
        Unreachable: for a budget that no plan meets, or a floor that no network within it reaches,
            saying what was reached.
    """
    budget = Budget.of(keep)
    if (floor is None) != (metric is None):
        raise ValueError(f"a floor and a metric go together; got floor={floor}, metric={metric}")
    timed, methods = budget.latency is not None, methods_for(budget, methods)
    with torch.inference_mode(False):  # of which nothing that is made could be trained
        made = survey(
            model,
            calibration,
            methods=methods,
            layers=layers,
            loss=loss,
            timed=timed,
            measured=measured,
            robustness=robustness,
            seed=seed,
        )
        if floor is None or metric is None:
            return made.compress(budget)
        return made.smallest(budget, floor, metric)
