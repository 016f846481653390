"""Sketched linear layers and embeddings under torch's names, for networks written by hand."""

from functools import partial
from typing import Any

import torch
from torch import nn

from bozzetto.nn.parts import Down, Hashed, Lowered, Raised, Up
from bozzetto.nn.sketched import Place, Shape, Sides, Sketched
from bozzetto.sketch import Sketch


class SketchLinear(Sketched):
    """A linear map n → m of k·terms·(n + m) trained values: y = Σ (U1ᵀS1 + S2 U2) x / √(2l) + b.

    Takes (..., n), gives (..., m); arguments after k are torch's and those of `Sketched`.
    """

    plain = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        k: int,
        *,
        bias: bool = True,
        terms: int = 1,
        sides: Sides = "both",
        family: str = "fold",
        seed: int = 0,
        device: Place = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        core = partial(nn.Linear, bias=False, device=device, dtype=dtype)

        def outputs(sketch: Sketch, scale: float) -> nn.Module:
            return Raised(core(in_features, sketch.k), Up(sketch, scale=scale))

        def inputs(sketch: Sketch, scale: float) -> nn.Module:
            return Lowered(Down(sketch, scale=scale), core(sketch.k, out_features))

        super().__init__(
            Shape(in_features, out_features, 1, (), -1),
            k,
            outputs,
            inputs,
            bias=bias,
            terms=terms,
            sides=sides,
            family=family,
            seed=seed,
        )

    @classmethod
    def _geometry(cls, layer: Any) -> dict[str, Any]:
        return {"in_features": layer.in_features, "out_features": layer.out_features}


class SketchEmbedding(Sketched):
    """An embedding of `num_embeddings` rows of width `embedding_dim`, (...) of int64 -> (..., m).

    "out" (default) keeps a table of width k and brings it up by a fixed sketch; "in" hashes the
    vocabulary into k rows; "both" adds the two. An input-side sketch with one non-zero a column
    (`fold`, `count`) costs one look-up; the other families a row of U for every token.

    Raises:
        ValueError: see `Sketched`; for a `padding_idx` outside -n … n - 1.
    """

    plain = nn.Embedding

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        k: int,
        *,
        padding_idx: int | None = None,
        terms: int = 1,
        sides: Sides = "out",
        family: str = "fold",
        seed: int = 0,
        device: Place = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        n = num_embeddings
        if padding_idx is not None:
            if not -n <= padding_idx < n:
                raise ValueError(f"padding_idx lies in {-n} … {n - 1}; got {padding_idx}")
            padding_idx %= n

        def outputs(sketch: Sketch, scale: float) -> nn.Module:
            table = nn.Embedding(n, sketch.k, padding_idx, device=device, dtype=dtype)
            return Raised(table, Up(sketch, scale=scale))

        def inputs(sketch: Sketch, scale: float) -> nn.Module:
            table = torch.empty(sketch.k, embedding_dim, device=device, dtype=dtype)
            return Hashed(sketch, table, padding_idx, scale)

        super().__init__(
            Shape(n, embedding_dim, 1, (), -1),
            k,
            outputs,
            inputs,
            bias=False,
            terms=terms,
            sides=sides,
            family=family,
            seed=seed,
        )

    def reset_parameters(self) -> None:
        """Draw cores like torch draws tables: standard normal, the padding row zero."""
        for parameter in self.parameters():
            nn.init.normal_(parameter)
        for module in self.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])

    @classmethod
    def _geometry(cls, layer: Any) -> dict[str, Any]:
        if layer.max_norm is not None:
            raise ValueError(f"rows of a sketched table are not renormalised; got {layer!r}")
        names = ("num_embeddings", "embedding_dim", "padding_idx")
        return {name: getattr(layer, name) for name in names}
