"""Torch's transformer layers without their fused path: the same numbers, and children called."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from bozzetto.composite import MultiheadAttention
from bozzetto.expand import expand
from bozzetto.maps import expand_one

B, T, S, N = 3, 4, 5, 8
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "norm first": {"batch_first": True, "norm_first": True},
    "gelu": {"batch_first": True, "activation": "gelu"},
    "own activation": {"activation": F.silu},
    "no bias": {"batch_first": True, "bias": False},
}


def layer(kind: type[nn.Module], **options: Any) -> nn.Module:
    return kind(N, 2, 11, **{"dropout": 0.0, "dtype": torch.float64} | options)


def encoder(**options: Any) -> nn.TransformerEncoder:
    one = layer(nn.TransformerEncoderLayer, **options)
    fused = not options.keys() - {"batch_first"} and len(options) == 1
    return nn.TransformerEncoder(one, 2, nn.LayerNorm(N).double(), enable_nested_tensor=fused)


def decoder(**options: Any) -> nn.TransformerDecoder:
    return nn.TransformerDecoder(layer(nn.TransformerDecoderLayer, **options), 2)


def both(**options: Any) -> nn.Transformer:
    parts = {"custom_encoder": encoder(**options), "custom_decoder": decoder(**options)}
    return nn.Transformer(N, 2, **parts, batch_first=options.get("batch_first", False))


KINDS: dict[str, Callable[..., nn.Module]] = {
    "encoder layer": lambda **options: layer(nn.TransformerEncoderLayer, **options),
    "decoder layer": lambda **options: layer(nn.TransformerDecoderLayer, **options),
    "encoder": encoder,
    "decoder": decoder,
    "transformer": both,
}
INPUTS = {"encoder layer": 1, "encoder": 1}


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def padding(length: int) -> Tensor:
    """Sequences of full length, one shorter, two shorter."""
    return torch.arange(length) >= length - torch.arange(B).unsqueeze(1)


def call(kind: str, masked: str, *, batch_first: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Inputs that take gradients, and masks under their names for that kind of module."""
    lengths = [T, S][: INPUTS.get(kind, 2)]
    shapes = [(B, t, N) if batch_first else (t, B, N) for t in lengths]
    xs = [numbers(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    first = "src" if kind != "decoder layer" and kind != "decoder" else "tgt"
    causal = "mask" if kind == "encoder" else f"{first}_mask"
    masks = {f"{first}_key_padding_mask": padding(T), causal: torch.ones(T, T).triu(1).bool()}
    kept = {"padding": masks.keys() - {causal}, "causal": {causal}, "both": masks}.get(masked, ())
    return xs, {name: masks[name] for name in kept}


def trees(source: nn.Module) -> Iterator[nn.Module]:
    """The expanded module, children first and children last."""
    yield expand(source)
    yield parents_first(expand(source, needed=()))  # needed nothing: a plain copy


def parents_first(module: nn.Module) -> nn.Module:
    module = expand_one(module)
    for name, child in module.named_children():
        module._modules[name] = parents_first(child)
    return module


@pytest.mark.parametrize("masked", ["none", "padding", "causal", "both"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_torchs_layer(kind: str, form: str, masked: str, fill):
    source = fill(KINDS[kind](**FORMS[form]))
    xs, masks = call(kind, masked, batch_first=FORMS[form].get("batch_first", False))
    for training in (True, False):
        for twin in trees(source.train(training)):
            expected, got = source(*xs, **masks), twin(*xs, **masks)
            assert_close(got, expected)
            weights = numbers(*expected.shape, seed=7)
            grads = [torch.autograd.grad((y * weights).sum(), xs) for y in (expected, got)]
            assert_close(grads[1], grads[0])
            assert not any(type(part) is nn.MultiheadAttention for part in twin.modules())
            assert {part.training for part in twin.modules()} == {training}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", ["encoder layer", "encoder"])
def test_it_agrees_with_the_fused_path_where_nothing_is_hidden(kind: str, fill):
    source = fill(KINDS[kind](batch_first=True)).eval()
    xs, masks = call(kind, "padding", batch_first=True)
    with torch.no_grad():
        expected = source(*xs, **masks)
        for twin in trees(source):
            assert_close(twin(*xs, **masks)[~padding(T)], expected[~padding(T)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_is_called_in_evaluation(kind: str, fill):
    """pytorch #82919: for a batch of padded sequences torch reads the weights instead."""
    source = fill(KINDS[kind](batch_first=True)).eval()
    xs, masks = call(kind, "padding", batch_first=True)
    for twin in trees(source):
        called: set[str] = set()
        linears = {name for name, part in twin.named_modules() if isinstance(part, nn.Linear)}
        for name in linears:
            part = twin.get_submodule(name)
            part.register_forward_hook(lambda *_, name=name, called=called: called.add(name))
        with torch.no_grad():
            twin(*xs, **masks)
        assert called == linears
        assert len(linears) >= 6


def swap_(model: nn.Module, name: str, fill) -> None:
    """Put a low-rank pair where a linear layer was: it has no `weight` to be read."""
    parent, _, child = name.rpartition(".")
    old = model.get_submodule(name)
    pair = nn.Sequential(nn.Linear(old.in_features, 2), nn.Linear(2, old.out_features))
    setattr(model.get_submodule(parent), child, fill(pair.double()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_can_be_swapped(kind: str, fill):
    source = fill(KINDS[kind](batch_first=True)).eval()
    xs, masks = call(kind, "padding", batch_first=True)
    names = [name for name, part in expand(source).named_modules() if isinstance(part, nn.Linear)]
    with torch.no_grad():
        before = expand(source)(*xs, **masks)
        for name in names:
            twin = expand(source, needed=[name])  # only the parts around it are rewritten
            swap_(twin, name, fill)
            assert (twin(*xs, **masks) - before).abs().amax() > 1e-8, name


def test_torchs_own_layer_cannot_be_swapped(fill):
    """What the twins are for; when torch mends it they may go."""
    source = fill(encoder(batch_first=True)).eval()
    swap_(source, "layers.0.linear1", fill)
    xs, masks = call("encoder", "padding", batch_first=True)
    with torch.no_grad(), pytest.raises(AttributeError, match="weight"):
        source(*xs, **masks)


def test_an_activation_that_is_a_module_stays_one(fill, twin_of):
    source = fill(layer(nn.TransformerEncoderLayer, activation=nn.GELU(), batch_first=True)).eval()
    xs, masks = call("encoder layer", "padding", batch_first=True)
    twin = twin_of(source)
    assert twin.activation is source.activation
    assert_close(twin(*xs, **masks), source(*xs, **masks))


class OwnLayer(nn.TransformerEncoderLayer):
    """A user's layer around torch's forward."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(*args, **kwargs) * 2


class OwnEncoder(nn.TransformerEncoder):
    """A user's encoder around torch's forward."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(*args, **kwargs) + 1


def test_a_subclass_keeps_its_forward_and_its_children_are_called(fill):
    one = layer(OwnLayer, batch_first=True)
    source = fill(OwnEncoder(one, 2)).eval()
    xs, masks = call("encoder", "padding", batch_first=True)
    expected = source(*xs, **masks)
    with torch.no_grad():
        for twin in trees(source):
            assert type(twin) is OwnEncoder
            assert_close(twin(*xs, **masks), expected)
            swap_(twin, "layers.0.linear1", fill)
            assert (twin(*xs, **masks) - expected).abs().amax() > 1e-3


def test_torchs_encoder_may_be_built_of_an_expanded_layer(fill):
    one = expand(fill(layer(nn.TransformerEncoderLayer, batch_first=True)))
    made = nn.TransformerEncoder(one, 2, enable_nested_tensor=False).eval()
    xs, masks = call("encoder", "padding", batch_first=True)
    with torch.no_grad():
        assert torch.isfinite(made(*xs, **masks)).all()


def test_dropout_is_torchs_with_the_same_random_numbers(fill):
    """In the layout in which the outputs of both are stored in the same order."""
    source = fill(encoder(batch_first=False, dropout=0.3)).train()
    xs, masks = call("encoder", "padding", batch_first=False)
    for twin in trees(source):
        results = []
        for module in (source, twin):
            with torch.random.fork_rng():
                torch.random.default_generator.manual_seed(5)
                results.append(module(*xs, **masks))
        assert_close(results[1], results[0])


@pytest.mark.parametrize("kind", KINDS)
def test_twins_are_their_own_twins(kind: str, fill, twin_of):
    twin = twin_of(KINDS[kind](batch_first=True))
    assert twin_of(twin) is twin
    twin = expand(twin)
    assert all(expand_one(part) is part for part in twin.modules())


def test_the_original_and_the_switch_for_all_of_torch_are_untouched(fill, twin_of):
    source = fill(encoder(batch_first=True))
    twin = twin_of(source)
    assert list(twin.state_dict()) == list(source.state_dict())
    twin.extra = nn.Linear(1, 1)
    twin.register_forward_hook(lambda *_: None)
    assert not hasattr(source, "extra")
    assert not source._forward_hooks
    assert source.use_nested_tensor
    one = source.layers[0]
    swapped = twin_of(one)
    swapped.linear1 = nn.Identity()
    assert isinstance(one.linear1, nn.Linear)
    assert one.activation_relu_or_gelu == 1
    assert torch.backends.mha.get_fastpath_enabled()


def test_state_loads_back(fill):
    source = fill(both(batch_first=True))
    first, second = expand(source), fill(expand(source), seed=3)
    second.load_state_dict(first.state_dict())
    xs, masks = call("transformer", "padding", batch_first=True)
    assert_close(second(*xs, **masks), source(*xs, **masks))


def test_it_exports_and_runs_under_autocast(fill):
    twin = expand(fill(both(batch_first=True).float())).eval()
    xs = [x.detach().float() for x in call("transformer", "none", batch_first=True)[0]]
    masks = {"src_key_padding_mask": padding(T)}
    expected = twin(*xs, **masks)
    exported = torch.export.export(twin, tuple(xs), masks).module()
    assert_close(exported(*xs, **masks), expected)
    with torch.autocast("cpu", torch.bfloat16):
        got = twin(*xs, **masks)
    got.float().sum().backward()
    assert_close(got.float(), expected, rtol=0.1, atol=0.1)
    assert all(p.grad is not None for p in twin.parameters())
    assert any(isinstance(part, MultiheadAttention) for part in twin.modules())
