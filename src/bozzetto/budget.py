"""Budget: how much of a network may be kept."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Budget:
    """The fractions of the target that may be kept; None is unbounded.

    Attributes:
        params: of the trained values.
        flops: of the multiply-adds on a batch.
        bytes: of the memory of parameters and saved buffers, each in its own type.
        latency: of the time of a call on a batch, measured on this machine.

    Raises:
        ValueError: unless every fraction is in (0, 1] and one is given.
    """

    params: float | None = None
    flops: float | None = None
    bytes: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.bounds().items():
            if isinstance(value, bool) or not (isinstance(value, int | float) and 0 < value <= 1):
                raise ValueError(f"keep is a fraction in (0, 1]; got {name}={value!r}")
        if not self.bounds():
            names = ", ".join(field.name for field in fields(self))
            raise ValueError(f"a budget needs at least one of {names}; got none")

    def bounds(self) -> dict[str, float]:
        """What is bounded."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def scaled(self, factor: float) -> "Budget":
        """Every bound times a factor in (0, 1]."""
        return Budget(**{name: value * factor for name, value in self.bounds().items()})

    @classmethod
    def of(cls, keep: "float | Budget") -> "Budget":
        """A bare number bounds the trained values."""
        return keep if isinstance(keep, Budget) else cls(params=keep)
