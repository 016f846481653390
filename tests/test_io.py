import json
from pathlib import Path

import pytest
import torch
from torch import nn

import bozzetto as bz
from bozzetto.card import model_card
from bozzetto.io import InvalidFolder


def target() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small, plan = bz.sketch(target(), 0.3)
    return bz.save(tmp_path / "out", small, plan, source="some.module:build")


def test_the_file_shrinks_like_the_trained_values(tmp_path: Path) -> None:
    dense = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(4)))
    small, plan = bz.sketch(dense, 1 / 8)
    bz.save(tmp_path / "small", small, plan)
    whole = sum(p.numel() for p in dense.parameters()) * 4
    assert whole / (tmp_path / "small" / "model.safetensors").stat().st_size >= 7.8


def test_an_output_folder_that_is_not_empty_is_kept(saved: Path) -> None:
    small, plan = bz.sketch(target(), 0.5)
    before = (saved / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="is not empty"):
        bz.save(saved, small, plan)
    assert (saved / "model.safetensors").read_bytes() == before
    bz.save(saved, small, plan, force=True)
    assert (saved / "model.safetensors").read_bytes() != before


def test_force_does_not_touch_a_folder_with_other_files(saved: Path) -> None:
    (saved / "thesis.tex").write_text("years of work")
    small, plan = bz.sketch(target(), 0.5)
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        bz.save(saved, small, plan, force=True)
    assert (saved / "thesis.tex").read_text() == "years of work"


def test_a_save_that_fails_leaves_the_old_network(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, plan = bz.sketch(target(), 0.5)
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("bozzetto.io._flush", full)
    with pytest.raises(OSError, match="No space"):
        bz.save(saved, small, plan, force=True)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["out"]


def test_a_truncated_folder_is_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InvalidFolder, match="truncated or was changed"):
        bz.load(saved, target())


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFolder, match=r"has no plan\.json"):
        bz.load(tmp_path, target())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "a size is at least 1"),
        ({"size": "9"}, "needs"),
        ({"method": "os.system"}, "a method is one of"),
        ({"options": {"family": "fold", "run": 1}}, "does not take"),
    ],
)
def test_a_tampered_plan_is_refused(saved: Path, change: dict[str, object], message: str) -> None:
    data = json.loads((saved / "plan.json").read_text())
    data["plan"]["choices"]["0"] |= change
    (saved / "plan.json").write_text(json.dumps(data))
    with pytest.raises(InvalidFolder, match=message):
        bz.load(saved, target())


def test_damaged_json_is_refused(saved: Path) -> None:
    (saved / "plan.json").write_text("{")
    with pytest.raises(InvalidFolder, match="damaged"):
        bz.load(saved, target())


def test_loading_without_the_architecture_says_what_is_needed(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"model=.*'some\.module:build'"):
        bz.load(saved)


def test_another_architecture_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="another model"):
        bz.load(saved, nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64)))
    with pytest.raises(ValueError, match="another model"):
        bz.load(saved, nn.Linear(3, 3))


def test_weights_of_another_type_are_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"torch\.float32.*torch\.float64"):
        bz.load(saved, target().to(torch.float64))


@pytest.mark.parametrize("license", ["", "MIT License", "apache-2.0\nbase_model: x"])
def test_a_card_needs_a_licence(license: str) -> None:
    _, plan = bz.sketch(target(), 0.3)
    with pytest.raises(ValueError, match="needs the licence of the source model"):
        model_card(plan, license=license)


def test_a_base_that_is_no_name_is_refused() -> None:
    _, plan = bz.sketch(target(), 0.3)
    with pytest.raises(ValueError, match="a base is the name of a model"):
        model_card(plan, license="mit", base="a/b\nlicense: other")


@pytest.mark.parametrize("card", ["", "# A network", "---\ntags: [x]\n---\nlicense: mit"])
def test_a_card_without_a_licence_is_not_written(tmp_path: Path, card: str) -> None:
    small, plan = bz.sketch(target(), 0.3)
    with pytest.raises(ValueError, match="front matter that names a licence"):
        bz.save(tmp_path / "small", small, plan, card=card)
    assert list(tmp_path.iterdir()) == []


def test_a_card_says_the_plan_in_words_and_escapes_what_it_shows(tmp_path: Path) -> None:
    class Result:
        def rows(self) -> list[dict[str, object]]:
            return [{"layer": "a|b <b>", "error": 0.25, "unused": None}]

        def figure(self, ax: object) -> None:
            raise AssertionError("a card has no plots")

    small, plan = bz.sketch(target(), 0.3)
    card = model_card(plan, license="unknown", results={"Errors": Result()})
    folder = bz.save(tmp_path / "small", small, plan, card=card)
    text = (folder / "README.md").read_text()
    values = f"{plan.small['params']:,} of {plan.target['params']:,}".replace(",", "\u202f")
    assert f"keeps {plan.kept():.1%} of its trained values ({values})" in text
    assert f"{len(plan.choices)} layers became smaller" in text
    assert "| layer | error |\n| --- | --- |\n| a\\|b &lt;b> | 0.25 |" in text
    bz.load(folder, target())


def test_an_architecture_without_memory_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    bz.save(tmp_path / "small", *bz.sketch(model, 0.5))
    with pytest.raises(ValueError, match="on the meta device"):
        bz.load(tmp_path / "small", model.to("meta"))
