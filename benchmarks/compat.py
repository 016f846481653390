"""Networks of other libraries, compressed to half: which steps work, and why one does not.

`make compat` installs torch, torchvision, timm, transformers and torch_geometric into .venv-compat
(6 GB) and runs it. Weights are random, configurations small. NETWORKS="gpt2 vit" runs only these.
"""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bozzetto as bz
from bozzetto.batches import call, tensors
from bozzetto.linalg import seeded

KEEP = 0.5
Case = tuple[nn.Module, Any]  # a network and a batch

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "vocab_size": 200, "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200, "n_positions": 64}
DISTIL = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 200,
    "max_position_embeddings": 64,
}  # fmt: skip
VIT = {k: v for k, v in SMALL.items() if not k.startswith(("vocab", "max"))} | {"image_size": 32}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 200}


def vision(name: str, size: int = 64) -> Case:
    import torchvision

    return torchvision.models.get_model(name, weights=None), torch.randn(4, 3, size, size)


def timm_model(name: str, size: int = 224) -> Case:
    import timm

    return timm.create_model(name, pretrained=False), torch.randn(2, 3, size, size)


def hub(kind: str, model: str, options: dict[str, Any], *, decoder: bool = False) -> Case:
    import transformers

    made = getattr(transformers, model)(getattr(transformers, f"{kind}Config")(**options))
    batch = {"input_ids": torch.randint(3, 200, (4, 12))}
    return made, batch | ({"decoder_input_ids": torch.randint(3, 200, (4, 6))} if decoder else {})


def hub_vit() -> Case:
    import transformers

    made = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, patch_size=8))
    return made, {"pixel_values": torch.randn(4, 3, 32, 32)}


def transformer() -> Case:
    made = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
    return made, ((torch.randn(4, 9, 32), torch.randn(4, 7, 32)), None)


NETWORKS: dict[str, Callable[[], Case]] = {
    "torchvision-resnet18": partial(vision, "resnet18"),
    "torchvision-resnet50": partial(vision, "resnet50"),
    "torchvision-mobilenet_v3_small": partial(vision, "mobilenet_v3_small"),
    "torchvision-convnext_tiny": partial(vision, "convnext_tiny"),
    "torchvision-vit_b_16": partial(vision, "vit_b_16", 224),
    "torchvision-swin_t": partial(vision, "swin_t", 224),
    "timm-efficientnet_b0": partial(timm_model, "efficientnet_b0", 64),
    "timm-mobilevit_xxs": partial(timm_model, "mobilevit_xxs", 64),
    "timm-deit_tiny": partial(timm_model, "deit_tiny_patch16_224"),
    "timm-mixer_s32": partial(timm_model, "mixer_s32_224"),
    "transformers-bert": partial(hub, "Bert", "BertForSequenceClassification", SMALL),
    "transformers-roberta": partial(hub, "Roberta", "RobertaForMaskedLM", SMALL),
    "transformers-distilbert": partial(hub, "DistilBert", "DistilBertModel", DISTIL),
    "transformers-t5": partial(hub, "T5", "T5ForConditionalGeneration", T5, decoder=True),
    "transformers-gpt2": partial(hub, "GPT2", "GPT2LMHeadModel", GPT2),
    "transformers-llama": partial(hub, "Llama", "LlamaForCausalLM", GROUPED),
    "transformers-qwen2": partial(hub, "Qwen2", "Qwen2ForCausalLM", GROUPED),
    "transformers-mistral": partial(hub, "Mistral", "MistralForCausalLM", GROUPED),
    "transformers-vit": hub_vit,
    "torch-transformer": transformer,
}


def judged(name: str) -> dict[str, Any]:
    """One row: what every step gave, up to the first that failed."""
    row: dict[str, Any] = {"network": name}
    try:
        for step, value in _steps(name):
            row[step] = value  # noqa: PERF403 - what was done before a failure counts
    except Exception as error:
        row["failed_after"] = list(row)[-1]
        row["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return row


def _steps(name: str) -> Any:
    with seeded(0, torch.device("cpu")):
        model, batch = NETWORKS[name]()
    config = getattr(model, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # a cache is no output to compare
    model.eval()
    small, plan = bz.compress(model, KEEP, [batch])
    small.eval()
    yield "params_kept", plan.kept()
    yield "budget_met", sum(p.numel() for p in small.parameters()) <= KEEP * plan.target["params"]
    yield "left_dense", len(plan.dense)
    found = [y for y in tensors(call(small, batch)) if y.is_floating_point()]
    sum(y.square().mean() for y in found).backward()
    yield "backward", all(p.grad is None or p.grad.isfinite().all() for p in small.parameters())
    with tempfile.TemporaryDirectory() as folder:
        bz.save(Path(folder) / "net", small, plan)
        again = bz.load(Path(folder) / "net", model)
        with torch.no_grad():
            pairs = zip(tensors(call(again, batch)), tensors(call(small, batch)), strict=True)
            yield "same_after_loading", all(bool((a == b).all()) for a, b in pairs)
        for suffix in (".pt2", ".onnx"):
            bz.export(small, Path(folder) / f"net{suffix}", batch, batch="fixed")
            yield suffix[1:], True


def compat() -> dict[str, Any]:
    """All networks, or those that NETWORKS names by a part of the name."""
    wanted = os.environ.get("NETWORKS", "").split()
    names = [n for n in NETWORKS if not wanted or any(part in n for part in wanted)]
    rows = []
    for name in names:
        rows.append(judged(name))
        print(rows[-1], flush=True)
    return {"keep": KEEP, "rows": rows}


BENCHMARKS = {"compat": compat}
