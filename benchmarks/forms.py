"""The forms of a layer that the benchmark of layers compares."""

import warnings
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from bozzetto.maps import LinearMap, linear_map
from bozzetto.methods import METHODS, make_method
from bozzetto.nn import for_inference
from bozzetto.sketch import make_sketch


class FourProducts(nn.Module):
    """The paper's SK-FC or SK-CONV as its formula says, every matrix held: as others publish it."""

    def __init__(self, dense: nn.Module, k: int) -> None:
        super().__init__()
        m = linear_map(dense)
        layer = partial(m.op.layer, bias=False, like=m.weight)
        point = partial(m.op.pointwise, bias=False, like=m.weight)
        self.s1, self.u1t = layer(m.inputs, k), point(k, m.outputs)
        self.u2, self.s2 = point(m.inputs, k), layer(k, m.outputs)
        for part, u in (
            (self.u1t, make_sketch("sign", m.outputs, k, 1).dense().T),
            (self.u2, make_sketch("sign", m.inputs, k, 2).dense()),
        ):
            value = u.reshape(cast(Tensor, part.weight).shape)
            part.weight = nn.Parameter(value, requires_grad=False)
        self.bias = m.bias
        self.shape = (-1, *[1] * (-1 - m.op.dim))

    def forward(self, x: Tensor) -> Tensor:
        """(U1ᵀ S1 x + S2 U2 x)/2 + b."""
        y = (self.u1t(self.s1(x)) + self.s2(self.u2(x))) / 2
        return y if self.bias is None else y + self.bias.view(self.shape)


def _tensorly(dense: nn.Module, keep: int) -> nn.Module:
    tl = import_module("tltorch")
    made: Any
    if isinstance(dense, nn.Linear):
        n, m = dense.in_features, dense.out_features
        split = {384: (16, 24), 1024: (32, 32), 4096: (64, 64)}
        made = tl.FactorizedLinear(
            split[n], split[m], factorization="tucker", rank=1 / keep, implementation="factorized"
        )
    else:
        conv = cast(nn.Conv2d, dense)
        made = tl.FactorizedConv(
            conv.in_channels, conv.out_channels, conv.kernel_size, order=2,
            padding=cast(Any, conv.padding), factorization="tucker", rank=1 / keep,
            implementation="factorized",
        )  # fmt: skip
    for p in made.parameters():
        nn.init.normal_(p, std=0.05)
    return made


def _sign_size(m: LinearMap, keep: int) -> int:
    """So many signs a side that bits and core take 1/keep of the dense bytes."""
    rows, d = m.block
    side = (rows + d) / 32  # of four-byte values
    return max(1, int((side**2 / 4 + rows * d / keep) ** 0.5 - side / 2))


def forms(dense: nn.Module, keep: int, *, rare: bool = True) -> dict[str, nn.Module]:
    """Every form with 1/keep of the dense weight values (signs: of the bytes).

    `rare` adds those that are made for memory, not for time, and tensorly-torch where it is there.
    """
    m = linear_map(dense)
    made: dict[str, nn.Module] = {"dense": dense}
    lookup = isinstance(dense, nn.Embedding)
    for name, sides, terms in (
        ("fold in", "in", 1), ("fold out", "out", 1), ("fold both", "both", 1),
        ("fold both l=2", "both", 2),
    ):  # fmt: skip
        method = make_method("sketched", {"sides": sides, "terms": terms})
        if lookup and sides != "out":
            continue
        size = method.most(m, 1 / keep)
        if size:
            made[name] = method.build(m, size, 1)
    for name in ("lowrank", "tucker", "blocks", "signs", "hybrid"):
        memory = name in ("blocks", "signs", "hybrid")
        if name not in METHODS or (memory and (lookup or not rare)):
            continue
        method = make_method(name)
        size = _sign_size(m, keep) if name == "signs" else method.most(m, 1 / keep)
        if name == "hybrid":
            size = max(1, method.most(m, 1 / keep) // 2)
        if size and method.values(m, size) < m.weight.numel():
            made[name] = method.build(m, size, 1)
    if not lookup:
        k = make_method("sketched").most(m, 1 / keep)
        if k:
            made["four products"] = FourProducts(dense, k)
    small = cast(Tensor, dense.weight).numel() <= 1 << 20  # it takes seconds beyond
    if rare and small and not lookup and find_spec("tltorch"):
        made["tensorly-torch"] = _tensorly(dense, keep)
    return made


def ready(layers: dict[str, nn.Module], x: Tensor, *, rare: bool) -> dict[str, nn.Module]:
    """The forms made for evaluation; `rare` adds compiled and, of linear layers, int8 ones."""
    made: dict[str, nn.Module] = {}
    for name in ("dense", "fold in", "fold out", "fold both", "lowrank"):
        if name not in layers:
            continue
        made[f"{name}, for inference"] = quick = for_inference(layers[name], x)
        if rare:
            compiled = torch.compile(layers[name])
            made[f"{name}, compiled"] = cast(nn.Module, compiled)
            with torch.no_grad():
                compiled(x)
        if rare and isinstance(layers["dense"], nn.Linear):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch has moved it to torchao
                whole = nn.Sequential(quick)  # it is the parts that are replaced
                made[f"{name}, int8"] = torch.ao.quantization.quantize_dynamic(whole, {nn.Linear})
    return made
