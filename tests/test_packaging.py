"""The package as it is built and installed: pins, versions, and what is in the archives.

Installing it in an empty environment is `make package`, each extra `make extras`.
"""

import os
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TOOLS = {"dev", "docs", "interop"}  # extras for who works on Bozzetto
SPARE = {"bozzetto"}  # an extra may be made of other extras


def pins() -> dict[str, str]:
    """Name to version, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in found}


def built(kind: str, source: Path, folder: Path) -> Path:
    """The wheel or the source archive ("sdist") of a source tree."""
    build = f"from hatchling.build import build_{kind}; build_{kind}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    return next(path for path in folder.iterdir() if path.suffix in {".whl", ".gz"})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    return zipfile.ZipFile(built("wheel", ROOT, folder))


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_every_requirement_is_pinned_to_a_version_it_admits(extra: str | None):
    lines = PROJECT["dependencies"] if extra is None else EXTRAS[extra]
    wanted = [r for r in map(Requirement, lines) if canonicalize_name(r.name) not in SPARE]
    missing = [r.name for r in wanted if canonicalize_name(r.name) not in pins()]
    assert missing == []
    refused = [
        str(r) for r in wanted if not r.specifier.contains(pins()[canonicalize_name(r.name)])
    ]
    assert refused == []


def test_every_requirement_has_a_lower_bound():
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    wanted = [r for r in map(Requirement, lines) if canonicalize_name(r.name) not in SPARE]
    unbounded = [r.name for r in wanted if not any(s.operator == ">=" for s in r.specifier)]
    assert unbounded == []


def test_the_extras_are_those_the_makefile_installs():
    groups = re.findall(r"call install,\[(.*?)\]", (ROOT / "Makefile").read_text())
    named = {extra for group in groups for extra in group.split("$(comma)")}
    assert named
    assert named <= EXTRAS.keys()


def test_the_version_is_the_same_everywhere():
    change = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert change is not None
    assert citation is not None
    assert {change[1], citation[1]} == {PROJECT["version"]}


def test_the_wheel_holds_the_package_its_types_and_its_page(wheel: zipfile.ZipFile):
    source = ROOT / "src"
    wanted = {
        path.relative_to(source).as_posix()
        for path in (source / "bozzetto").rglob("*")
        if path.suffix in {".py", ".html", ".typed"}
    }
    assert {"bozzetto/py.typed", "bozzetto/cli/__init__.py", "bozzetto/page.html"} <= wanted
    extra = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert extra == wanted


def test_the_wheel_carries_its_licence_and_notice(wheel: zipfile.ZipFile):
    folder = f"bozzetto-{PROJECT['version']}.dist-info"
    for name in ["LICENSE", "NOTICE"]:
        packed = wheel.read(f"{folder}/licenses/{name}").decode()
        assert packed == (ROOT / name).read_text()
        assert len(packed) > 1000
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_source_archive_makes_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path):
    with tarfile.open(built("sdist", ROOT, tmp_path)) as archive:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
        archive.extractall(tmp_path / "source", filter="data")
    assert {"README.md", "LICENSE", "NOTICE", "tests/test_packaging.py", "docs/index.md"} <= names
    assert not [n for n in names if n.startswith((".venv", "docs/_build", "docs/gallery", "dist"))]
    (source,) = (tmp_path / "source").iterdir()
    (tmp_path / "again").mkdir()
    again = zipfile.ZipFile(built("wheel", source, tmp_path / "again"))
    assert set(again.namelist()) == set(wheel.namelist())
    for name in wheel.namelist():
        if not name.endswith("RECORD"):
            assert again.read(name) == wheel.read(name), name


def test_the_wheel_alone_runs_the_command_and_writes_its_page(
    wheel: zipfile.ZipFile, tmp_path: Path
):
    """A wheel is a folder of modules: unpacked in front of the path it is what is imported."""
    wheel.extractall(tmp_path / "installed")
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef build():\n    return torch.nn.Linear(32, 32)\n\n\n"
        "def data():\n    return [torch.ones(8, 32) + torch.arange(8.0)[:, None]]\n"
    )
    entry = wheel.read(f"bozzetto-{PROJECT['version']}.dist-info/entry_points.txt").decode()
    assert "bozzetto = bozzetto.cli:main" in entry
    program = (
        "import sys, bozzetto\nfrom bozzetto.cli import main\n"
        "assert bozzetto.__file__.startswith(sys.argv.pop(1)), bozzetto.__file__\nmain()\n"
    )
    words = ["compress", "mine:build", "--data", "mine:data", "--keep", "0.5", "--out", "small"]
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "installed"), *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    assert "<svg" in (tmp_path / "small" / "report.html").read_text(encoding="utf-8")


def test_the_lowest_versions_are_the_bounds_and_the_tools_the_pins():
    script = runpy.run_path(str(ROOT / ".ci" / "lowest.py"))
    lowest = dict(line.split("==") for line in script["lowest"]())
    tools = {name for name in lowest if lowest[name] == pins().get(canonicalize_name(name))}
    assert {"pytest", "hypothesis"} <= tools
    assert set(script["lowest"](["torch"])) - set(script["lowest"]()) == {
        f"torch=={pins()['torch']}"
    }
    used = [*PROJECT["dependencies"]]
    used += [r for extra in EXTRAS if extra not in TOOLS for r in EXTRAS[extra]]
    for requirement in map(Requirement, used):
        assert requirement.specifier.contains(lowest[requirement.name]), requirement
        assert any(s.version == lowest[requirement.name] for s in requirement.specifier)


def test_every_extra_for_users_is_tried_by_itself():
    uses = runpy.run_path(str(ROOT / ".ci" / "extras.py"))["USES"]
    assert uses.keys() == EXTRAS.keys() - TOOLS
