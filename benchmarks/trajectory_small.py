"""The trained joint network made smaller, its latency, and what forced modes do to its paths.

Uses the networks and scenes of trajectory.py (which trains what is missing).
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bozzetto as bz
from bozzetto import trajectory as tj
from bozzetto.analysis.latency import latency
from bozzetto.timing import sample_in_turn
from trajectory import DATA, graphs, network, spread, trained

KEPT = (0.5, 0.25, 0.125)
TUNED = 2  # epochs over scenes and their mirror images
CALIBRATION = 160  # scenes
AGENTS = 64


def _fde(model: nn.Module) -> dict[str, float]:
    judge = graphs("test")
    whole = [tj.joined(judge[i : i + 16]) for i in range(0, len(judge), 16)]
    with torch.no_grad():
        found = tj.score(network(model), whole)  # pyright: ignore[reportArgumentType]
    return {"ade": found.ade(), "fde": found.fde(), "macro_f1": found.macro_f1}


def _tuned(small: nn.Module, teach: list[tj.Graph]) -> None:
    """Train on with a smaller rate, in place."""
    loss = tj.Loss(tj.class_weights(teach))
    recipe = replace(tj.RECIPE, epochs=TUNED, lr=1e-3, warmup=0.1, loss=loss)
    bz.train(small, tj.batches(teach, seed=0), recipe)


def compressed() -> dict[str, Any]:
    """FDE of seed 0 at every size, without and with tuning; the target tuned as long, too."""
    teach, target = graphs("train"), trained("joint", 0)[0]
    picked = teach[:: max(1, len(teach) // CALIBRATION)]
    batches = [tj.joined(picked[i : i + 8]).batch() for i in range(0, len(picked), 8)]
    loss = tj.Loss(tj.class_weights(teach))
    total = sum(p.numel() for p in target.parameters())
    rows: list[dict[str, Any]] = [{"keep": 1.0, "params": total} | _fde(target)]
    networks: dict[str, nn.Module] = {"target": target}
    for keep in KEPT:
        small, plan = bz.compress(target, keep, batches, loss=loss)
        row: dict[str, Any] = {"keep": keep, "params": sum(p.numel() for p in small.parameters())}
        row |= {f"{name}_untuned": value for name, value in _fde(small).items()}
        _tuned(small, teach)
        found = _fde(small)
        rows.append(row | found | {"fde_ratio": found["fde"] / rows[0]["fde"]})
        rows[-1]["flops_kept"] = plan.kept("flops")
        networks[f"keep {keep}"] = small
    return {"seed": 0, "tuned_epochs": TUNED, "rows": rows, "latency": _latency(networks)}


def scene_of(agents: int) -> tj.Scene:
    """The first street scene with as many agents as asked."""
    for recording in tj.load(DATA):
        if "Lanker" in recording.name:
            for scene in tj.scenes_of([recording], most=agents):
                if scene.agents == agents:
                    return scene
    raise ValueError(f"no scene has {agents} agents")


def _latency(networks: dict[str, nn.Module]) -> dict[str, Any]:
    """Of a scene of AGENTS agents: the networks in turn, in torch and in onnxruntime."""
    import onnxruntime

    scene = scene_of(AGENTS)
    graph, target = tj.graph_of(scene), networks["target"].eval()
    timed = latency(networks, (graph.inputs, None), repeats=200)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        sessions = {}
        for name, model in networks.items():
            file = Path(folder) / "n.onnx"
            tj.export_onnx(model, file, graph)
            sessions[name] = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        given = dict(zip(("nodes", "edges", "source", "target"), graph.inputs, strict=True))
        arrays = {name: value.numpy() for name, value in given.items()}
        gaps = {}
        for name, session in sessions.items():
            paths = torch.from_numpy(session.run(None, arrays)[0])
            gaps[name] = float((paths - networks[name](*graph.inputs).paths).abs().max())
        calls = {f"onnxruntime, {n}": _call(s, arrays) for n, s in sessions.items()}
        calls |= {"torch": lambda: target(*graph.inputs), "features": lambda: tj.graph_of(scene)}
        samples = sample_in_turn(calls, 100)
    medians = {n: float(torch.tensor(s).median()) for n, s in samples.items()}
    return {
        "agents": AGENTS,
        "edges": len(graph.edges),
        "rows": timed.rows(),
        "milliseconds": {n: 1e3 * m for n, m in medians.items()},
        "onnx_largest_difference_m": gaps,
    }


def _call(session: Any, arrays: dict[str, Any]) -> Any:
    return lambda: session.run(None, arrays)


def forced() -> dict[str, Any]:
    """The simulation study on held-out pairs that met, over the seeds that are trained."""
    judge = graphs("test")[::4]
    found = [tj.study(trained("joint", seed)[0], judge, most=1000) for seed in range(3)]
    rows = [
        {
            "forced": mode,
            "travelled": spread([float(f.travelled[:, m].mean()) for f in found]),
            "shift_at_5s": spread([float(f.shift[:, m, -1].mean()) for f in found]),
        }
        for m, mode in enumerate(tj.MODES)
    ]
    pairs = [len(f.travelled) for f in found]
    return {"pairs": pairs, "sensible": spread([f.sensible for f in found]), "rows": rows}


BENCHMARKS = {"trajectory-compressed": compressed, "trajectory-forced": forced}
