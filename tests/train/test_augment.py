"""Augmented images are windows of the padded ones, drawn anew, and come again when resumed."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from bozzetto.train import Augmented, Recipe, train

X = torch.rand(40, 3, 6, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


def loader() -> Augmented:
    data = TensorDataset(X, Y)
    return Augmented(DataLoader(data, batch_size=8, shuffle=True), shift=2)


def views(image: Tensor, shift: int) -> list[Tensor]:
    """Every window of the padded image, and its mirror image."""
    h, w = image.shape[1:]
    padded = F.pad(image, (shift,) * 4)
    windows = [
        padded[:, top : top + h, left : left + w]
        for top in range(2 * shift + 1)
        for left in range(2 * shift + 1)
    ]
    return windows + [window.flip(-1) for window in windows]


def test_every_view_is_a_window_of_the_padded_image_and_all_of_them_come() -> None:
    many, seen = X[:1].expand(3000, -1, -1, -1), set[int]()
    possible = torch.stack(views(X[0], 1))  # (18, c, h, w)
    for view in Augmented([], shift=1).images(many):
        (which,) = torch.nonzero((possible == view).flatten(1).all(1)).flatten().tolist()
        seen.add(which)
    assert seen == set(range(18))  # one is missed with a chance of 18 (17/18)^3000 < 1e-70


def test_without_shift_and_mirror_images_stay() -> None:
    assert_close(Augmented([], shift=0, mirror=False).images(X), X, rtol=0, atol=0)


def test_targets_and_length_are_the_loaders_and_passes_differ() -> None:
    batches = Augmented([(X[:8], Y[:8]), (X[8:], Y[8:])])
    first, second = [*batches], [*batches]
    assert len(batches) == 2
    for (x, y), (other, same), wanted in zip(first, second, (Y[:8], Y[8:]), strict=True):
        assert_close(y, wanted)
        assert_close(same, wanted)
        assert not bool((x == other).all())


def test_images_alone_are_augmented_too() -> None:
    (x,) = Augmented([X], seed=1)
    assert_close(x, Augmented([], seed=1).images(X), rtol=0, atol=0)


class Stop(Exception):
    pass


def test_a_resumed_run_sees_the_same_views(tmp_path) -> None:
    def net() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(90, 3))

    def stop(progress) -> None:
        if progress.step == 7:
            raise Stop

    recipe, path = Recipe(epochs=3, lr=0.01), tmp_path / "run"
    with pytest.raises(Stop):
        train(net(), loader(), recipe, checkpoint=path, checkpoint_every=3, callbacks=[stop])
    resumed, whole = net(), net()
    history = train(resumed, loader(), recipe, checkpoint=path)
    assert history == train(whole, loader(), recipe)
    assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_what_cannot_be_augmented_is_refused() -> None:
    with pytest.raises(ValueError, match="shift needs to be >= 0; got -1"):
        Augmented([], shift=-1)
    with pytest.raises(ValueError, match=r"the shape \(b, c, h, w\); got \(40, 90\)"):
        next(iter(Augmented([X.flatten(1)])))
    with pytest.raises(ValueError, match=r"the shape \(b, c, h, w\); got str"):
        next(iter(Augmented([{"x": X}])))
