"""Small networks under other libraries: torchao, PEFT, OpenVINO, torch.compile.

Each is skipped where its library is missing: pip install torchao peft openvino transformers.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.sketch import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # inside torch.export


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(rows: int, length: int) -> Tensor:
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def low_rank() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
    return bz.compress(model, 0.5, [draw(200, 64)], methods="lowrank")[0].eval()


@pytest.fixture
def language_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=32, n_layer=1, n_head=2, vocab_size=60, n_positions=32, bos_token_id=1,
        eos_token_id=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    return bz.compress(model, 0.6, [{"input_ids": words(8, 10)}], methods="lowrank")[0]


@pytest.mark.filterwarnings("ignore")  # torchao's own while it is imported
def test_int8_weights_on_top_differ_by_no_more_than_their_rounding(low_rank: nn.Module):
    quantization = pytest.importorskip("torchao.quantization")
    short = copy.deepcopy(low_rank)
    quantization.quantize_(short, quantization.Int8WeightOnlyConfig())
    spread = copy.deepcopy(low_rank)
    linears = [name for name, m in low_rank.named_modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 4
    for name in linears:
        weight = low_rank.get_submodule(name).weight.detach()
        held = short.get_submodule(name).weight
        assert held.qdata.dtype == torch.int8
        values = held.dequantize()
        step = weight.abs().amax(1, keepdim=True) / 127
        assert ((values - weight).abs() <= 0.51 * step).all()
        spread.get_submodule(name).weight = nn.Parameter(values)
    x = draw(7, 64, seed=1)
    with torch.no_grad():
        assert_close(short(x), spread(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # inside PEFT
def test_lora_trains_its_own_values_only_and_merges(language_model: nn.Module):
    peft = pytest.importorskip("peft")
    before = {name: value.clone() for name, value in language_model.state_dict().items()}
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    tuned = peft.get_peft_model(language_model, config)
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    inputs = words(4, 8)
    tuned(input_ids=inputs, labels=inputs).loss.backward()
    assert all(p.grad is not None for n, p in tuned.named_parameters() if n in trained)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if name in trained:
                p -= 0.1 * p.grad
        wanted = tuned.eval()(input_ids=inputs).logits
        merged = tuned.merge_and_unload()
        assert_close(merged(input_ids=inputs).logits, wanted, rtol=1e-4, atol=1e-4)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    changed = [n for n, v in merged.state_dict().items() if not (v == before[n]).all()]
    assert changed
    assert all(n.endswith("weight") for n in changed)


@pytest.mark.parametrize("family", [*FAMILIES, "signs"])
def test_openvino_computes_what_the_network_does(tmp_path: Path, family: str):
    openvino = pytest.importorskip("openvino")
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 3))
    if family == "signs":
        small, _ = bz.compress(model, bz.Budget(bytes=0.4), [draw(9, 3, 9, 9)], methods="signs")
    else:
        small, _ = bz.sketch(model, 0.5, sides="both", family=family)
    path = bz.export(small.eval(), tmp_path / "net.onnx", draw(2, 3, 9, 9))
    device = {"INFERENCE_PRECISION_HINT": "f32"}
    run = openvino.Core().compile_model(path, "CPU", device)
    for size in (1, 5):
        x = draw(size, 3, 9, 9, seed=size)
        assert_close(torch.from_numpy(run(x.numpy())[0]), small(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["fold", "hadamard"])
def test_a_small_network_compiles_whole(family: str):
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
    small, _ = bz.sketch(model, 0.5, sides="both", family=family)
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (3, 8):
        x = draw(size, 64, seed=size)
        assert_close(compiled(x), small(x))
    compiled(x).square().sum().backward()
    found = [p.grad.clone() for p in small.parameters()]
    small.zero_grad()
    small(x).square().sum().backward()
    assert_close(found, [p.grad for p in small.parameters()])
