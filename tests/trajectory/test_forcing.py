import math

import pytest
import torch
from drawn import crossing, scene_of, straight
from torch.testing import assert_close

from bozzetto.trajectory import (
    GOING,
    UNKNOWN,
    YIELDING,
    Forced,
    Shape,
    batches,
    force,
    fresh,
    graph_of,
    study,
)


def test_modes_are_told_to_the_network_by_chance():
    graphs = [graph_of(crossing(0, 15))] * 600

    def told(share):
        return torch.cat([inputs[4] for inputs, _ in batches(graphs, size=8, told=share)])

    assert all(len(inputs) == 4 for inputs, _ in batches(graphs))
    assert set(told(1.0).tolist()) == {GOING, YIELDING}
    share = (told(0.3) != UNKNOWN).double().mean()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 1200) ** 0.5


def test_given_modes_change_paths_and_not_logits():
    graph, predictor = graph_of(crossing()), fresh().eval()
    own = predictor(*graph.inputs)
    same = predictor(*graph.inputs, torch.tensor([UNKNOWN, UNKNOWN]))
    other = predictor(*graph.inputs, torch.tensor([GOING, GOING]))
    assert_close(same.paths, own.paths)
    assert_close(other.logits, own.logits)
    assert (other.paths - own.paths).abs().max() > 1e-4


def test_forcing_one_mode_forces_its_counterpart():
    graph, predictor = graph_of(crossing()), fresh().eval()
    edge = int((graph.target == 0).nonzero()[0])
    modes = torch.tensor([YIELDING, YIELDING])
    modes[edge] = GOING
    assert_close(force(predictor, graph, edge, GOING).paths, predictor(*graph.inputs, modes).paths)


def test_the_study_needs_modes_and_pairs():
    with pytest.raises(ValueError, match="kind='graph'"):
        study(fresh(Shape("graph")), [])
    with pytest.raises(ValueError, match="there are none"):
        study(fresh(), [graph_of(scene_of(straight("a", (0, 0), (1, 0))))])


def test_the_study_measures_every_mode_of_every_pair():
    found = study(fresh(Shape(width=16)).eval(), [graph_of(crossing())] * 3, most=5)
    assert found.travelled.shape == (5, 3)
    assert [row["forced"] for row in found.rows()] == ["ignoring", "going", "yielding"]
    assert_close(found.own.sum(1), torch.ones(5))


def test_sensible_is_the_share_of_pairs_that_come_less_far_when_they_yield():
    travelled = torch.tensor([[5.0, 6.0, 4.0], [5.0, 6.0, 7.0], [5.0, 6.0, 5.9], [5.0, 6.0, 6.1]])
    own = torch.tensor([[0.2, 0.4, 0.4], [0.2, 0.7, 0.1], [0.9, 0.05, 0.05], [0.0, 1.0, 0.0]])
    found = Forced(travelled, torch.zeros(4, 3, 25), own, torch.tensor([1, 2, 1, 2]))
    assert found.open(0.1).tolist() == [True, True, False, False]
    assert [found.sensible(c) for c in (None, found.open(0.3), found.labels == 2)] == [
        0.5,
        1.0,
        0.0,
    ]
    assert math.isnan(found.sensible(found.open(0.5)))


def test_the_study_may_be_of_pairs_that_cross_only():
    follows = [straight("a", (0, 0), (10, 0)), straight("b", (12, 0), (10, 0))]
    graphs = [graph_of(crossing()), graph_of(scene_of(*follows))]
    network = fresh(Shape(width=16)).eval()
    assert [len(study(network, graphs, cosine=c).labels) for c in (1.0, 0.7)] == [4, 2]
