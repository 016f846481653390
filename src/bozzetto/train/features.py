"""Features: what inner modules give, for a student to follow its teacher there too."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bozzetto.batches import tensors
from bozzetto.train.losses import same_shape

__all__ = ["Found", "captured", "check_features", "feature_loss"]

Found = dict[str, list[Tensor]]


def check_features(model: nn.Module, teacher: nn.Module | None, paths: Sequence[str]) -> None:
    """Raise ValueError unless both networks have a module at every path."""
    if paths and teacher is None:
        raise ValueError(f"features to follow need a teacher; got {list(paths)} and none")
    for name, network in (("model", model), ("teacher", teacher)):
        known = () if network is None else dict(network.named_modules())
        if lacking := [path for path in paths if path not in known]:
            raise ValueError(f"features are paths of modules in both networks; the {name} has no "
                             f"{lacking}")  # fmt: skip


@contextmanager
def captured(model: nn.Module, paths: Sequence[str]) -> Iterator[Found]:
    """The floating tensors that the modules at these paths give while this lasts, call by call."""
    found: Found = {path: [] for path in paths}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[path] += [y for y in tensors(output) if y.is_floating_point()]

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def feature_loss(student: Mapping[str, Sequence[Tensor]], teacher: Found) -> Tensor:
    """Mean over all features of ‖s − t‖² / ‖t‖² (FitNets, Romero et al. 2015, scale-free).

    Raises:
        ValueError: if the networks' features differ in number or shape.
    """
    terms = []
    for path, wanted in teacher.items():
        if len(wanted) != len(student[path]) or not wanted:
            raise ValueError(
                f"the module {path!r} needs to give as many tensors in both networks, and some; "
                f"got {len(student[path])} and the teacher's {len(wanted)}"
            )
        for own, theirs in zip(student[path], wanted, strict=True):
            same_shape(f"feature {path!r}", own, "teacher's", theirs)
            theirs = theirs.detach().to(own.device).float()
            error = (own.float() - theirs).square().sum()
            terms.append(error / theirs.square().sum().clamp_min(1e-12))
    return torch.stack(terms).mean()
