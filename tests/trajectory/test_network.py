import math

import numpy as np
import pytest
import torch
from drawn import crossing, scene_of, straight, track
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.trajectory import (
    GOING,
    UNKNOWN,
    YIELDING,
    Graph,
    Loss,
    Output,
    Shape,
    batched,
    class_weights,
    constant_turn,
    constant_velocity,
    fit,
    fresh,
    graph_of,
    joined,
    load_predictor,
    mirrored,
    save_predictor,
)
from bozzetto.trajectory.graphs import EDGE, NEIGHBOURS, NODE, REACH
from bozzetto.trajectory.scenes import FUTURE

KINDS = pytest.mark.parametrize("kind", ["joint", "graph", "alone"])


def several():
    """A graph of scenes with two, three and one agents."""
    three = scene_of(*(straight(str(n), (12 * n, 4 * n), (8 + n, n)) for n in range(3)))
    scenes = [crossing(), three, scene_of(straight("one", (0, 0), (5, 5)))]
    return [graph_of(scene) for scene in scenes]


def moved(scene, angle, shift):
    """The scene elsewhere: turned around the origin and shifted."""
    from dataclasses import replace

    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s], [s, c]]).T

    def there(xy):
        return xy @ turn + shift

    return replace(
        scene,
        past=there(scene.past),
        future=there(scene.future),
        lane=there(scene.lane),
        heading=scene.heading + angle,
    )


def test_features_do_not_depend_on_where_a_scene_is():
    places = enumerate([(0, 0), (11, 5), (29, 4), (50, 17)])  # no two distances are equal
    scene = scene_of(*(straight(str(n), xy, (8 + n, n)) for n, xy in places))
    here, there = graph_of(scene), graph_of(moved(scene, 1.0, np.array([300.0, -70.0])))
    for name in ("nodes", "edges", "future"):
        assert_close(getattr(there, name), getattr(here, name), atol=1e-4, rtol=1e-5)
    assert_close(there.modes, here.modes)


def test_features_hold_no_future():
    straight_on = straight("a", (0, 0), (10, 0))
    stops = track("a", lambda t: 10 * np.minimum(t, 0), lambda t: 0 * t)
    one, other = graph_of(scene_of(straight_on)), graph_of(scene_of(stops))
    assert_close(one.nodes, other.nodes)
    assert (one.future - other.future).abs().max() > 40


def test_edges_come_from_the_nearest_agents_in_reach():
    tracks = [straight(str(n), (5.0 * n, 0), (1, 0)) for n in range(NEIGHBOURS + 3)]
    far = straight("far", (5.0 * (NEIGHBOURS + 2) + REACH + 1, 0), (1, 0))
    graph = graph_of(scene_of(*tracks, far))
    into = graph.source[graph.target == 0].tolist()
    assert sorted(into) == list(range(1, NEIGHBOURS + 1))
    assert len(tracks) not in graph.source.tolist() + graph.target.tolist()


def test_a_leader_is_ahead_and_a_follower_behind():
    lead, follow = straight("lead", (20, 0), (10, 0)), straight("follow", (0, 0), (10, 0))
    graph = graph_of(scene_of(lead, follow))
    along = dict(zip(graph.target.tolist(), graph.edges[:, 9].tolist(), strict=True))
    # Tens of metres from the target to the source, along the target's lane.
    assert along == pytest.approx({1: 2.0, 0: -2.0})


@KINDS
def test_joined_scenes_are_predicted_as_if_alone(kind):
    graphs, predictor = several(), fresh(Shape(kind)).eval()
    whole = predictor(*joined(graphs).inputs)
    parts = [predictor(*graph.inputs) for graph in graphs]
    assert_close(whole.paths, torch.cat([part.paths for part in parts]))
    assert_close(whole.logits, torch.cat([part.logits for part in parts]))


@KINDS
def test_a_single_agent_is_predicted(kind):
    graph = graph_of(scene_of(straight("one", (0, 0), (5, 5))))
    output = fresh(Shape(kind))(*graph.inputs)
    assert (output.paths.shape, output.logits.shape) == ((1, FUTURE, 2), (0, 3))
    assert output.paths.isfinite().all()


@KINDS
def test_the_order_of_agents_and_edges_does_not_matter(kind):
    graph = joined(several())
    predictor = fresh(Shape(kind)).eval()
    plain = predictor(*graph.inputs)
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randperm(len(graph.nodes), generator=generator)
    edges = torch.randperm(len(graph.edges), generator=generator)
    back = nodes.argsort()
    mixed = predictor(
        graph.nodes[nodes],
        graph.edges[edges],
        back[graph.source[edges]],
        back[graph.target[edges]],
    )
    assert_close(mixed.paths, plain.paths[nodes], atol=1e-5, rtol=1e-5)
    assert_close(mixed.logits, plain.logits[edges], atol=1e-5, rtol=1e-5)


def test_only_the_network_alone_does_not_see_the_others():
    two = scene_of(straight("a", (0, 0), (10, 0)), straight("b", (15, 0), (2, 0)))
    one = scene_of(straight("a", (0, 0), (10, 0)))
    for kind, same in [("alone", True), ("graph", False), ("joint", False)]:
        predictor = fresh(Shape(kind)).eval()
        seen, alone = (predictor(*graph_of(scene).inputs).paths[0] for scene in (two, one))
        assert bool((seen - alone).abs().max() < 1e-5) == same


def test_weights_come_from_the_seed_alone():
    before = torch.get_rng_state()
    one, same, other = fresh(seed=1), fresh(seed=1), fresh(seed=2)
    assert_close(torch.get_rng_state(), before)
    assert_close(one.state_dict(), same.state_dict())
    gap = one.decoder[0].weight - other.decoder[0].weight
    assert bool(gap.abs().max() > 0.01)


def test_there_are_fewer_than_a_quarter_of_a_million_values():
    assert sum(p.numel() for p in fresh().parameters()) <= 250_000


@pytest.mark.parametrize(("shape", "what"), [({"kind": "x"}, "got 'x'"), ({"width": 0}, "got 0")])
def test_a_shape_that_cannot_be_is_refused(shape, what):
    with pytest.raises(ValueError, match=what):
        Shape(**shape)


def test_a_network_comes_back_from_its_folder(tmp_path):
    predictor = fresh(Shape("joint", width=16), seed=3).eval()
    save_predictor(tmp_path / "n", predictor)
    again, graph = load_predictor(tmp_path / "n"), graph_of(crossing())
    assert again.shape == predictor.shape
    assert_close(again(*graph.inputs).paths, predictor(*graph.inputs).paths, atol=0, rtol=0)


def test_a_folder_without_a_network_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no predictor\.json"):
        load_predictor(tmp_path)
    save_predictor(tmp_path, fresh(Shape(width=16)))
    (tmp_path / "predictor.json").write_text('{"kind": "joint", "width": 8}')
    with pytest.raises(ValueError, match="no network of this version"):
        load_predictor(tmp_path)


def test_constant_velocity_is_exact_for_straight_motion():
    graph = graph_of(scene_of(straight("a", (3, 1), (7, -2))))
    assert_close(constant_velocity(graph).paths, graph.future, atol=1e-4, rtol=0)


def test_constant_turn_is_exact_on_a_circle():
    circle = track("c", lambda t: 30 * np.sin(t / 5), lambda t: 30 - 30 * np.cos(t / 5))
    graph = graph_of(scene_of(circle))
    assert_close(constant_turn(graph).paths, graph.future, atol=1e-3, rtol=0)
    assert (constant_velocity(graph).paths - graph.future).abs().max() > 5


def test_the_loss_is_the_mean_distance_and_the_weighted_cross_entropy():
    graph = joined(several())
    future, known = graph.future, graph.known
    known[0, 5:] = False
    generator = torch.Generator().manual_seed(0)
    paths = future + torch.randn(future.shape, generator=generator)
    logits = torch.randn(len(graph.edges), 3, generator=generator)
    modes = graph.modes.clone()
    modes[0] = UNKNOWN
    target = {"future": future, "known": known, "modes": modes}
    weights = (0.5, 1.0, 1.5)
    far = [
        math.hypot(*(paths[n, t] - future[n, t]).tolist())
        for n in range(len(future))
        for t in range(FUTURE)
        if known[n, t]
    ]
    each = [
        (weights[m], -float(row.log_softmax(-1)[m]))
        for row, m in zip(logits, modes.tolist(), strict=True)
        if m != UNKNOWN
    ]
    entropy = sum(w * e for w, e in each) / sum(w for w, _ in each)
    found = Loss(weights, share=0.5)(Output(paths, logits), target)
    assert float(found) == pytest.approx(np.mean(far) + 0.5 * entropy, rel=1e-4)


def test_a_batch_without_known_modes_has_a_finite_loss_and_gradient():
    graph = graph_of(crossing(0, 0))
    assert set(graph.modes.tolist()) == {UNKNOWN}
    predictor = fresh()
    inputs, target = graph.batch()
    loss = Loss()(predictor(*inputs), target)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in predictor.parameters() if p.grad is not None)


def test_rare_modes_weigh_more():
    weights = class_weights([graph_of(crossing())])
    assert weights[GOING] == weights[YIELDING]
    assert sum(weights) == pytest.approx(3)


@KINDS
def test_training_fits_a_few_scenes(kind):
    scenes = [crossing(0, 15), crossing(15, 0), crossing(3, 30)]
    graphs = [graph_of(s) for scene in scenes for s in (scene, mirrored(scene))]
    predictor = fresh(Shape(kind, width=16))
    recipe = bz.Recipe(epochs=60, lr=1e-2, schedule="onecycle", warmup=0.2, clip=5.0)
    (inputs, target), far = joined(graphs).batch(), Loss(share=0.0)
    before = far(predictor(*inputs), target)
    fit(predictor, graphs, recipe, size=2)
    output = predictor.eval()(*inputs)
    assert far(output, target) < 0.1 * before
    if kind == "joint":
        assert_close(output.logits.argmax(-1), target["modes"])


def test_training_sees_half_of_the_edges_and_at_the_end_all():
    predictor, seen = fresh(Shape(width=8)), []
    with predictor.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[1]))):
        fit(predictor, [graph_of(crossing())] * 200, bz.Recipe(epochs=8), size=200)
    assert seen[6:] == [400, 400]
    assert all(abs(n - 200) < 5 * (400 * 0.5 * 0.5) ** 0.5 for n in seen[:6])


def test_training_is_the_same_from_the_same_seed():
    graphs = [graph_of(crossing(0, 15)), graph_of(crossing(9, 0))]
    ends = []
    for _ in range(2):
        predictor = fresh(Shape(width=16), seed=5)
        fit(predictor, graphs, bz.Recipe(epochs=2, seed=5), size=1)
        ends.append(predictor.state_dict())
    assert_close(*ends, atol=0, rtol=0)


def test_training_without_scenes_says_so():
    with pytest.raises(ValueError, match="needs scenes; got none"):
        fit(fresh(), [])


def test_graphs_are_joined_in_order():
    graphs = several()
    sizes = [len(graph.nodes) for graph in batched(graphs, 2)]
    assert sizes == [5, 1]
    assert isinstance(graphs[0], Graph)
    assert (graphs[0].nodes.shape[1], graphs[0].edges.shape[1]) == (NODE, EDGE)
