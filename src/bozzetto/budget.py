"""Budget: how much of a network may be kept."""

from dataclasses import dataclass

RESOURCES = ("params", "flops")


@dataclass(frozen=True)
class Budget:
    """The fraction of the target that may be kept, of trained values and of multiply-adds.

    None is unbounded.

    Raises:
        ValueError: unless every fraction is in (0, 1] and one is given.
    """

    params: float | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.bounds().items():
            if not (isinstance(value, int | float) and 0 < value <= 1):
                raise ValueError(f"keep is a fraction in (0, 1]; got {name}={value!r}")
        if not self.bounds():
            raise ValueError("a budget needs at least one of params, flops; got none")

    def bounds(self) -> dict[str, float]:
        """What is bounded."""
        values = {name: getattr(self, name) for name in RESOURCES}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def of(cls, keep: "float | Budget") -> "Budget":
        """A bare number bounds the trained values."""
        return keep if isinstance(keep, Budget) else cls(params=keep)
