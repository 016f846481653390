"""Files from strangers: mutated ones by the hundred, and those that are made to harm."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from arguments import fuzz_arguments
from fuzzing import fuzz
from guarding import Trespass, fault, guard
from strangers import STRANGERS, arrays, plain

import bozzetto as bz
from bozzetto.data import load_model
from bozzetto.images import image_batches
from bozzetto.io import InvalidFolder
from bozzetto.train.checkpoint import CheckpointMismatch, read_checkpoint, write_checkpoint
from bozzetto.trajectory import load as recordings

INPUTS = 30  # of every reader here; benchmarks/run.py trust-fuzz reads far more


@pytest.mark.parametrize("name", STRANGERS)
def test_a_mutated_file_is_read_or_refused_by_name(name: str) -> None:
    tally = fuzz(STRANGERS, name, INPUTS, seed=1)
    assert tally.faults == []
    assert tally.refused > 0
    assert tally.inputs == INPUTS


def test_mutated_arguments_end_with_an_exit_code_and_a_word() -> None:
    tally = fuzz_arguments(INPUTS, seed=1)
    assert tally.faults == []
    assert min(tally.accepted, tally.refused) > 0


# The guard itself: each of these must be seen.


def _writes(folder: Path) -> None:
    (folder.parent / "elsewhere.txt").write_text("x")


def _renames(folder: Path) -> None:
    (folder / "own.txt").write_text("x")
    (folder / "own.txt").rename(folder.parent / "own.txt")


def _imports(folder: Path) -> None:
    import this  # noqa: F401


def _unpickles(folder: Path) -> None:
    np.load(folder / "evil.npy", allow_pickle=True)


def _hides(folder: Path) -> None:
    try:
        os.system("true")
    except BaseException:
        return


def _grows(folder: Path) -> None:
    torch.empty(1 << 31)


def _hangs(folder: Path) -> None:
    while True:
        pass


@pytest.mark.parametrize("harm", [_writes, _renames, _imports, _unpickles, _hides, _grows, _hangs])
def test_the_guard_sees(
    harm: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guarding.SECONDS", 0.2)
    (folder := tmp_path / "in").mkdir()
    np.save(folder / "evil.npy", np.array([Exception()], dtype=object), allow_pickle=True)
    end, wrong = fault(lambda: harm(folder), folder)
    assert wrong is not None, end


def test_the_guard_lets_reading_and_writing_inside_pass(tmp_path: Path) -> None:
    with guard(tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x.txt").write_text("x")
    with pytest.raises(Trespass), guard(tmp_path):
        _writes(tmp_path)


# A saved folder that is made to harm.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return bz.save(tmp_path / "saved", *bz.sketch(plain(), 0.6, ends="sketched"), source="m:f")


def forged(folder: Path, **choice: object) -> Path:
    """The folder with another first choice."""
    data = json.loads((folder / "plan.json").read_text())
    first = next(iter(data["plan"]["choices"].values()))
    first |= choice
    (folder / "plan.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("method", ["lowrank", "sketched", "signs", "hybrid", "tucker"])
@pytest.mark.parametrize("size", [10**6, 10**12, 2**63, 10**30])
def test_a_size_that_would_fill_the_memory_is_refused_before(
    saved: Path, method: str, size: int
) -> None:
    forged(saved, method=method, size=size, options={})
    with guard(), pytest.raises(ValueError, match=r"not fewer than|needs 1 <= k"):
        bz.load(saved, plain())


@pytest.mark.parametrize("seed", [-1, 1 << 63, 10**40])
def test_a_seed_that_no_generator_takes_is_refused(saved: Path, seed: int) -> None:
    with pytest.raises(InvalidFolder, match="a seed has 63 bits"):
        bz.load(forged(saved, seed=seed), plain())


def test_a_plan_without_its_count_is_refused(saved: Path) -> None:
    data = json.loads((saved / "plan.json").read_text())
    data["plan"]["small"] = {"flops": 3}
    (saved / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="it makes None values"):
        bz.load(saved, plain())


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "__class__", "forward", "0.."])
def test_paths_in_a_plan_are_names_of_layers_only(saved: Path, path: str) -> None:
    data = json.loads((saved / "plan.json").read_text())
    choices = data["plan"]["choices"]
    choices[path] = choices.pop(next(iter(choices)))
    (saved / "plan.json").write_text(json.dumps(data))
    with guard(), pytest.raises(ValueError, match="it has no layer"):
        bz.load(saved, plain())


def test_json_that_is_nested_without_end_is_refused(saved: Path) -> None:
    (saved / "plan.json").write_text("[" * 100_000)
    with pytest.raises(InvalidFolder, match="damaged"):
        bz.load(saved, plain())
    with pytest.raises(ValueError, match="a plan is JSON"):
        bz.Plan.from_json("[" * 100_000)


def test_weights_that_claim_to_be_huge_take_no_memory(saved: Path) -> None:
    import hashlib

    head = {"0.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    text = json.dumps(head).encode()
    forged_file = len(text).to_bytes(8, "little") + text
    (saved / "model.safetensors").write_bytes(forged_file)
    data = json.loads((saved / "plan.json").read_text())
    data["sha256"] = hashlib.sha256(forged_file).hexdigest()
    (saved / "plan.json").write_text(json.dumps(data))
    with guard(), pytest.raises(InvalidFolder, match="damaged"):
        bz.load(saved, plain())


def test_a_link_among_the_output_is_not_followed(saved: Path, tmp_path: Path) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text("years of work")
    for name in ("model.safetensors", "plan.json"):
        (saved / name).unlink()
        (saved / name).symlink_to(victim)
    bz.save(saved, *bz.sketch(plain(), 0.5), force=True)
    assert victim.read_text() == "years of work"
    assert not (saved / "plan.json").is_symlink()


def test_a_folder_named_like_a_file_of_ours_is_not_overwritten(saved: Path) -> None:
    (saved / "report.html").mkdir()
    (saved / "report.html" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"report\.html"):
        bz.save(saved, *bz.sketch(plain(), 0.5), force=True)
    assert (saved / "report.html" / "thesis.txt").read_text() == "years of work"


def test_the_builder_that_a_folder_names_is_not_imported(saved: Path) -> None:
    with guard(), pytest.raises(ValueError, match="a folder is not believed"):
        load_model(str(saved))
    with guard(), pytest.raises(ValueError, match="a folder is not believed"):
        load_model(str(saved), data="other.module:batches")


@pytest.mark.parametrize(
    "text", ["os.path", "../x:f", "a b:c", "m:f()", ":f", "m:", "m:f.g", "1:2"]
)
def test_what_is_no_callables_name_is_never_imported(text: str) -> None:
    with guard(), pytest.raises(ValueError, match="MODEL needs to be"):
        load_model(text)


# Recordings that are made to harm.


def _xml(body: str) -> str:
    return f'<commonRoad timeStepSize="0.1">{body}</commonRoad>'


def test_entities_do_not_multiply(tmp_path: Path) -> None:
    entities = [
        '<!ENTITY a0 "ha">',
        *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12)),
    ]
    text = f"<!DOCTYPE x [{''.join(entities)}]>" + _xml("&a11;")
    (tmp_path / "x.xml").write_text(text)
    with guard(), pytest.raises(ValueError, match=r"x\.xml"):
        list(recordings(tmp_path))


def test_entities_of_other_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("7")
    text = f'<!DOCTYPE x [<!ENTITY a SYSTEM "{tmp_path}/secret">]>' + _xml(
        "<obstacle>&a;</obstacle>"
    )
    (tmp_path / "x.xml").write_text(text)
    with guard():
        (found,) = recordings(tmp_path / "x.xml")
    assert found.tracks == ()


def test_text_between_many_elements_takes_linear_time(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(_xml("\n<a/>" * 200_000))
    with guard():
        assert len(list(recordings(tmp_path))) == 1


@pytest.mark.parametrize("time", [1e15, -1e15, 1e300])
def test_a_time_that_is_far_away_is_a_bad_row(tmp_path: Path, time: float) -> None:
    """It would make a recording of as many frames, each looked at."""
    head = "Vehicle_ID,Global_Time,Local_X,Local_Y,v_Length,v_Width,v_Class\n"
    rows = [f"{v},{1000 + 100 * i},10,{50 + 5 * i},15,6,2\n" for v in (1, 2) for i in range(20)]
    (tmp_path / "x.csv").write_text(head + "".join(rows) + f"3,{time},1,1,15,6,2\n")
    (found,) = recordings(tmp_path)
    assert [row.line for row in found.bad] == [42]
    assert "is far away" in found.bad[0].reason
    assert len(found.frames) == 20


def _npz(tmp_path: Path, **changes: np.ndarray) -> Path:
    np.savez(tmp_path / "x.npz", **(arrays() | changes))  # pyright: ignore[reportArgumentType]
    return tmp_path / "x.npz"


def test_a_ring_of_lanes_ends(tmp_path: Path) -> None:
    from bozzetto.trajectory.scenes import scenes_of

    ring = np.array([[0.0, 0.0], [0.002, 0.0]])
    with guard(tmp_path):
        assert list(scenes_of(recordings(_npz(tmp_path, lane_xy=ring))))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"lane_xy": np.zeros((2, 2))}, "a lane needs some length"),
        ({"lane_xy": np.array([[0.0, 0.0], [1e12, 0.0]])}, "lanes need to be finite"),
        ({"lane_xy": np.array([[0.0, 0.0], [np.nan, 0.0]])}, "a lane needs some length"),
        ({"kind": np.array([4])}, "a kind in 0"),
        ({"size": np.array([[0.0, 2.0]])}, "a size above 0"),
        ({"offset": np.array([0, 0])}, "a track needs the shape"),
        ({"meta": np.array({"a": 1}, dtype=object)}, "allow_pickle"),
        ({"meta": np.array("[" * 100_000)}, "RecursionError"),
    ],
)
def test_an_npz_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, np.ndarray], what: str
) -> None:
    with pytest.raises(ValueError, match=what), guard(tmp_path):
        list(recordings(_npz(tmp_path, **changes)))


def test_two_tracks_far_apart_in_time_are_refused(tmp_path: Path) -> None:
    twice = {name: np.repeat(arrays()[name], 2, 0) for name in ("rec", "size", "kind", "id")}
    twice |= {"start": np.array([0, 10**12]), "offset": np.array([0, 12, 25])}
    with pytest.raises(ValueError, match="needs to span at most"), guard(tmp_path):
        list(recordings(_npz(tmp_path, **twice)))


def _bomb(shape: str, zeros: int) -> bytes:
    head = f"{{'descr': '|b1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    made = io.BytesIO()
    with (
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("xyhv.npy", "w") as f,
    ):
        f.write(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode())
        for _ in range(zeros >> 20):
            f.write(bytes(1 << 20))
    return made.getvalue()


@pytest.mark.parametrize(("shape", "zeros"), [("(1099511627776,)", 0), ("(104857600,)", 100 << 20)])
def test_an_archive_that_unfolds_without_end_is_refused(
    tmp_path: Path, shape: str, zeros: int
) -> None:
    (tmp_path / "x.npz").write_bytes(_bomb(shape, zeros))
    with pytest.raises(ValueError, match=r"x\.npz unfolds to"), guard(tmp_path):
        list(recordings(tmp_path))


def test_a_parquet_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ["track_id", "object_type", "timestep", "position_x", "position_y", "heading"]
    zeros = pyarrow.array(np.zeros(8_000_000, dtype=np.int8))
    parquet.write_table(pyarrow.table(dict.fromkeys(names, zeros)), tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 1 << 20
    with pytest.raises(ValueError, match="unfolds to more than"), guard(tmp_path):
        list(recordings(tmp_path))


def test_a_picture_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    import PIL.Image

    (tmp_path / "a").mkdir()
    PIL.Image.new("1", (9000, 9000)).save(tmp_path / "a" / "x.png")
    assert (tmp_path / "a" / "x.png").stat().st_size < 1 << 15
    loader = image_batches(tmp_path)
    with pytest.raises(ValueError, match="more than 16777216 pixels"):
        next(iter(loader))


def test_a_file_that_is_no_picture_of_the_named_formats_is_refused(tmp_path: Path) -> None:
    """PostScript would be given to a program of its own."""
    (tmp_path / "a").mkdir()
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    (tmp_path / "a" / "x.png").write_text(text)
    with pytest.raises(ValueError, match="cannot identify image file"):
        next(iter(image_batches(tmp_path)))


# Checkpoints.


@pytest.mark.parametrize("tree", ["[]", "3", '["dict", 1]', '["tensor", "9"]', "[" * 100_000, "x"])
def test_a_checkpoint_of_another_tree_is_refused(tmp_path: Path, tree: str) -> None:
    from safetensors.torch import save_file

    head = {"format": "bozzetto checkpoint 1", "tree": tree}
    save_file({}, tmp_path / "x", metadata=head)
    with pytest.raises(CheckpointMismatch, match="damaged checkpoint"):
        read_checkpoint(tmp_path / "x")


def test_a_dtype_in_a_checkpoint_is_a_dtype(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    write_checkpoint(tmp_path / "good", {"kind": torch.float16})
    assert read_checkpoint(tmp_path / "good") == {"kind": torch.float16}
    tree = '["dict", ["kind", ["dtype", "load"]]]'
    save_file({}, tmp_path / "x", metadata={"format": "bozzetto checkpoint 1", "tree": tree})
    with pytest.raises(CheckpointMismatch, match="damaged checkpoint"):
        read_checkpoint(tmp_path / "x")
