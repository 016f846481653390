"""The trained joint network made smaller: its error, its latency, and its neurons broken.

Uses the networks and scenes of trajectory.py (which trains what is missing). Small networks that
are tuned are kept in benchmarks/cache/trajectory too, with the page of their report.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto import trajectory as tj
from bozzetto.analysis.crash import crash
from bozzetto.analysis.latency import Latency, latency
from bozzetto.io import read
from bozzetto.report import Section, write_report
from bozzetto.timing import sample_in_turn
from bozzetto.trajectory.graphs import EDGE, NODE
from trajectory import CACHE, DATA, EPOCHS, graphs, network, trained

KEPT = (0.5, 0.25, 0.125)
TUNED = 1  # epochs over scenes and their mirror images
CALIBRATION = 96  # scenes
AGENTS = 64
BROKEN = (0.001, 0.003, 0.01, 0.03, 0.1)  # share of neurons that output zero
FULL = 48, 384  # agents and edges of the scenes whose networks are broken


def _scores(model: nn.Module) -> dict[str, float]:
    judge = graphs("test")
    whole = [tj.joined(judge[i : i + 16]) for i in range(0, len(judge), 16)]
    with torch.no_grad():
        found = tj.score(network(model), whole)  # pyright: ignore[reportArgumentType]
    return {"ade": found.ade(), "fde": found.fde(), "macro_f1": found.macro_f1}


def small(keep: float) -> tuple[nn.Module, bz.Plan, dict[str, float]]:
    """The network of seed 0 compressed and tuned, its plan, and its scores before the tuning."""
    folder, target = CACHE / f"{EPOCHS}-keep-{keep}", trained("joint", 0)[0]
    if not (folder / "untuned.json").exists():
        teach = graphs("train")
        loss = tj.Loss(tj.class_weights(teach))
        made, plan = bz.compress(target, keep, _calibration(teach), loss=loss)
        untuned = {f"{name}_untuned": value for name, value in _scores(made).items()}
        _tune(made, teach)
        bz.save(folder, made, plan, force=True)
        (folder / "untuned.json").write_text(json.dumps(untuned))
    untuned = json.loads((folder / "untuned.json").read_text())
    return bz.load(folder, target), read(folder).plan, untuned


def _tune(model: nn.Module, teach: list[tj.Graph]) -> None:
    loss = tj.Loss(tj.class_weights(teach))
    recipe = replace(tj.RECIPE, epochs=TUNED, lr=1e-3, warmup=0.1, loss=loss)
    bz.train(model, tj.batches(teach, told=tj.TOLD), recipe)


def longer() -> tj.Predictor:
    """The target tuned as long as the small networks are."""
    folder = CACHE / f"{EPOCHS}-longer"
    if not folder.exists():
        target = trained("joint", 0)[0]
        _tune(target, graphs("train"))
        tj.save_predictor(folder, target)
    return tj.load_predictor(folder)


def _calibration(teach: list[tj.Graph]) -> list[Any]:
    picked = teach[:: max(1, len(teach) // CALIBRATION)]
    return [tj.joined(picked[i : i + 8]).batch() for i in range(0, len(picked), 8)]


def compressed() -> dict[str, Any]:
    """FDE of seed 0 at every size, without and with tuning; latency and ONNX of each.

    The ratio is to the target that was tuned as long.
    """
    target = longer()
    untuned = {f"{name}_untuned": value for name, value in _scores(trained("joint", 0)[0]).items()}
    rows: list[dict[str, Any]] = [{"keep": 1.0, "params": _size(target)} | untuned]
    rows[0] |= _scores(target)
    networks: dict[str, nn.Module] = {"target": target}
    for keep in KEPT:
        made, plan, untuned = small(keep)
        found = _scores(made)
        row = {"keep": keep, "params": _size(made), "flops_kept": plan.kept("flops")}
        rows.append(row | untuned | found | {"fde_ratio": found["fde"] / rows[0]["fde"]})
        networks[f"keep {keep}"] = made
    return {"seed": 0, "tuned_epochs": TUNED, "rows": rows, "latency": _latency(networks)}


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def scene_of(agents: int) -> tj.Scene:
    """The first street scene with as many agents as asked."""
    for recording in tj.load(DATA):
        if "Lanker" in recording.name:
            for scene in tj.scenes_of([recording], most=agents):
                if scene.agents == agents:
                    return scene
    raise ValueError(f"no scene has {agents} agents")


def _timed(networks: dict[str, nn.Module], graph: tj.Graph) -> Latency:
    return latency(networks, (graph.inputs, None), repeats=200)


def _latency(networks: dict[str, nn.Module]) -> dict[str, Any]:
    """Of a scene of AGENTS agents: the networks in turn, in torch and in onnxruntime."""
    import onnxruntime

    scene = scene_of(AGENTS)
    graph = tj.graph_of(scene)
    timed = _timed(networks, graph)
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
        samples = sample_in_turn(calls | {"features": lambda: tj.graph_of(scene)}, 100)
    medians = {n: 1e3 * float(torch.tensor(s).median()) for n, s in samples.items()}
    return {
        "agents": AGENTS,
        "edges": len(graph.edges),
        "rows": timed.rows(),
        "milliseconds": medians,
        "onnx_largest_difference_m": gaps,
    }


def _call(session: Any, arrays: dict[str, Any]) -> Any:
    return lambda: session.run(None, arrays)


class Ends(nn.Module):
    """Where agents are after 5 s, for scenes of one size that are each a row of one tensor."""

    def __init__(self, network: nn.Module, agents: int, edges: int) -> None:
        super().__init__()
        self.network, self.agents, self.edges = network, agents, edges

    def forward(self, x: Tensor) -> Tensor:
        """Rows of `row`, (b, f) -> (b, agents, 2), metres."""
        a, e = self.agents, self.edges
        nodes, edges, source, target = x.split([a * NODE, e * EDGE, e, e], 1)
        first = (torch.ones_like(x[:, :1]).cumsum(0) - 1) * a  # number of each scene's first agent
        ends = [(ends + first).long().flatten() for ends in (source, target)]
        output = self.network(nodes.reshape(-1, NODE), edges.reshape(-1, EDGE), *ends)
        return output.paths[:, -1].reshape(-1, a, 2)


def row(graph: tj.Graph) -> Tensor:
    return torch.cat([part.flatten().float() for part in graph.inputs])


def broken() -> dict[str, Any]:
    """How far ends of paths move when hidden neurons output zero, in all agents at once."""
    chosen = [g for g in graphs("test") if (len(g.nodes), len(g.edges)) == FULL][::3]
    x = torch.stack([row(graph) for graph in chosen])
    networks = {"target": trained("joint", 0)[0], "keep 0.25": small(0.25)[0]}
    found = {
        name: crash(Ends(model, *FULL), [x], BROKEN, patterns=64, rows=32)
        for name, model in networks.items()
    }
    keys = ("p", "error", "error_low", "error_high")
    rows = [
        {"network": name} | {key: line[key] for key in keys}
        for name, report in found.items()
        for line in report.rows()
    ]
    plan = small(0.25)[1]
    timed = _timed(networks, tj.graph_of(scene_of(AGENTS)))
    sections = [Section("Plan at a quarter", plan), Section("Latency, 64 agents", timed)]
    sections += [Section(f"Broken neurons: {name}", report) for name, report in found.items()]
    page = write_report(CACHE / "report.html", sections, title="Trajectories at a quarter")
    return {"scenes": len(x), "agents": FULL[0], "rows": rows, "page": page.name}


BENCHMARKS = {"trajectory-compressed": compressed, "trajectory-crash": broken}
