"""Defects found in other libraries; none may be ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bozzetto as bz
from networks import NETWORKS


def values(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_pretrained_weights_are_fitted_not_estimated() -> None:
    layer = nn.Linear(128, 128)
    fitted = bz.nn.SketchLinear.from_dense(layer, 8)
    change = (layer.weight.double() - fitted.weight()).norm() / layer.weight.norm()
    assert change.item() < 1  # the zero matrix scores 1, the unbiased estimate about 2.8


def test_training_from_scratch_does_not_start_too_hot() -> None:
    x = torch.randn(64, 128)
    for i in range(10):
        x = bz.nn.SketchLinear(128, 128, 16, seed=i)(x).detach()
    assert x.std().item() < 0.2


def test_a_budget_is_checked_on_the_delivered_network() -> None:
    model, x = NETWORKS["encoder"]()
    small, _ = bz.compress(model.eval(), 0.5, [x])
    assert values(small) <= 0.5 * values(model)


def test_hidden_keys_do_not_leak_through_rewritten_attention() -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x, mask = torch.randn(2, 5, 16), torch.tensor([[False] * 4 + [True]] * 2)
    other = x.clone()
    other[:, 4] += 100
    expanded = bz.expand(attention)
    query = x[:, :2]
    seen = [expanded(query, keys, keys, key_padding_mask=mask)[0] for keys in (x, other)]
    torch.testing.assert_close(seen[0], seen[1])
    torch.testing.assert_close(seen[0], attention(query, x, x, key_padding_mask=mask)[0])


def test_backward_under_autocast_strided_compiled_mapped_and_unbatched_input() -> None:
    linear, conv = bz.nn.SketchLinear(32, 16, 4), bz.nn.SketchConv2d(8, 8, 3, 1, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        linear(torch.randn(4, 32)).float().sum().backward()
    x = torch.randn(32, 4).T
    want = linear(x.contiguous())
    torch.testing.assert_close(linear(x), want)
    compiled = torch.compile(linear, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), want)
    torch.testing.assert_close(torch.vmap(linear)(x), want)
    image = torch.randn(8, 5, 5)
    torch.testing.assert_close(conv(image), conv(image.unsqueeze(0))[0])


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_modes_are_kept(mode: str) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)
    x = torch.randn(6, 8, 7, 7)
    small, _ = bz.compress(nn.Sequential(layer), 0.9, [x])
    assert small(x).shape == layer(x).shape
    modes = {m.padding_mode for m in small.modules() if isinstance(m, nn.Conv2d) and m.padding}
    assert mode in modes


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_same_padding_with_an_even_kernel_keeps_the_size() -> None:
    layer = bz.nn.SketchConv1d(8, 8, 4, 1, padding="same")
    assert layer(torch.randn(2, 8, 11)).shape == (2, 8, 11)


def test_tied_embeddings_do_not_grow_the_network() -> None:
    model, x = NETWORKS["language_model"]()
    small, _ = bz.compress(model, 0.6, [x])
    assert values(small) <= 0.6 * values(model)


def test_checkpoints_do_not_hold_the_random_matrices(tmp_path: Path) -> None:
    layer = bz.nn.SketchLinear(1024, 1024, 64, bias=False, family="sign")
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
    assert sum(v.numel() for v in layer.state_dict().values()) == 1024 * 1024 // 8


def test_the_repr_tells_the_sizes_and_bad_ranks_are_refused() -> None:
    assert "64 -> 64" in repr(bz.nn.SketchLinear(64, 64, 8))
    for k in (0, 64):
        with pytest.raises(ValueError, match="needs 1 <= k"):
            bz.nn.SketchLinear(64, 64, k)


def test_no_bias_appears_in_layers_without_one() -> None:
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 32, bias=False))
    x = torch.randn(40, 32)
    for small in (bz.compress(model, 0.5, [x])[0], bz.sketch(model, 0.5)[0]):
        assert not [name for name, _ in small.named_parameters() if name.endswith("bias")]


def test_keeping_a_share_never_enlarges_and_is_the_share_asked() -> None:
    model = nn.Sequential(nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 96))
    for keep in (0.5, 0.7):
        small, _ = bz.compress(model, keep, [torch.randn(200, 96)])
        assert keep - 0.05 < values(small) / values(model) <= keep


def test_the_commands_json_is_json(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))\n"
        "def data():\n    return [torch.ones(4, 32) * torch.arange(4.0)[:, None]]\n"
    )
    command = ["compress", "own:build", "--data", "own:data", "--keep", "0.5", "--out", "small"]
    run = [str(Path(sys.executable).with_name("bozzetto")), *command, "--json"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert (tmp_path / "small" / "model.safetensors").is_file()
