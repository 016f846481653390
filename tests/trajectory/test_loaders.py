import json
import shutil

import numpy as np
import pytest

from bozzetto.trajectory import load
from bozzetto.trajectory.loaders import load_ngsim, load_npz

NGSIM = "Vehicle_ID,Frame_ID,Global_Time,Local_X,Local_Y,v_Length,v_Width,v_Class,Location"


def ngsim(tmp_path, *lines, head=NGSIM):
    path = tmp_path / "cars.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def good(n=20, vehicle=7, place="us-101"):
    return [f"{vehicle},{i},{1000 + 100 * i},10,{50 + 5 * i},15,6,2,{place}" for i in range(n)]


def test_ngsim_feet_become_metres_and_fronts_centres(tmp_path):
    (recording,) = load(ngsim(tmp_path, *good()))
    (track,) = recording.tracks
    assert recording.name == recording.group == "us-101"
    assert track.size == pytest.approx((15 * 0.3048, 6 * 0.3048))
    np.testing.assert_allclose(track.state[0, :2], [10 * 0.3048, (50 - 7.5) * 0.3048])
    np.testing.assert_allclose(track.state[:, 2], np.pi / 2)
    np.testing.assert_allclose(track.state[:, 3], 50 * 0.3048)


def test_ngsim_against_the_axis_moves_back_the_other_way(tmp_path):
    lines = [f"7,{i},{1000 + 100 * i},10,{500 - 5 * i},15,6,2,lankershim" for i in range(20)]
    (recording,) = load(ngsim(tmp_path, *lines))
    assert recording.tracks[0].state[0, 1] == pytest.approx((500 + 7.5) * 0.3048)


def test_ngsim_bad_lines_are_named_and_counted(tmp_path):
    lines = [*good(), "8,0,1000,ten,50,15,6,2,us-101", "9,0,1000,10,50,15,6,9,us-101", "9,0"]
    (recording,) = load(ngsim(tmp_path, *lines))
    assert [row.line for row in recording.bad] == [22, 23, 24]
    assert "cars.csv:22: no vehicle: could not convert" in str(recording.bad[0])
    assert len(recording.tracks) == 1


def test_ngsim_places_are_recordings(tmp_path):
    found = load_ngsim(ngsim(tmp_path, *good(place="b"), *good(place="a")))
    assert [recording.name for recording in found] == ["a", "b"]


def test_ngsim_without_a_column_says_which(tmp_path):
    with pytest.raises(ValueError, match=r"cars\.csv:1: .* missing: \['v_Class'\]"):
        load_ngsim(ngsim(tmp_path, head=NGSIM.replace("v_Class", "type")))


def scenario(tmp_path, **changes):
    """An Argoverse 2 scenario of two vehicles and a pedestrian, with a map."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [
        {
            "track_id": name,
            "object_type": kind,
            "timestep": step,
            "position_x": float(step),
            "position_y": y,
            "heading": 0.0,
            "city": "austin",
        }
        for name, kind, y in [("a", "vehicle", 0.0), ("b", "bus", 9.0), ("p", "pedestrian", 3.0)]
        for step in range(30)
    ]
    rows[3] |= changes
    path = tmp_path / "scenario_1234.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    bounds = {
        f"{side}_lane_boundary": [{"x": 0.0, "y": y}, {"x": 50.0, "y": y}]
        for side, y in [("left", 2.0), ("right", -2.0)]
    }
    segment = {"id": 5, "successors": [6, 77], "lane_type": "VEHICLE"} | bounds
    after = {
        "id": 6,
        "successors": [],
        "centerline": [{"x": 50.0, "y": 0.0}, {"x": 90.0, "y": 0.0}],
    }
    segments = {"lane_segments": {"5": segment, "6": after}}
    (tmp_path / "log_map_archive_1234.json").write_text(json.dumps(segments))
    return path


def test_argoverse_vehicles_and_lanes(tmp_path):
    (recording,) = load(scenario(tmp_path))
    assert (recording.name, recording.group, recording.bad) == ("1234", "austin", ())
    assert [(t.id, t.kind) for t in recording.tracks] == [("a", 0), ("b", 2)]
    np.testing.assert_allclose(recording.tracks[0].state[:, 0], np.arange(30.0))
    assert recording.lanes.following == ((1,), ())
    np.testing.assert_allclose(recording.lanes.lines[0][:, 1], 0.0)


def test_argoverse_missing_values_are_named(tmp_path):
    (recording,) = load(scenario(tmp_path, position_x=None))
    (bad,) = recording.bad
    assert str(bad).endswith("scenario_1234.parquet:4: vehicle a: time or position is missing")


def test_argoverse_that_is_no_parquet_says_so(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    path.write_text("no")
    with pytest.raises(ValueError, match="no parquet file"):
        list(load(path))


FCD = """<fcd-export>
{}
</fcd-export>
"""
STEP = (
    '<timestep time="{}"><vehicle id="a" x="{}" y="0" angle="90" type="car" speed="10"/></timestep>'
)
NET = """<net><edge id="e"><lane id="e_0" shape="0,0 50,0"/></edge>
<edge id=":c"><lane id=":c_0" shape="50,0 60,0"/></edge>
<edge id="w"><lane id="w_0" allow="pedestrian" shape="50,0 60,0"/></edge>
<connection from="e" to="f" fromLane="0" toLane="0" via=":c_0"/></net>"""


def test_sumo_angles_fronts_and_lanes(tmp_path):
    steps = [STEP.format(i / 10, float(i)) for i in range(20)]
    (tmp_path / "x.fcd.xml").write_text(FCD.format("\n".join(steps)))
    (tmp_path / "x.net.xml").write_text(NET)
    (recording,) = load(tmp_path)
    (track,) = recording.tracks
    np.testing.assert_allclose(track.state[:, 0], np.arange(20) - 2.5, atol=1e-9)
    np.testing.assert_allclose(track.state[:, 2], 0.0, atol=1e-9)
    assert (len(recording.lanes.lines), recording.lanes.following) == (2, ((1,), ()))


def test_sumo_bad_vehicles_are_named(tmp_path):
    steps = [STEP.format(i / 10, float(i)) for i in range(20)]
    steps[4] = steps[4].replace(' x="4.0"', "")
    (tmp_path / "x.xml").write_text(FCD.format("\n".join(steps)))
    (recording,) = load(tmp_path / "x.xml")
    assert [row.line for row in recording.bad] == [6]
    assert len(recording.tracks[0].state) == 20


def test_commonroad_is_what_the_npz_holds(driving):
    real = {r.name: r for r in load_npz(driving / "real.npz")}["MONA-East"]
    whole, compared = {t.id: t for t in real.tracks}, 0
    for recording in load(driving / "commonroad"):
        assert recording.bad == ()
        for track in recording.tracks:
            twin = whole.get(track.id)
            if twin is None or len(track.state) > len(twin.state):
                continue
            place = int(np.hypot(*(twin.state[:, :2] - track.state[0, :2]).T).argmin())
            same = twin.state[place : place + len(track.state) : 2, :2]
            np.testing.assert_allclose(same, track.state[::2, :2][: len(same)], atol=1e-3)
            compared += 1
    assert compared > 100


def test_commonroad_agrees_with_its_own_package(driving):
    reader = pytest.importorskip("commonroad.common.file_reader")
    for path in sorted((driving / "commonroad").glob("*.xml")):
        scenario, _ = reader.CommonRoadFileReader(str(path)).open()
        (recording,) = load(path)
        tracks = {t.id: t for t in recording.tracks}
        first = min(o.initial_state.time_step for o in scenario.dynamic_obstacles)
        for obstacle in scenario.dynamic_obstacles:
            mine = tracks[str(obstacle.obstacle_id)]
            states = [obstacle.initial_state, *obstacle.prediction.trajectory.state_list]
            theirs = np.array([state.position for state in states])
            assert mine.start == 2 * (states[0].time_step - first)
            np.testing.assert_allclose(mine.state[::2, :2], theirs, atol=1e-6)
        lanes = scenario.lanelet_network.lanelets
        for line, lane in zip(recording.lanes.lines, lanes, strict=True):
            np.testing.assert_allclose(line, lane.center_vertices, atol=1e-6)


def test_markup_that_is_none_is_named_with_its_line(tmp_path):
    (tmp_path / "a.xml").write_text("<commonRoad>\n<lanelet>\n</commonRoad>\n")
    with pytest.raises(ValueError, match=r"a\.xml:3: this is no XML: mismatched tag"):
        list(load(tmp_path / "a.xml"))


def test_another_root_is_named(tmp_path):
    (tmp_path / "a.xml").write_text("<osm/>")
    with pytest.raises(ValueError, match="needs the element commonRoad; got osm"):
        list(load(tmp_path / "a.xml"))


def test_npz_with_a_state_that_is_not_finite_names_the_row(driving, tmp_path):
    with np.load(driving / "fixture.npz") as file:
        data = {name: file[name] for name in file.files}
    data["xyhv"][41, 1] = np.nan
    np.savez(tmp_path / "bad.npz", **data)
    with pytest.raises(ValueError, match="row 41 of xyhv is not"):
        load_npz(tmp_path / "bad.npz")
    del data["size"]
    np.savez(tmp_path / "bad.npz", **data)
    with pytest.raises(ValueError, match=r"missing: \['size'\]"):
        load_npz(tmp_path / "bad.npz")


def test_a_folder_gives_all_its_recordings(driving, tmp_path):
    ngsim(tmp_path, *good())
    shutil.copy(driving / "fixture.npz", tmp_path / "d.npz")
    assert [r.name for r in load(tmp_path)][:2] == ["us-101", "MONA-East"]


@pytest.mark.parametrize(("name", "what"), [("a.txt", "got '.txt'"), ("", "it has none")])
def test_what_no_loader_knows_is_refused(tmp_path, name, what):
    if name:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=what):
        list(load(tmp_path / name))


def test_nothing_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recordings"):
        list(load(tmp_path / "none"))
