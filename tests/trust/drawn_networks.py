"""Random networks for the property suite, each decided by a seed: shapes, kinds, and oddities."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Tied(nn.Module):
    """An embedding, a recurrent or linear middle, and a head of the embedding's weight."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        words, width = random.randint(30, 90), random.choice((12, 16, 24))
        self.table = nn.Embedding(words, width)
        self.middle = random.choice((nn.Linear(width, width), nn.Identity()))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.table.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.table(index))))


class Residual(nn.Module):
    """x + f(x), with one module used twice."""

    def __init__(self, inner: nn.Module, again: bool) -> None:
        super().__init__()
        self.inner, self.again = inner, again

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.relu(self.inner(x))
        return x + torch.tanh(self.inner(x)) if self.again else x


class Scaled(nn.Module):
    """A buffer that is part of the state, and one that is not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 2, width))
        self.register_buffer("shift", torch.linspace(-1, 1, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Along the last axis."""
        return x * self.scale + self.shift


class Halved(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@dataclass(frozen=True)
class Drawn:
    """A network in evaluation mode, its calibration, and what it is made of."""

    model: nn.Module
    batches: list[Tensor]
    parts: tuple[str, ...]


def _width(random: Random) -> int:
    return random.choice((8, 12, 17, 24, 32, 48))


def _dense(random: Random, parts: list[str]) -> tuple[nn.Module, tuple[int, ...]]:
    n = first = _width(random)
    layers: list[nn.Module] = []
    for _ in range(random.randint(1, 4)):
        m = _width(random)
        if lazy := random.random() < 0.05:
            parts.append("lazy")
        bias = random.random() < 0.8
        layers.append(nn.LazyLinear(m, bias=bias) if lazy else nn.Linear(n, m, bias=bias))
        layers.append(random.choice(ACTIVATIONS)())
        n = m
        match random.randrange(8):
            case 0:
                layers.append(Residual(nn.Linear(n, n), again=True))
                parts.append("shared module")
            case 1:
                layers.append(nn.BatchNorm1d(n))
            case 2:
                layers.append(nn.LayerNorm(n))
            case 3:
                layers.append(Scaled(n))
                parts.append("buffers")
            case 4:
                layers.append(nn.Dropout(0.3))
            case _:
                pass
    return nn.Sequential(*layers), (first,)


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, lambda: nn.ReLU(inplace=True), nn.GELU, nn.Tanh, nn.Identity,
)  # fmt: skip


def _conv(random: Random, parts: list[str]) -> tuple[nn.Module, tuple[int, ...]]:
    dims = random.choice((1, 2, 2))
    kinds: Any = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d)}[dims]
    groups = random.choice((1, 1, 1, 2))
    n = first = groups * random.choice((3, 4, 8))
    layers: list[nn.Module] = []
    for _ in range(random.randint(1, 3)):
        m, kernel = groups * random.choice((4, 8, 12)), random.choice((1, 2, 3))
        if random.random() < 0.15:
            layers.append(kinds[1](n, m, kernel, stride=random.choice((1, 2)), groups=groups))
            parts.append("transposed")
        else:
            mode = random.choice(("zeros", "zeros", "circular", "reflect"))
            padding = random.choice(("same", 0, 1)) if kernel == 3 else 0
            stride = 1 if padding == "same" else random.choice((1, 1, 2))
            dilation = random.choice((1, 1, 2)) if padding != 0 else 1
            options = {"stride": stride, "padding": padding, "dilation": dilation}
            options |= {"groups": groups, "bias": random.random() < 0.7, "padding_mode": mode}
            layers.append(kinds[0](n, m, kernel, **options))
        layers.append(random.choice(ACTIVATIONS)())
        if random.random() < 0.3:
            layers.append((nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1](m))
        n = m
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[dims - 1](1)
    layers += [pool, nn.Flatten(), nn.Linear(n, _width(random))]
    parts.append("groups" if groups > 1 else "convolutions")
    return nn.Sequential(*layers), (first, *(14,) * dims)


def _composite(random: Random, parts: list[str]) -> tuple[nn.Module, tuple[int, ...]]:
    parts.append("attention")
    layer = nn.TransformerEncoderLayer(
        16, 2, 24, batch_first=True, norm_first=random.random() < 0.5, dropout=0.1
    )
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), (5, 16)


def drawn(seed: int) -> Drawn:
    """The network of a seed, freshly initialised from that seed too."""
    random, parts = Random(seed), list[str]()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if random.random() < 0.12:
            model, parts = Tied(random), ["tied weights"]
            count = model.table.num_embeddings
            inputs = [torch.randint(0, count, (8, 6)) for _ in range(2)]
        else:
            kind = random.choice((_dense, _dense, _conv, _conv, _composite))
            model, shape = kind(random, parts)
            inputs = [torch.randn(random.choice((1, 7, 16)), *shape) for _ in range(2)]
        if "lazy" in parts:
            model.eval()(inputs[0])
        dtype = random.choice(DTYPES)
        _odd(model, random, parts)
        model.eval()
        if dtype is not torch.float32:
            parts.append(str(dtype).removeprefix("torch."))
        model.to(dtype)
        inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        if inputs[0].ndim == 4 and random.random() < 0.3:
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
            parts.append("channels last")
    return Drawn(model, inputs, tuple(sorted(set(parts))))


def _odd(model: nn.Module, random: Random, parts: list[str]) -> None:
    """What people do to their networks."""
    linears = [m for m in model.modules() if type(m) in (nn.Linear, nn.Conv1d, nn.Conv2d)]
    if not linears:
        return
    one = random.choice(linears)
    match random.randrange(8):
        case 0:
            one.requires_grad_(False)
            parts.append("frozen")
        case 1 if "attention" not in parts and "tied weights" not in parts:
            nn.utils.parametrizations.weight_norm(one)
            parts.append("weight norm")
        case 2 if "attention" not in parts and "tied weights" not in parts:
            nn.utils.parametrize.register_parametrization(one, "weight", Halved())
            parts.append("parametrization")
        case 3:
            one.register_forward_hook(_same_output)
            parts.append("hooks")
        case 4:
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            parts.append("gradients")
        case 5:
            next(iter(model.children())).train()
            parts.append("mixed modes")
        case _:
            pass


def _same_output(module: nn.Module, args: Any, output: Tensor) -> None:
    return None
