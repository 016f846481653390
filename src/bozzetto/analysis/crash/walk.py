"""One walk over a network's steps for every bound: N layer rules and M bounds, never N × M."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from bozzetto.analysis.crash.activations import Activation
from bozzetto.analysis.crash.network import Network, Step
from bozzetto.analysis.crash.rules import Affine, Combine, Concat, Maximum, Mixing

State = TypeVar("State")


class Domain(ABC, Generic[State]):
    """How a bound's state passes through each kind of rule."""

    @abstractmethod
    def start(self, x: Tensor) -> State:
        """The state of a healthy input."""

    @abstractmethod
    def affine(self, rule: Affine, state: State) -> State:
        """Through y = A x + c."""

    @abstractmethod
    def activate(self, rule: Activation, state: State) -> State:
        """Through an elementwise function."""

    @abstractmethod
    def maximum(self, rule: Maximum, state: State) -> State:
        """Through max pooling."""

    @abstractmethod
    def mixing(self, rule: Mixing, state: State) -> State:
        """Through a softmax."""

    @abstractmethod
    def combine(self, rule: Combine, states: Sequence[State]) -> State:
        """A signed sum of branches."""

    @abstractmethod
    def concat(self, rule: Concat, states: Sequence[State]) -> State:
        """Branches side by side."""

    @abstractmethod
    def crash(self, state: State, rate: float) -> State:
        """Through neurons that crash at this rate (a probability, or a number of them)."""

    def share(self, state: State) -> State:
        """The state before it goes several ways."""
        return state

    def step(self, step: Step, states: Sequence[State]) -> State:
        """Through one step, healthy."""
        match step.rule:
            case Affine():
                return self.affine(step.rule, states[0])
            case Activation():
                return self.activate(step.rule, states[0])
            case Maximum():
                return self.maximum(step.rule, states[0])
            case Mixing():
                return self.mixing(step.rule, states[0])
            case Combine():
                return self.combine(step.rule, states)
            case Concat():
                return self.concat(step.rule, states)


def walk(network: Network, domain: Domain[State], rates: Mapping[str, float]) -> State:
    """The state at the network's output when the sites named in `rates` crash at those rates."""
    states = {-1: domain.start(network.x)}
    uses = Counter(source for step in network.steps for source in step.inputs)
    for at, step in enumerate(network.steps[: network.output + 1]):
        state = domain.step(step, [states[source] for source in step.inputs])
        rate = rates.get(step.name, 0)
        state = domain.crash(state, rate) if rate else state
        states[at] = domain.share(state) if uses[at] > 1 else state
    return states[network.output]
