"""
A sketch and a method of one's own
==================================

Two classes make a family of sketches and a way to write layers known to the library; the
contracts of `bozzetto.testing` say whether they keep what is promised of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.linalg import derive_seed, random_normal, random_permutation
from bozzetto.maps import LinearMap, linear_map
from bozzetto.methods import METHODS, Method, Objective
from bozzetto.methods.method import fresh_, fresh_bias_, fresh_variance
from bozzetto.ops import Dense
from bozzetto.sketch import Sketch
from bozzetto.testing import check_method, check_sketch

# %%
# The sketch: coordinates along a random subspace, √(n/k) times an orthonormal basis of it. The
# name registers it. Random numbers come from `bozzetto.linalg`, and follow from (seed, family, n,
# k).


class Subspace(Sketch, name="subspace"):
    """√(n/k) times k orthonormal rows that span a uniformly random subspace."""

    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        super().__init__(n, k, seed)
        drawn = random_normal(derive_seed(seed, "subspace", n, k), n * k).view(n, k)
        basis = torch.linalg.qr(drawn)[0].T.contiguous() * (n / k) ** 0.5  # (k, n)
        self.register_buffer("basis", basis, persistent=False)  # the seed gives it again

    def down(self, x: Tensor, dim: int = -1) -> Tensor:
        if x.shape[dim] != self.n:
            raise ValueError(f"axis {dim} must have length {self.n}; got {tuple(x.shape)}")
        return (x.movedim(dim, -1) @ self.dense().T.to(x.dtype)).movedim(-1, dim)

    def up(self, y: Tensor, dim: int = -1) -> Tensor:
        if y.shape[dim] != self.k:
            raise ValueError(f"axis {dim} must have length {self.k}; got {tuple(y.shape)}")
        return (y.movedim(dim, -1) @ self.dense().to(y.dtype)).movedim(-1, dim)

    def dense(self) -> Tensor:
        return self.basis

    def variance(self) -> float:
        """n/k − 1, as UᵀU is n/k times a projection."""
        return self.n / self.k - 1


check_sketch(Subspace)
print(bz.nn.SketchLinear(64, 32, 8, family="subspace"))

# %%
# The method: a layer that reads only k of its inputs. Which, and the weights for them, are chosen
# to minimise the library's objective tr(G Δ C Δᵀ). Inputs are taken one after the other, each the
# one that explains most of what is left; as the choice is nested, the error of every k comes
# along.


class Pick(nn.Module):
    """Some entries of the last axis."""

    kept: Tensor  # (k,)

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.kept]


@dataclass(frozen=True)
class Inputs(Method):
    """y = B x[kept] + b; size is the number of inputs kept. For plain linear layers."""

    recovers = False  # the first inputs taken need not be those of a weight with few columns

    def values(self, m: LinearMap, size: int) -> int:
        return size * m.outputs if isinstance(m.op, Dense) else m.weight.numel()

    def build(self, m: LinearMap, size: int, seed: int) -> nn.Module:
        kept = random_permutation(derive_seed(seed, "inputs"), m.inputs)[:size]
        last = m.op.layer(size, m.outputs, bias=m.bias is not None, like=m.weight)
        fresh_(last, fresh_variance(m) * m.inputs / size)
        fresh_bias_(self.bias(last), m)
        return nn.Sequential(Pick(kept.to(m.weight.device)), last)

    def fit_(self, layer: nn.Module, objective: Objective) -> None:
        pick, last = layer
        kept = chosen(objective, len(pick.kept))[0]
        c, w = moment(objective), objective.w[0]
        weight = torch.linalg.solve(c[kept][:, kept], c[kept] @ w.T).T  # B = W C Sᵀ (S C Sᵀ)⁻¹
        with torch.no_grad():
            pick.kept.copy_(torch.tensor(kept))
            last.weight.copy_(weight)
        objective.shift_bias_(last.bias, self.weight(layer, objective.map))

    def weight(self, layer: nn.Module, m: LinearMap) -> Tensor:
        pick, last = layer
        whole = torch.zeros(m.outputs, m.inputs, dtype=torch.float64)
        return whole.index_copy(1, pick.kept.cpu(), last.weight.detach().double().cpu())[None]

    def errors(self, objective: Objective, sizes: Sequence[int]) -> list[float]:
        left = chosen(objective, max(sizes))[1]
        return [left[size] for size in sizes]


def moment(objective: Objective) -> Tensor:
    """C, (n, n)."""
    c = objective.moment
    return torch.eye(objective.map.inputs, dtype=torch.float64) if c is None else c[0]


def chosen(objective: Objective, size: int) -> tuple[list[int], list[float]]:
    """Inputs in the order in which they are taken, and the objective after 0, 1, … of them."""
    c, w = moment(objective).clone(), objective.whiten_output(objective.w)[0]
    kept, left = [], [objective.energy]
    for _ in range(size):
        gain = (w @ c).square().sum(0) / c.diagonal().clamp_min(1e-300)
        gain[kept] = -1
        j = int(gain.argmax())
        c -= c[:, j : j + 1] * c[j] / c[j, j]
        kept.append(j)
        left.append(max(left[-1] - float(gain[j]), 0.0))
    return kept, left


METHODS["inputs"] = Inputs  # the name that plans and `methods=` use
with torch.random.fork_rng():
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 20))
    x = torch.randn(512, 40)
check_method(Inputs(), linear_map(model[0]))

# %%
# Does it help? Where four fifths of the inputs are nearly silent it does, and the planner takes
# it where it is the better way.

x[:, 8:] *= 0.05
small, plan = bz.compress(model, 0.5, x.split(128), methods=["lowrank", "inputs"])
print({path: choice.method for path, choice in plan.choices.items()})

objective = Objective(linear_map(model[0]), bz.collect(model, x.split(128))["0"])
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name in ("lowrank", "inputs"):
    method = METHODS[name]()
    sizes = method.sizes(objective.map)
    values = [method.values(objective.map, size) for size in sizes]
    errors = [error / objective.energy for error in method.errors(objective, sizes)]
    ax.semilogy(values, errors, ".-", label=name)
ax.set(xlabel="values of the first layer", ylabel="predicted relative error")
ax.legend()
