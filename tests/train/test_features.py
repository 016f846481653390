"""A student follows its teacher inside too."""

import pytest
import torch
from torch import nn

import bozzetto as bz
from bozzetto.train.features import captured, feature_loss


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def test_the_loss_is_the_relative_squared_difference() -> None:
    student, teacher, x = network(), network(), torch.randn(5, 6)
    with captured(student, ["0", "1"]) as own, captured(teacher, ["0", "1"]) as theirs:
        student(x)
        teacher(x)
    wanted = [
        (a - b).square().sum() / b.square().sum()
        for a, b in ((student[0](x), teacher[0](x)), (student[:2](x), teacher[:2](x)))
    ]
    torch.testing.assert_close(feature_loss(own, theirs), torch.stack(wanted).mean())
    assert not student[0]._forward_hooks


def test_following_features_brings_them_together() -> None:
    teacher, data = network(), [(torch.randn(32, 6), None) for _ in range(20)]

    def distance(features: list[str]) -> float:
        student = network()
        with torch.no_grad():
            for mine, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                mine.copy_(theirs + 0.3 * torch.randn_like(theirs))
        recipe = bz.Recipe(epochs=3, loss="mse", lr=0.01, features=features, feature_weight=10.0)
        bz.train(student, data, recipe, teacher=teacher)
        x = torch.randn(200, 6)
        return float((student[0](x) - teacher[0](x)).square().mean().detach())

    assert distance(["0"]) < 0.5 * distance([])


@pytest.mark.parametrize(
    ("features", "teacher", "message"),
    [
        (["9"], network(), r"the model has no \['9'\]"),
        (["0"], None, "need a teacher"),
        (["0"], nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)), "feature '0'"),
        (["2"], nn.Sequential(nn.Linear(6, 3)), r"the teacher has no \['2'\]"),
    ],
)
def test_features_that_cannot_be_compared_are_told(
    features: list[str], teacher: nn.Sequential | None, message: str
) -> None:
    recipe = bz.Recipe(epochs=1, loss="mse", features=features)
    with pytest.raises(ValueError, match=message):
        bz.train(network(), [(torch.randn(4, 6), None)], recipe, teacher=teacher)


def test_features_are_a_sequence_and_travel_with_the_recipe() -> None:
    with pytest.raises(TypeError, match="a sequence of paths; got 'layer1'"):
        bz.Recipe(features="layer1")
    recipe = bz.Recipe(features=["layer1"], feature_weight=2.0)
    assert bz.Recipe.from_dict(recipe.to_dict()) == recipe
