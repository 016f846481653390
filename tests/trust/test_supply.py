"""What the package is built and tested with: as pinned, unchanged since, and free to use."""

import base64
import hashlib
import re
import runpy
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FREE = re.compile(
    r"apache|mit\b|mit-cmu|bsd|psf|python software|python-2\.0|mpl|mozilla|isc|hpnd|unlicense|"
    r"public domain|zlib|cc0|epl|eclipse|the unlicense|matplotlib",
    re.IGNORECASE,
)
HASHED = ("safetensors", "jinja2", "cyclopts", "markupsafe", "rich", "numpy")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def installed() -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    for name in pins():
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
    return found


def needed() -> set[str]:
    """What the package needs without extras, and what that needs in turn."""
    found, new = set[str](), {"bozzetto"}
    while new:
        name = new.pop()
        found.add(name)
        for text in distribution(name).requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                new |= {canonicalize_name(wanted.name)} - found
    return found - {"bozzetto"}


def test_everything_that_a_user_gets_is_pinned() -> None:
    known = {canonicalize_name(name) for name in pins()}
    assert needed() - known - {"setuptools", "triton"} == set()


def test_every_pin_is_exact() -> None:
    odd = {n: v for n, v in pins().items() if not re.fullmatch(r"[\d.]+(rc\d+|b\d+|post\d+)?", v)}
    assert odd == {}


def licence(found: Distribution) -> str:
    """All that a distribution says of its licence, without the text of the licence itself."""
    about = found.metadata
    told = [about.get("License-Expression"), (about.get("License") or "")[:200]]
    told += [line for line in about.get_all("Classifier", []) if line.startswith("License")]
    return "; ".join(filter(None, told))


def test_every_package_may_be_used_freely() -> None:
    wrong = {name: licence(found) for name, found in installed().items()}
    assert len(wrong) > 40
    assert {name: told for name, told in wrong.items() if told and not FREE.search(told)} == {}


@pytest.mark.parametrize("name", HASHED)
def test_a_package_is_as_it_was_installed(name: str) -> None:
    """Every file has the hash that its wheel lists."""
    checked = 0
    for file in distribution(name).files or ():
        if file.hash is None or file.suffix == ".pyc":
            continue
        data = Path(str(file.locate())).read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, data).digest())
        assert digest.rstrip(b"=").decode() == file.hash.value, file
        checked += 1
    assert checked > 5


def test_ci_installs_pinned_versions_only() -> None:
    text = (ROOT / "Makefile").read_text()
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert installs
    loose = [line for line in installs if "constraint" not in line and "==" not in line]
    assert loose == []
    assert "curl" not in (ROOT / ".ci" / "run").read_text()


def test_the_audit_finds_what_an_advisory_fits() -> None:
    audit = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
    pinned = audit["pins"]("# a comment\nPillow==8.1.0\ntorch==2.13.0  # why\n\n")
    assert pinned == {"pillow": "8.1.0", "torch": "2.13.0"}
    about = {"id": "GHSA-1", "severity": "HIGH", "advisory": "overflow"}
    known = {
        "pillow": [{"v": ">=2.4.0,<8.2.0"} | about, {"v": "<8.1.0"} | about],
        "torch": [{"v": "<2.10.0"} | about],
        "other": [{"v": "<9"} | about],
    }
    assert [*audit["fitting"](known, pinned)] == ["pillow 8.1.0: GHSA-1 (HIGH): overflow"]


CHECKED = {"fold.py": "tests/test_fold.py"}  # gradients of our own, and where gradcheck sees them


def test_every_gradient_of_our_own_is_checked() -> None:
    own = re.compile(
        r"autograd(\.function)?(\.| import .*)Function\b|custom_op|register_autograd|"
        r"register_full_backward_hook|torch\.library"
    )
    assert own.search("from torch.autograd import Function")
    assert own.search("class Mine(torch.autograd.Function):")
    found = {f.name for f in (ROOT / "src").rglob("*.py") if own.search(f.read_text())}
    assert found == CHECKED.keys()
    for test in CHECKED.values():
        assert {"gradcheck", "gradgradcheck"} <= {*re.findall(r"\w+", (ROOT / test).read_text())}
