"""Exported files: they compute what the network does, and hold no more than they must."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bozzetto as bz
from bozzetto.export import packed
from bozzetto.sketch import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # inside torch.export

SUFFIXES = [".onnx", ".pt2"]
ALIGNED = 64  # bytes to which the archive of a .pt2 file pads every tensor


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 16), nn.Linear(24, 16)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"sum": self.first(a) + self.second(b)}


def dense(width: int = 256) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)).eval()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def answers(path: Path, *inputs: Tensor) -> Tensor:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(*inputs)
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_takes_other_batches_and_answers_like_the_network(tmp_path: Path, suffix: str):
    small, _ = bz.sketch(nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 8, 3)), 0.5)
    path = bz.export(small.eval(), tmp_path / f"net{suffix}", draw(1, 3, 9, 9))
    x = draw(7, 3, 9, 9)
    torch.testing.assert_close(answers(path, x), small(x).detach())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_named_inputs_and_outputs_in_mappings(tmp_path: Path, suffix: str):
    model = TwoInputs().eval()
    batch = {"a": draw(3, 24), "b": draw(3, 24) + 1, "labels": torch.zeros(3)}
    path = bz.export(model, tmp_path / f"net{suffix}", batch)
    if suffix == ".onnx":
        found = answers(path, batch["a"], batch["b"])
        torch.testing.assert_close(found, model(batch["a"], batch["b"])["sum"].detach())


def test_named_inputs_keep_their_names_in_any_order(tmp_path: Path):
    model, batch = TwoInputs().eval(), {"b": draw(3, 24) + 1, "a": draw(3, 24)}
    path = bz.export(model, tmp_path / "net.onnx", batch)
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    (found,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
    torch.testing.assert_close(torch.from_numpy(found), model(**batch)["sum"].detach())


class Hiding(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y.masked_fill(y < y.mean(), float("-inf"))


def test_infinite_outputs_are_compared_as_they_are(tmp_path: Path):
    model, x = Hiding(24, 16).eval(), draw(3, 24)
    path = bz.export(model, tmp_path / "net.pt2", x)
    torch.testing.assert_close(answers(path, x), model(x).detach())


def test_a_fixed_batch_is_refused_another_size(tmp_path: Path):
    path = bz.export(dense(), tmp_path / "net.onnx", draw(3, 256), batch="fixed")
    with pytest.raises(Exception, match="Got: 4 Expected: 3"):
        answers(path, draw(4, 256))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_network_computes_the_very_same(family: str):
    small, _ = bz.sketch(dense(), 0.5, sides="in", family=family)
    torch.testing.assert_close(packed(small)(draw(5, 256)), small(draw(5, 256)), rtol=0, atol=0)


def growth(path: Path, made: list[tuple[nn.Module, int]]) -> tuple[int, int]:
    """Bytes that the file of a wider network of the same form has more, and that its values have.

    The graph is the same, so the difference is what the values take: exactly, but for padding and
    the digits of sizes, which come to less than `ALIGNED` for every tensor and operation.
    """
    sizes = []
    for model, width in made:
        bz.export(model.eval(), path, draw(3, width))
        sizes.append(path.stat().st_size)
    trained = [4 * sum(p.numel() for p in model.parameters()) for model, _ in made]
    slack = ALIGNED * sum(1 for _ in made[1][0].modules()) * 4
    return sizes[1] - sizes[0], trained[1] - trained[0] + slack


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("family", ["fold", "sign"])
def test_random_signs_cost_a_file_a_bit_each(tmp_path: Path, suffix: str, family: str):
    widths = 128, 256
    made = [(bz.sketch(dense(w), 0.5, sides="in", family=family)[0], w) for w in widths]
    more, values = growth(tmp_path / f"net{suffix}", made)
    signs = [2 * w * w / 2 for w in widths]  # of two sketches to half of the width, all held
    assert more <= values + (signs[1] - signs[0]) / 8


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_chosen_signs_stay_bits_in_a_file(tmp_path: Path, suffix: str):
    made, held = [], []
    for width in (128, 256):
        budget = bz.Budget(bytes=0.2)
        small, plan = bz.compress(dense(width), budget, [draw(64, width)], methods="signs")
        made.append((small, width))
        held.append(plan.small["bytes"] - 4 * plan.small["params"])
    more, values = growth(tmp_path / f"net{suffix}", made)
    assert more <= values + held[1] - held[0]
    assert held[1] - held[0] > 1000  # of signs, in bits


def test_a_file_tells_nothing_of_the_machine_that_wrote_it(tmp_path: Path):
    path = bz.export(dense(), tmp_path / "net.onnx", draw(3, 256))
    assert b"site-packages" not in path.read_bytes()


def test_the_network_is_not_changed(tmp_path: Path):
    small, _ = bz.sketch(dense(), 0.5, sides="in", family="sign")
    before = str(small), {name: value.clone() for name, value in small.named_buffers()}
    bz.export(small.eval(), tmp_path / "net.pt2", draw(3, 256))
    assert str(small) == before[0]
    assert all(p.requires_grad for p in small.parameters())
    torch.testing.assert_close(dict(small.named_buffers()), before[1], rtol=0, atol=0)


TINY = nn.Linear(2, 2).eval()


@pytest.mark.parametrize(
    ("model", "name", "example", "options", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2).eval(), nn.ReLU()), "n.pt2", draw(2, 2), {},
         r"evaluation mode.*'1'"),
        (nn.Linear(2, 2, device="meta").eval(), "n.pt2", draw(2, 2), {}, r"CPU; got {'meta'}"),
        (TINY, "n.pt2", draw(2, 2).to("meta"), {}, r"CPU; got {'meta'}"),
        (TINY, "n.onnx", draw(2, 2), {"opset": 11}, "opset >= 18; got 11"),
        (TINY, "n.tflite", draw(2, 2), {}, r"\.onnx or \.pt2; got 'n\.tflite'"),
        (TINY, "n.pt2", draw(2, 2), {"batch": "many"}, "'any' or 'fixed'; got 'many'"),
    ],
    ids=["training", "device", "example's device", "opset", "suffix", "batch"],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_and_nothing_written(
    tmp_path: Path, model: nn.Module, name: str, example: Tensor, options: dict, message: str
):
    with pytest.raises(ValueError, match=message):
        bz.export(model, tmp_path / name, example, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_torch_cannot_export_leaves_nothing(tmp_path: Path):
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(RuntimeError, match="torch cannot export"):
        bz.export(Asking().eval(), tmp_path / "n.onnx", draw(2, 2))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_otherwise_is_not_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = bz.export(nn.Linear(2, 2).eval(), tmp_path / "n.pt2", draw(2, 2))
    before = path.read_bytes()
    monkeypatch.setattr(sys.modules["bozzetto.export"], "packed", lambda _: nn.Linear(2, 2).eval())
    with pytest.raises(RuntimeError, match="differs from its origin"):
        bz.export(nn.Linear(2, 2).eval(), path, draw(2, 2))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["n.pt2"]


def test_a_small_network_compiles_whole():
    small, _ = bz.sketch(dense(), 0.5)
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(draw(3, 256)), small(draw(3, 256)))
