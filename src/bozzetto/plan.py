"""Choice and Plan: which layer becomes what, as data."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from bozzetto.methods import make_method

FORMAT = 1


@dataclass(frozen=True)
class Choice:
    """What one layer becomes.

    Attributes:
        method: a name in `METHODS`.
        size: rank or sketch size.
        seed: of random sketches and fresh weights.
        options: of the method.
        params: trained values of the layer after the choice.
        flops: its floating-point operations on the first calibration batch, where there was one.
        bytes: its memory, where known.
        latency: its nanoseconds on that batch, where they were measured.
        error: predicted relative error of the layer's output, weighed like the fit; None without
            calibration.
    """

    method: str
    size: int
    seed: int
    params: int
    flops: int | None = None
    bytes: int | None = None
    latency: int | None = None
    error: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The shape of the small network, as data.

    Attributes:
        choices: {path: Choice} of the layers that change; paths are those of the expanded model.
        dense: {path: reason} of the layers with weights that stay.
        tied: {path: path of the layer whose weight it shares}.
        target: the target network's {"params": …, "flops": …, "bytes": …, "latency": …}, as far
            as they are known; latency in nanoseconds.
        small: the same of the network that the plan makes.
        seed: from which the layers' seeds derive.
    """

    choices: dict[str, Choice]
    dense: dict[str, str]
    tied: dict[str, str] = field(default_factory=dict)
    target: dict[str, int] = field(default_factory=dict)
    small: dict[str, int] = field(default_factory=dict)
    seed: int = 0

    def kept(self, resource: str = "params") -> float:
        """Fraction of the target that is kept.

        Raises:
            ValueError: for a resource that was not counted.
        """
        if resource not in (known := self.small.keys() & self.target.keys()):
            raise ValueError(f"counted were {sorted(known)}; got {resource!r}")
        return self.small[resource] / self.target[resource]

    def rows(self) -> list[dict[str, object]]:
        """One row a layer."""
        rows: list[dict[str, object]] = [
            {"layer": path, **asdict(choice)} for path, choice in self.choices.items()
        ]
        for row in rows:
            row["options"] = json.dumps(row["options"]) if row["options"] else ""
            del row["seed"]  # for machines: it stands in plan.json
        return rows + [
            {"layer": path, "method": "dense", "reason": reason}
            for path, reason in self.dense.items()
        ]

    def figure(self, ax: Any) -> None:
        """Values kept, a bar a layer."""
        names = list(self.choices)
        ax.barh(range(len(names)), [c.params for c in self.choices.values()])
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(max(len(names), 4) - 0.5, -0.5)  # from above, and few bars stay slim
        ax.set_xlabel("trained values")

    def to_json(self) -> str:
        """The plan as text that a person can read and edit."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read and check a plan.

        Raises:
            ValueError: for anything that is not a plan of this format, naming what is wrong.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a plan is JSON; got {error}") from error
        return _plan(cls, data)


def _plan(cls: Any, data: Any) -> Any:
    """A plan from parsed JSON, every field checked."""
    expected = {"format", "choices", "dense", "tied", "target", "small", "seed"}
    if not isinstance(data, dict) or set(data) != expected:
        got = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"a plan has the fields {sorted(expected)}; got {got}")
    if data.pop("format") != FORMAT:
        raise ValueError(f"this version reads plans of format {FORMAT}")
    _check(data["seed"], int, "seed")
    for name in ("dense", "tied"):
        _check_mapping(data[name], str, name)
    for name, lowest in (("target", 1), ("small", 0)):
        _check_mapping(data[name], int, name)
        if wrong := {r: value for r, value in data[name].items() if value < lowest}:
            raise ValueError(f"plan field {name!r} needs counts of at least {lowest}; got {wrong}")
    _check_mapping(data["choices"], dict, "choices")
    choices = {path: _choice(path, value) for path, value in data["choices"].items()}
    return cls(**(data | {"choices": choices}))


def _choice(path: str, data: dict[str, Any]) -> Choice:
    kinds: dict[str, tuple[type, ...]] = {
        "method": (str,), "size": (int,), "seed": (int,), "params": (int,),
        "flops": (int, type(None)), "bytes": (int, type(None)), "latency": (int, type(None)),
        "error": (float, int, type(None)), "options": (dict,),
    }  # fmt: skip
    if set(data) != set(kinds):
        raise ValueError(f"a choice has the fields {sorted(kinds)}; {path!r} has {sorted(data)}")
    for name, kind in kinds.items():
        _check(data[name], kind, f"{path}.{name}")
    if data["size"] < 1:
        raise ValueError(f"a size is at least 1; {path!r} has {data['size']}")
    if not 0 <= data["seed"] < 1 << 63:
        raise ValueError(f"a seed has 63 bits; {path!r} has {data['seed']}")
    make_method(data["method"], data["options"])
    return Choice(**data)


def _check(value: Any, kind: type | tuple[type, ...], name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"plan field {name!r} needs {kind}; got {value!r}")


def _check_mapping(value: Any, kind: type, name: str) -> None:
    _check(value, dict, name)
    for key, item in value.items():
        _check(item, kind, f"{name}.{key}")
