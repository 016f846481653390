from pathlib import Path

import pytest

from bozzetto.demo import Demo, Scale, demo


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Demo, Path]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    return demo(folder, scale=Scale(width=16, epochs=10, tuning=2), seeds=(0,)), folder


def test_every_small_network_meets_the_budget(made: tuple[Demo, Path]) -> None:
    target, *small = made[0].variants
    assert target.params_kept == 1
    assert len(small) == 5
    for variant in small:
        assert 0.2 < variant.params_kept <= 0.25


def test_compression_keeps_the_accuracy_that_plain_svd_loses(made: tuple[Demo, Path]) -> None:
    accuracy = {variant.network: variant.accuracy for variant in made[0].variants}
    assert accuracy["target"] > 0.93
    assert accuracy["compressed"] > accuracy["target"] - 0.03
    assert accuracy["compressed"] > accuracy["plain SVD"] + 0.1
    assert accuracy["sketched, from scratch"] > 0.85


def test_the_files_shrink_and_the_page_stands_beside_them(made: tuple[Demo, Path]) -> None:
    demonstration, folder = made
    target, *small = demonstration.variants
    assert target.bytes_on_disk is not None
    for variant in small:
        assert variant.bytes_on_disk is None or variant.bytes_on_disk < target.bytes_on_disk / 3.5
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")


def test_no_measured_error_exceeds_its_guarantee(made: tuple[Demo, Path]) -> None:
    rows = made[0].certificate.rows()
    assert rows
    for row in rows:
        bound, measured = row["bound"], row["measured"]
        assert isinstance(bound, float)
        assert isinstance(measured, float)
        assert 0 <= measured <= bound


def test_what_is_not_of_a_demo_stays(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        demo(tmp_path, seeds=(0,))
    assert (tmp_path / "target" / "thesis.txt").exists()


def test_a_demo_needs_a_seed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        demo(tmp_path / "new", seeds=())
