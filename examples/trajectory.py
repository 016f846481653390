"""Predict traffic: train on a minute of real and simulated roads, shrink the network, show scenes.

python examples/trajectory.py [RECORDINGS] [PAGE]: half a CPU-minute on the driving data's fixture.
"""

import sys
from dataclasses import replace
from pathlib import Path

import bozzetto as bz
from bozzetto import trajectory as tj

FIXTURE = Path(__file__).parents[1] / ".." / "shared" / "data" / "driving" / "fixture.npz"


def main(data: Path = FIXTURE, page: Path = Path("scenes.html")) -> None:
    recordings = tj.cut(tj.load(data), seconds=20)
    chosen = tj.split(recordings, test=["*/2"])  # the last third of each place
    scenes = list(tj.scenes_of(chosen.train))
    teach = [tj.graph_of(s) for scene in scenes for s in (scene, tj.mirrored(scene))]
    judge = [tj.graph_of(scene) for scene in tj.scenes_of(chosen.test)]

    predictor = tj.fresh(tj.Shape(width=32), seed=0)
    tj.fit(predictor, teach, replace(tj.RECIPE, epochs=8))
    loss = tj.Loss(tj.class_weights(teach))
    batches = list(tj.batches(teach[:80], shuffle=False))
    small, plan = bz.compress(predictor.eval(), 0.5, batches, loss=loss)
    bz.train(small, tj.batches(teach), replace(tj.RECIPE, epochs=1, lr=1e-3, loss=loss))

    ways = tj.BASELINES | {
        "joint network": lambda graph: predictor(*graph.inputs),
        "half of it": lambda graph: small.eval()(*graph.inputs),
    }
    for name, predict in ways.items():
        found = tj.score(predict, judge)
        print(f"{name:20} {found.fde():5.2f} m off after 5 s")
    print(f"kept {plan.kept('params'):.0%} of the values")
    lanes = {recording.name: recording.lanes for recording in chosen.test}
    shown = list(tj.scenes_of(chosen.test, every=10.0))
    views = [tj.view(s, lanes[s.recording], lambda g: predictor(*g.inputs)) for s in shown]
    print("scenes:", tj.write_page(page, views, title="Predicted scenes"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
