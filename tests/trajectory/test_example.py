import re
import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "trajectory.py"


def test_the_example_beats_its_baselines_and_shows_scenes(driving, tmp_path, capsys):
    main = runpy.run_path(str(EXAMPLE))["main"]
    main(driving / "fixture.npz", tmp_path / "page.html")
    said = capsys.readouterr().out
    errors = dict(re.findall(r"^(\S.*?) +(\d+\.\d+) m off", said, re.MULTILINE))
    assert float(errors["joint network"]) < float(errors["constant velocity"])
    assert float(errors["half of it"]) < float(errors["constant turn rate"])
    assert "kept 50%" in said
    assert "MONA-East/2" in (tmp_path / "page.html").read_text()
