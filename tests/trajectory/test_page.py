import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from drawn import crossing, recorded, scene_of, straight
from PIL import Image

from bozzetto.trajectory import GOING, Lanes, Output, View, graph_of, scene_at, view, write_page
from bozzetto.trajectory.page import world

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")


def certain(graph):
    """The truth, as a prediction."""
    modes = torch.nn.functional.one_hot(graph.modes.clamp(min=0), 3)
    return Output(graph.future, 9.0 * modes)


def drawn_view(scene=None):
    lanes = Lanes((np.array([[-60.0, 0], [60, 0]]), np.array([[0.0, -60], [0, 60]])), ((), ()))
    return view(crossing() if scene is None else scene, lanes, certain)


def data_of(page):
    return json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text())[0])


@pytest.fixture
def page(tmp_path):
    return write_page(
        tmp_path / "scene.html", [drawn_view(), drawn_view(crossing(9, 0))], title="A <b>"
    )


def test_paths_come_back_into_the_frame_of_the_recording():
    scene = scene_of(straight("a", (300, -20), (3, 7)), straight("b", (290, 0), (-5, 1)))
    graph = graph_of(scene)
    np.testing.assert_allclose(world(graph, graph.future), scene.future, atol=1e-4)


def test_the_page_holds_vehicles_paths_and_who_goes_first(page):
    first, second = data_of(page)["scenes"]
    assert [agent["id"] for agent in first["agents"]] == ["east", "north"]
    np.testing.assert_allclose(first["agents"][0]["path"], first["agents"][0]["future"], atol=0.011)
    assert [mode[:2] for mode in first["modes"]] == [[0, 1]]
    assert [mode[:2] for mode in second["modes"]] == [[1, 0]]
    assert len(first["lanes"]) == 2


def test_names_are_text_and_never_markup(tmp_path):
    scene = scene_of(straight("</script><b>", (0, 0), (9, 0)))
    page = write_page(tmp_path / "a.html", [drawn_view(scene)], title="<i>")
    assert "</script><b>" not in page.read_text()
    assert "<title>&lt;i&gt;</title>" in page.read_text()
    assert data_of(page)["scenes"][0]["agents"][0]["id"] == "</script><b>"


def test_the_page_needs_nothing_from_elsewhere(page):
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(|@import|fetch\(', page.read_text())


def test_a_prediction_is_json():
    found = json.loads(json.dumps(drawn_view().to_dict()))
    assert found["paths"].keys() == {"east", "north"}
    going = [m for m in found["modes"] if m["going"] > 0.9]
    assert [(m["agent"], m["towards"]) for m in going] == [("east", "north")]
    assert GOING == 1


def test_a_prediction_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        view(crossing(), Lanes(), lambda graph: certain(graph)._replace(paths=graph.future / 0))


def test_vehicles_that_a_scene_left_out_are_counted(tmp_path):
    scene = scene_at(
        recorded(*(straight(str(n), (9.0 * n, 0), (1, 0)) for n in range(5))), 20, most=3
    )
    shown = drawn_view(scene)
    assert shown.to_dict()["left_out"] == 2
    page = write_page(tmp_path / "a.html", [shown], title="t")
    assert data_of(page)["scenes"][0]["title"].endswith("without 2 vehicles farther out")


def test_no_scenes_make_no_page(tmp_path):
    with pytest.raises(ValueError, match="at least one scene"):
        write_page(tmp_path / "a.html", [], title="t")
    assert isinstance(drawn_view(), View)


def browse(page, *options):
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--disable-dev-shm-usage", "--enable-logging=stderr", "--log-level=0"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--window-size=1000,900"]
    command += ["--virtual-time-budget=1500", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout + done.stderr


def colours(path):
    with Image.open(path) as picture:
        counts = picture.convert("RGB").getcolors(maxcolors=1 << 24)
    assert counts is not None
    return {colour: count for count, colour in counts}


@needs_browser
def test_a_browser_draws_it_in_light_and_dark_without_errors(page):
    light, dark = page.parent / "light.png", page.parent / "dark.png"
    said = browse(page, f"--screenshot={light}")
    said += browse(page, f"--screenshot={dark}", "--blink-settings=preferredColorScheme=0")
    assert "CONSOLE" not in said
    for picture, paper, path in [
        (light, (0xFD, 0xFC, 0xFA), (0x2F, 0x6F, 0x8F)),
        (dark, (0x1B, 0x1A, 0x18), (0x6D, 0xB3, 0xD3)),
    ]:
        found = colours(picture)
        assert max(found, key=found.__getitem__) == paper
        assert found.get(path, 0) > 100


@needs_browser
def test_it_moves(page):
    still = page.parent / "still.html"
    pictures = []
    for seconds in (0.0, 4.0):
        text = page.read_text().replace(
            "time.value = 0;", f"time.value = {seconds}; playing = false;"
        )
        still.write_text(text)
        pictures.append(page.parent / f"{seconds}.png")
        browse(still, f"--screenshot={pictures[-1]}")
    first, later = (np.asarray(Image.open(p).convert("RGB")) for p in pictures)
    assert (first != later).any(-1).sum() > 200
