"""The package as it is built and installed: pins, versions, and what is in the wheel."""

import re
import subprocess
import sys
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
SPARE = {"bozzetto"}  # an extra may be made of other extras


def pins() -> dict[str, str]:
    """Name to version, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


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
