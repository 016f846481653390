"""The network as ONNX, for scenes of any number of agents and edges."""

import copy
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from bozzetto.trajectory.graphs import Graph

__all__ = ["export_onnx"]

_AGENTS, _EDGES = "agents", "edges"


def export_onnx(network: nn.Module, path: Path, graph: Graph) -> None:
    """Write a network, full or compressed, whose inputs and outputs have free numbers of rows.

    Inputs are `nodes`, `edges`, `source`, `target` as of `Predictor`, outputs `paths`, `logits`.

    Args:
        network: what takes a graph's inputs; left as it is.
        path: file to write, .onnx.
        graph: an example with two agents and two edges or more, to trace it with.

    Raises:
        ImportError: if onnx or onnxscript is missing, saying how to install them.
        ValueError: if the example is too small.
    """
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('ONNX needs onnxscript: pip install "bozzetto[onnx]"') from error
    if len(graph.nodes) < 2 or len(graph.edges) < 2:
        came = f"{len(graph.nodes)} and {len(graph.edges)}"
        raise ValueError(f"the example needs two agents and two edges; got {came}")
    agents, edges = {0: Dim(_AGENTS)}, {0: Dim(_EDGES)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about itself
        torch.onnx.export(
            copy.deepcopy(network).eval(),
            graph.inputs,
            path,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["nodes", "edges", "source", "target"],
            output_names=["paths", "logits"],
            dynamic_shapes=(agents, edges, edges, edges),
        )
