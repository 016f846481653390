"""Attention with four real projections, against torch's own."""

import pytest
import torch
from attention_cases import (
    CONFIGS,
    MASKS,
    WEIGHTS,
    B,
    H,
    N,
    S,
    T,
    compare,
    hides,
    inputs,
    make,
    masks,
    numbers,
)
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close

from bozzetto.composite import MultiheadAttention
from bozzetto.maps import expand_one

HIDDEN = float("-inf")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("config", CONFIGS)
def test_it_is_torchs_attention(config: str, mask: str, weights: str, fill, twin_of):
    source = make(fill, **CONFIGS[config])
    twin = twin_of(source)
    assert isinstance(twin, MultiheadAttention)
    compare(source, twin, inputs(source), masks((B,), source.num_heads)[mask] | WEIGHTS[weights])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mask", MASKS)
def test_an_input_without_a_batch_too(mask: str, weights: str, fill, twin_of):
    source = make(fill, batch_first=True, add_bias_kv=True)
    call = masks(())[mask] | WEIGHTS[weights]
    compare(source, twin_of(source), inputs(source, batched=False), call)


@pytest.mark.parametrize("mask", MASKS)
def test_it_agrees_with_torchs_fused_path(mask: str, fill, twin_of):
    """In evaluation without gradients torch runs another operator for self-attention."""
    source = make(fill, batch_first=True).eval()
    twin = twin_of(source)
    x = numbers(B, S, N)
    call = {
        name: value[..., :1, :].expand(*value.shape[:-2], S, S) if name == "attn_mask" else value
        for name, value in masks((B,))[mask].items()
        if name != "is_causal"
    }
    with torch.no_grad():
        assert_close(twin(x, x, x, **call), source(x, x, x, **call))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_hidden_keys_do_not_leak(weights: str, fill, twin_of):
    """Changing what a mask hides changes nothing; changing what it shows does."""
    twin = twin_of(make(fill, batch_first=True))
    hidden = torch.zeros(B, S, dtype=torch.bool)
    hidden[:, -1] = True
    query, key, value = (x.detach() for x in inputs(twin))
    for call in (
        {"key_padding_mask": hidden},
        {"attn_mask": hidden[:1].expand(T, S)},
        {"key_padding_mask": torch.zeros(B, S).masked_fill(hidden, HIDDEN)},
    ):
        before = twin(query, key, value, **call, **WEIGHTS[weights])
        at = torch.arange(S).view(1, S, 1)
        unseen, seen = (at == S - 1).double(), (at == 0).double()
        after = twin(query, key + unseen, value - unseen, **call, **WEIGHTS[weights])
        assert_close(after, before, rtol=0, atol=0)
        if before[1] is not None:
            assert (before[1][..., -1] == 0).all()
        other = twin(query, key, value + seen, **call, **WEIGHTS[weights])
        assert (other[0] - before[0]).abs().amax() > 0.01


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_query_that_sees_no_key_gets_what_torch_gives(weights: str, fill, twin_of):
    source = make(fill, batch_first=True)
    everything = torch.ones(B, S, dtype=torch.bool)
    call = {"key_padding_mask": everything} | WEIGHTS[weights]
    expected = source(*inputs(source), **call)
    assert_close(twin_of(source)(*inputs(source), **call), expected, equal_nan=True)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_dropout_is_torchs_with_the_same_random_numbers(weights: str, fill, twin_of):
    source = make(fill, dropout=0.4, batch_first=True).train()
    twin = twin_of(source)
    query, key, value = inputs(source)
    results = []
    for module in (source, twin):
        with torch.random.fork_rng():
            torch.random.default_generator.manual_seed(5)
            results.append(module(query, key, value, **WEIGHTS[weights]))
    assert_close(results[1], results[0])
    assert (twin.eval()(query, key, value)[0] - results[0][0]).abs().amax() > 0.01


def test_swapping_a_projection_changes_the_output_and_hooks_fire(fill, twin_of):
    """pytorch #78109: torch reads out_proj's weight and never calls it."""
    twin = twin_of(make(fill, batch_first=True).eval())
    x = numbers(B, S, N)
    called = []
    for name, child in twin.named_children():
        child.register_forward_hook(lambda *_, name=name: called.append(name))
    before = twin(x, x, x)[0]
    projections = ["q_proj", "k_proj", "v_proj", "out_proj"]
    assert called == projections
    for name in projections:
        kept = getattr(twin, name)
        narrow = nn.Sequential(nn.Linear(N, 2), nn.Linear(2, N)).double()
        setattr(twin, name, fill(narrow))
        assert (twin(x, x, x)[0] - before).abs().amax() > 0.01
        setattr(twin, name, kept)


def test_what_it_is_made_of_is_kept(fill, twin_of):
    source = make(fill, kdim=5, add_bias_kv=True, dtype=torch.bfloat16).eval()
    source.k_proj_weight.requires_grad_(False)
    source.bias_v.requires_grad_(False)
    twin = twin_of(source)
    frozen = {name for name, p in twin.named_parameters() if not p.requires_grad}
    assert frozen == {"k_proj.weight", "bias_v"}
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
    assert not any(part.training for part in twin.modules())
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in source.parameters())
    assert (twin.embed_dim, twin.kdim, twin.vdim, twin.num_heads) == (N, 5, N, H)
    assert all(isinstance(child, nn.Linear) for child in twin.children())
    shapes = nn.MultiheadAttention(N, H, device="meta")
    assert {p.device.type for p in expand_one(shapes).parameters()} == {"meta"}


def test_a_hook_of_the_module_itself_stays(fill, twin_of):
    source = make(fill, batch_first=True)
    source.register_forward_hook(lambda _, __, out: (out[0] + 1, out[1]))
    source.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs), with_kwargs=True)
    compare(source, twin_of(source), inputs(source), {})


def test_it_is_its_own_twin_and_its_state_loads_back(fill, twin_of):
    source = make(fill, add_bias_kv=True)
    twin, other = twin_of(source), twin_of(make(fill, add_bias_kv=True))
    assert twin_of(twin) is twin
    fill(other, seed=7).load_state_dict(twin.state_dict())
    x = numbers(S, B, N)
    assert_close(other(x, x, x), source(x, x, x))


def test_its_own_parameters_are_clones_and_out_proj_is_carried_over(fill, twin_of):
    """So that a tie through out_proj holds; the fixture sees that the original keeps its values."""
    source = make(fill, kdim=5, add_bias_kv=True)
    twin = twin_of(source)
    assert twin.out_proj is source.out_proj
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if not name.startswith("out_proj"):
                parameter.zero_()


def test_what_is_not_exactly_torchs_stays_as_it_is(fill, twin_of):
    class Own(nn.MultiheadAttention):
        def forward(self, query: Tensor, *_: Tensor) -> tuple[Tensor, None]:  # type: ignore
            return query * 2, None

    class LoudLinear(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 100

    pruned = make(fill)
    prune.l1_unstructured(pruned, "in_proj_weight", 0.5)
    normed = nn.utils.parametrizations.weight_norm(make(fill), "in_proj_weight")
    loud = make(fill)
    loud.out_proj = LoudLinear(N, N)  # type: ignore
    for module in (Own(N, H), pruned, normed, loud):
        assert twin_of(module) is module


def test_it_exports_and_runs_under_autocast_and_compile(fill, twin_of):
    twin = twin_of(fill(nn.MultiheadAttention(N, H, batch_first=True))).eval()
    x, mask = numbers(1, S, N).float(), hides(1, S)
    expected = twin(x, x, x, mask)
    exported = torch.export.export(twin, (x, x, x, mask)).module()
    assert_close(exported(x, x, x, mask), expected)
    compiled = torch.compile(twin, fullgraph=True, backend="eager")
    assert_close(compiled(x, x, x, mask), expected)
    for options in WEIGHTS.values():
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = twin(x, x, x, mask, attn_mask=hides(S, S), **options)
            full, _ = twin(x, x, x, mask, **options)
        assert_close(full.float(), expected[0], rtol=0.05, atol=0.05)
        y.float().sum().backward()
    assert all(p.grad is not None for p in twin.parameters())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"is_causal": True}, ValueError, "without a mask"),
        ({"attn_mask": hides(T, S + 1)}, ValueError, r"attn_mask must have shape \(4, 5\)"),
        ({"attn_mask": hides(B, T, S)}, ValueError, r"attn_mask must have shape \(6, 4, 5\)"),
        ({"key_padding_mask": hides(B, T)}, ValueError, r"shape \(3, 5\); got \(3, 4\)"),
        ({"attn_mask": hides(T, S).long()}, TypeError, "bool or floating point; got torch.int64"),
        ({"key": numbers(S, N)}, ValueError, "3 axes, or 2 without a batch; got 3, 2 and 3"),
        ({"value": numbers(B, T, N)}, ValueError, "one length"),
        ({"query": numbers(B + 1, T, N)}, ValueError, "one batch size"),
    ],
)
def test_wrong_inputs_are_refused(call, error, message: str, fill, twin_of):
    twin = twin_of(make(fill, batch_first=True))
    named = dict(zip(("query", "key", "value"), inputs(twin), strict=True))
    with pytest.raises(error, match=message):
        twin(**named | call)


def test_wrong_parts_are_refused():
    parts = [nn.Linear(N, N) for _ in range(4)]
    with pytest.raises(ValueError, match="divide the width 6; got 4 heads"):
        MultiheadAttention(*parts, num_heads=4)
    with pytest.raises(ValueError, match="only one of them"):
        MultiheadAttention(*parts, num_heads=2, bias_k=nn.Parameter(torch.zeros(1, 1, N)))


def test_it_says_what_it_is(fill, twin_of):
    source = make(fill, dropout=0.1, add_zero_attn=True, add_bias_kv=True, batch_first=True)
    assert twin_of(source).extra_repr() == (
        "num_heads=2, dropout=0.1, add_bias_kv=True, add_zero_attn=True, batch_first=True"
    )
