import numpy as np
import pytest
import torch
from drawn import crossing, scene_of, straight

import bozzetto as bz
from bozzetto.trajectory import Loss, Shape, export_onnx, fresh, graph_of, joined


def scenes():
    """With two, nine and one agents, and all of them joined."""
    nine = scene_of(*(straight(str(n), (9.0 * n, n * n), (8 + n, n)) for n in range(9)))
    found = [crossing(), nine, scene_of(straight("one", (0, 0), (5, 5)))]
    graphs = [graph_of(scene) for scene in found]
    return [*graphs, joined(graphs)]


def compressed(network, graphs):
    made, _ = bz.compress(network, 0.4, [joined(graphs).batch()], loss=Loss())
    return made


@pytest.mark.parametrize("edges", [True, False])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("kind", ["joint", "alone"])
def test_onnx_takes_any_number_of_agents_and_edges(tmp_path, kind, small, edges):
    pytest.importorskip("onnxscript")
    newest = None if edges or kind == "alone" else "1.32"  # older ones plan no memory for none
    runtime = pytest.importorskip("onnxruntime", newest)
    graphs, network = scenes(), fresh(Shape(kind, width=16), seed=1).eval()
    if small:
        network = compressed(network, graphs)
    export_onnx(network.train(), tmp_path / "n.onnx", graphs[1])
    assert all(module.training for module in network.modules())
    network.eval()
    session = runtime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    taken = [i.name for i in session.get_inputs()]
    for graph in [g for g in graphs if bool(len(g.edges)) is edges]:
        with torch.no_grad():
            own = network(*graph.inputs)
        given = dict(zip(("nodes", "edges", "source", "target"), graph.inputs, strict=True))
        paths, logits = session.run(None, {name: given[name].numpy() for name in taken})
        bound = 100 * torch.finfo(torch.float32).eps  # sums of some hundred terms
        np.testing.assert_allclose(paths, own.paths, atol=bound * float(own.paths.abs().max()))
        np.testing.assert_allclose(logits, own.logits, atol=bound)


def test_an_example_that_is_too_small_is_refused(tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match="two agents and two edges; got 1 and 0"):
        export_onnx(fresh(Shape(width=8)), tmp_path / "n.onnx", scenes()[2])


def test_without_onnx_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"bozzetto\[onnx\]"):
        export_onnx(fresh(Shape(width=8)), tmp_path / "n.onnx", scenes()[0])


def test_a_compressed_network_keeps_its_interface_and_its_budget():
    graphs, network = scenes(), fresh(Shape(width=32)).eval()
    made, plan = bz.compress(network, 0.5, [joined(graphs).batch()], loss=Loss())
    total, kept = (sum(p.numel() for p in n.parameters()) for n in (network, made))
    assert kept <= 0.5 * total
    assert plan.kept("params") == pytest.approx(kept / total)
    output = made(*graphs[1].inputs)
    assert output.paths.shape == network(*graphs[1].inputs).paths.shape
