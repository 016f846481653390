"""The wrapper that runs a torch optimiser in blocks and mixes the points they end on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import (
    Tensor,
    _foreach_add_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_lerp_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_sub,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


def tail_sums(weights: Sequence[float]) -> list[float]:
    """c_i = Σ_{j≥i} α_j for i = 1, 2, …: the weight of each step in a mix of points."""
    return list(accumulate(reversed(weights[1:])))[::-1]


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.clone() for t in tensors]


def _matched(name: str, saved: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Copies of saved tensors on the devices of those they belong to; none saved is fine."""
    shapes, needed = [tuple(t.shape) for t in saved], [tuple(t.shape) for t in like]
    if saved and shapes != needed:
        raise ValueError(f"the saved {name} has shapes {shapes}; the parameters need {needed}")
    return [t.to(p.device, copy=True) for t, p in zip(saved, like, strict=False)]


@dataclass
class _Memory:
    """What a wrapper keeps between steps; one tensor a parameter in each list of tensors."""

    count: int = 0  # inner steps so far
    rejections: int = 0
    mixed: bool = False  # whether the last block ended on a mix of several points
    norm: float = 0.0  # of the last accepted block's residual
    start: list[Tensor] = field(default_factory=list)  # x_t
    anchor: list[Tensor] = field(default_factory=list)  # z_t, the newest relaxed point
    steps: list[list[Tensor]] = field(default_factory=list)  # z_{t-j} - z_{t-j-1}, newest first
    residuals: list[list[Tensor]] = field(default_factory=list)  # flat, one a device, newest first
    gram: Tensor | None = None  # (j, j) float64 on the CPU: inner products of the residuals


class _FromInner:
    """An attribute that is the wrapped optimiser's own, so that the two can never disagree."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: "Mixing | None", owner: type) -> Any:
        return self if wrapper is None else getattr(wrapper.inner, self.name)

    def __set__(self, wrapper: "Mixing", value: object) -> None:
        setattr(wrapper.inner, self.name, value)


class Mixing(Optimizer, ABC):
    """A torch optimiser whose points are mixed with earlier ones after every block of steps.

    With x_t the parameters before a block of `every` inner steps, y_t after it, the residual
    r_t = y_t - x_t and the relaxed point z_t = x_t + beta r_t, the next block starts from
    x_{t+1} = Σ_j α_j z_{t-j}, Σ_j α_j = 1, j < history (Xie, Wang, Zhou and Zhang,
    arXiv 1805.06753). Points from before the first count as equal to the oldest that is kept.
    It is computed as z_t - Σ_i c_i (z_{t-i+1} - z_{t-i}) with c_i = Σ_{j≥i} α_j, so what does not
    move stays as it is bit for bit, and a bfloat16 history costs precision of steps, not of
    weights.

    A wrapper is a torch optimiser: its `param_groups`, `state` and `defaults` are the inner
    optimiser's, so schedulers may be given either. The inner optimiser's own state (momentum) is
    not mixed. Parameters stand at the point to evaluate after every multiple of `every` steps. A
    GradScaler skips the whole step when a gradient overflows, so a skipped step counts for nothing.

    A finite `growth`, and Anderson always, guards: the parameters go back to z_t, `rejections`
    counts one, and (1) no mix is made that leads against the residual, ⟨x_{t+1} - x_t, r_t⟩ < 0, as
    where residuals grow on the way out of a saddle and the mix would lead back into it (the descent
    test of De Sterck 2012); (2) the history keeps its newest point only where the norm of the block
    after a mix exceeds `growth` times that of the one before, or is not finite. It costs three
    foreach passes and waits for the device twice a block.
    """

    settings: ClassVar[tuple[str, ...]] = ("history", "every", "beta", "growth", "dtype")
    state = _FromInner()  # pyright: ignore
    param_groups = _FromInner()  # pyright: ignore
    defaults = _FromInner()  # pyright: ignore

    def __init__(
        self,
        inner: Optimizer,
        history: int,
        every: int,
        *,
        beta: float,
        growth: float,
        dtype: torch.dtype | None,
    ) -> None:
        if not isinstance(inner, Optimizer):
            raise TypeError(f"inner must be a torch.optim.Optimizer; got {type(inner).__name__}")
        if not any(group["params"] for group in inner.param_groups):
            raise ValueError("the inner optimiser has no parameters; at least one is needed")
        for name, value in (("history", history), ("every", every)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1; got {value!r}")
        if not 0 < beta <= 2:
            raise ValueError(f"beta must be in (0, 2], where relaxation is stable; got {beta}")
        if not growth > 0:
            raise ValueError(f"growth must be > 0 (math.inf: no limit); got {growth}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type; got {dtype}")
        self.inner = inner
        self.history, self.every, self.beta = history, every, beta
        self.growth, self.dtype = growth, dtype
        self.memory = _Memory()
        super().__setstate__({})  # hooks, as Optimizer.__init__ would, which would make new groups

    @property
    def rejections(self) -> int:
        """How many mixed points the guard has taken back."""
        return self.memory.rejections

    @property
    @abstractmethod
    def _measured(self) -> bool:
        """Whether the residual is needed after each block."""

    @abstractmethod
    def _tails(self, residual: list[Tensor]) -> Sequence[float]:
        """c_1, c_2, …: the weight of every step in the history, newest first."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        """One inner step, and a mix where it ends a block; returns what the inner step returns."""
        memory = self.memory
        if memory.count % self.every == 0 and (self._measured or self.beta != 1):
            memory.start = _copies(self._points())
        loss = self.inner.step(closure)  # pyright: ignore
        memory.count += 1
        if memory.count % self.every == 0:
            self._end_block()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The inner optimiser's."""
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The inner optimiser's; the history starts afresh, for all groups."""
        self.inner.add_param_group(param_group)
        self.restart()

    def restart(self) -> None:
        """Forget the history, as is right after the parameters were set from outside."""
        self.memory = _Memory(rejections=self.memory.rejections)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's, and under "mixing" the history and settings of every wrapper."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        packed = dict(self.inner.state_dict())
        memory = {k: [*v] if isinstance(v, list) else v for k, v in vars(self.memory).items()}
        own = {"settings": self._settings(), "memory": memory}
        packed["mixing"] = [own, *packed.get("mixing", [])]
        for hook in self._optimizer_state_dict_post_hooks.values():
            packed = hook(self, packed) or packed
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict`; training goes on as if it had not been interrupted.

        Raises:
            ValueError: if it is not a wrapper's, was made with other settings, or holds a history
                of other shapes. Nothing is changed then.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        found = state_dict.get("mixing")
        own, *others = found if isinstance(found, list | tuple) and found else [None]
        if not isinstance(own, dict) or own.keys() != {"settings", "memory"}:
            raise ValueError(
                f"this state dict has no history: it is not a {type(self).__name__}'s; "
                "load it into .inner to start from a plain optimiser's state"
            )
        if own["settings"] != self._settings():
            raise ValueError(f"it was saved with {own['settings']}, this is {self._settings()}")
        memory = self._restored(own["memory"])
        self.inner.load_state_dict({**state_dict, "mixing": others})
        self.memory = memory
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        names = ("inner", "memory", *self.settings)
        return {name: getattr(self, name) for name in names}

    def _settings(self) -> dict[str, object]:
        named = {name: getattr(self, name) for name in self.settings}
        return {"kind": type(self).__name__, **named}

    def _points(self) -> list[Tensor]:
        """The parameters as real tensors without history, sharing their storage."""
        found = (p.detach() for group in self.param_groups for p in group["params"])
        return [torch.view_as_real(p) if p.is_complex() else p for p in found]

    def _stored(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.to(self.dtype or t.dtype) for t in tensors]

    @torch.no_grad()
    def _end_block(self) -> None:
        memory, points, residual = self.memory, self._points(), []
        if self._measured:
            residual = list(_foreach_sub(points, memory.start))
            norm = float(get_total_norm(residual))
            if memory.mixed and not norm / self.growth <= memory.norm:  # so that nan is too much
                return self._take_back(points)
            memory.norm = norm
        if self.beta != 1:
            _foreach_lerp_(points, memory.start, 1 - self.beta)
        self._remember(points)
        for weight, step in zip(self._tails(residual), memory.steps, strict=False):
            _foreach_add_(points, step, alpha=-weight)
        memory.mixed = bool(memory.steps)
        if memory.mixed and residual and not self._goes_along(points, residual):
            _foreach_copy_(points, memory.anchor)
            memory.mixed, memory.rejections = False, memory.rejections + 1
        del memory.steps[max(self.history - 2, 0) :], memory.residuals[self.history - 1 :]
        return None

    def _goes_along(self, points: list[Tensor], residual: list[Tensor]) -> bool:
        """Whether the way from x_t to these points has no negative product with the residual."""
        ways = zip(_foreach_sub(points, self.memory.start), residual, strict=True)
        sums = [(way * r).sum(dtype=torch.float64) for way, r in ways]
        return float(torch.stack([s.to(sums[0].device) for s in sums]).sum()) >= 0

    def _remember(self, points: list[Tensor]) -> None:
        """Put the step from the last relaxed point to this one into the history."""
        memory = self.memory
        if self.history == 1:
            return
        if memory.anchor:
            memory.steps.insert(0, self._stored(list(_foreach_sub(points, memory.anchor))))
        memory.anchor = _copies(points)

    def _take_back(self, points: list[Tensor]) -> None:
        memory = self.memory
        _foreach_copy_(points, memory.anchor)
        memory.mixed, memory.steps = False, []
        del memory.residuals[1:]
        memory.rejections += 1

    def _restored(self, saved: dict[str, Any]) -> _Memory:
        """A saved memory, copied to the parameters' devices."""
        points, flat = self._points(), self._flat(self._points())
        wanted = {f.name for f in fields(_Memory)}
        known = 0 if saved.get("gram") is None else len(saved["gram"])
        if saved.keys() != wanted or known < len(saved["residuals"]):
            raise ValueError(f"the saved history needs {sorted(wanted)} that belong together")
        memory = _Memory(**saved)
        memory.start = _matched("start", memory.start, points)
        memory.anchor = _matched("anchor", memory.anchor, points)
        memory.steps = [_matched("step", step, points) for step in memory.steps]
        memory.residuals = [_matched("residual", kept, flat) for kept in memory.residuals]
        return memory

    def _flat(self, tensors: list[Tensor]) -> list[Tensor]:
        """One vector for every device, in the history's type."""
        devices: dict[torch.device, list[Tensor]] = {}
        for t in self._stored(tensors):
            devices.setdefault(t.device, []).append(t.flatten())
        return [torch.cat(parts) for parts in devices.values()]
