"""House rules that a linter cannot know. Each rule is also shown a source that breaks it."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bozzetto

SOURCE = Path(__file__).resolve().parents[1] / "src" / "bozzetto"
LONGEST_FILE, MOST_PUBLIC_NAMES = 300, 16

# Who may import whom inside the package. Along the chain: everything that stands further up.
CHAIN: list[set[str]] = [
    {"batches", "timing", "fold", "reading"},
    {"linalg"},
    {"tensors"},
    {"sketch"},
    {"moments"},
    {"nn"},
    {"ops"},
    {"maps"},
    {"composite", "hf"},
    {"foreign"},
    {"expand"},
    {"stats", "sites"},
    {"grouped"},
    {"methods", "reduction"},
    {"budget", "prices", "knapsack", "plan", "replay"},
    {"menu", "rebuilding"},
    {"refit", "timely"},
    {"compress"},
    {"sketching"},
    {"io"},
    {"export"},
]
ALL_OF_IT = set[str]().union(*CHAIN)
PUBLIC = "bozzetto"  # `import bozzetto as bz`, or names of its __all__ from there
# What stands aside of the chain, by package or by file.
ASIDE: dict[str, set[str]] = {
    "train": {"batches", "linalg", "nn"},
    "optim": {"batches", "linalg"},
    "analysis": {"batches", "linalg", "timing"},
    "analysis.certificate": ALL_OF_IT,  # it judges what a plan made
    "analysis.front": {"batches", "prices"},
    "analysis.kernel": {"batches", "linalg", "tangent"},
    "analysis.sensitivity": ALL_OF_IT,
    "analysis.spectrum": ALL_OF_IT,
    "tangent": {"batches", "linalg"},
    "regress": {"linalg", "tensors", "sketch"},
    "testing": ALL_OF_IT,
    "plots": set(),
    "report": {"plots"},
    "card": {"plan", "report"},
    "parquet": set(),
    "images": {"parquet"},
    "data": {PUBLIC, "batches", "hf", "images", "io", "plan"},
    "trajectory": {PUBLIC, "nn", "io", "parquet"},
    "demo": ALL_OF_IT | {PUBLIC, "analysis", "report"},  # it shows every part at work
    "terminal": {"batches", "report"},
    "cli": {
        PUBLIC,
        "analysis",
        "batches",
        "card",
        "compress",
        "data",
        "demo",
        "io",
        "knapsack",
        "report",
        "terminal",
        "train",
        "trajectory",
    },
}
MAY_IMPORT = ASIDE | {
    unit: set().union(*CHAIN[:place]) for place, layer in enumerate(CHAIN) for unit in layer
}
# Third parties that only these parts of the package may import, by package or by file.
ALONE = {
    "sklearn": {"regress", "tangent.regressor", "demo"},
    "cyclopts": {"cli"},
    "jinja2": {"report"},
    "transformers": {"hf", "data"},
    "datasets": {"images"},
}
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE = {"torch.load", "torch.save", "torch.serialization.load", "torch.serialization.save"}

FILES = {
    ".".join(["bozzetto", *path.relative_to(SOURCE).with_suffix("").parts]): path.read_text()
    for path in sorted(SOURCE.rglob("*.py"))
}


def places(module: str) -> list[str]:
    """The names by which the tables may know a module: its file, its package."""
    parts = module.split(".")
    return [".".join(parts[1:3]), parts[1]]


def imported(source: str, module: str) -> set[str]:
    """Dotted names that a module imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            start = ".".join([*package, *filter(None, [node.module])])
            names |= {f"{start}.{alias.name}" for alias in node.names}
    return names


def wrong_way(source: str, module: str) -> set[str]:
    """Units of the package that this module imports and may not."""
    unit, wrong = module.split(".")[1], set[str]()
    allowed = next(MAY_IMPORT[place] for place in places(module) if place in MAY_IMPORT)
    for name in imported(source, module):
        top, *path = name.split(".")
        target = path[0] if path else PUBLIC
        public = PUBLIC in allowed and len(path) == 1 and target in bozzetto.__all__
        if top == "bozzetto" and not public and target not in allowed | {unit}:
            wrong.add(target)
    return wrong


def third_parties_out_of_place(source: str, module: str) -> set[str]:
    tops = {name.split(".")[0] for name in imported(source, module)}
    return {top for top in tops & ALONE.keys() if ALONE[top].isdisjoint(places(module))}


def unsafe_files(source: str, module: str) -> set[str]:
    """Names with which a module would read or write pickles."""
    nodes = list(ast.walk(ast.parse(source)))
    names = imported(source, module) | {
        ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)
    }
    options = {node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg}
    return {n for n in names if n in UNSAFE or n.split(".")[0] in PICKLERS} | (
        options & {"allow_pickle"}
    )


def prints(source: str) -> list[int]:
    """Lines that call print."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if ast.unparse(call.func) == "print"]


def notes_to_self(source: str) -> list[str]:
    return re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b", source)


def newly_loaded(statement: str) -> set[str]:
    """Packages that a statement loads beyond the four light ones and what those load."""
    code = (
        "import json, sys, torch, numpy, scipy.optimize, safetensors.torch\n"
        "def tops():\n    return {name.split('.')[0] for name in sys.modules}\n"
        "before = tops() | set(sys.stdlib_module_names)\n"
        f"{statement}\n"
        "print(json.dumps(sorted(tops() - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_there_are_files_to_judge():
    assert {"bozzetto.__init__", "bozzetto.sketch", "bozzetto.methods.lowrank"} <= FILES.keys()


def test_imports_point_one_way():
    inside = {module: source for module, source in FILES.items() if module != "bozzetto.__init__"}
    unknown = [m for m in inside if MAY_IMPORT.keys().isdisjoint(places(m))]
    assert unknown == [], "say in this file what they may import"
    wrong = {module: wrong_way(source, module) for module, source in inside.items()}
    assert {module: units for module, units in wrong.items() if units} == {}


@pytest.mark.parametrize(
    ("source", "module", "wrong"),
    [
        ("from bozzetto.plan import Plan", "bozzetto.sketch", {"plan"}),
        ("from bozzetto import plan", "bozzetto.sketch", {"plan"}),
        ("def f():\n    import bozzetto.plan", "bozzetto.sketch", {"plan"}),
        ("from .plan import Plan", "bozzetto.sketch", {"plan"}),
        ("from ..plan import Plan", "bozzetto.methods.lowrank", {"plan"}),
        ("import bozzetto as bz", "bozzetto.sketch", {"bozzetto"}),
        ("from bozzetto.plan import Plan", "bozzetto.analysis.kernel", {"plan"}),
        ("from bozzetto import linalg", "bozzetto.cli", {"linalg"}),
        ("from bozzetto.linalg import x\nimport torch.nn", "bozzetto.sketch", set()),
        ("from bozzetto.methods.method import Method", "bozzetto.methods.lowrank", set()),
        ("from bozzetto.sites import hidden", "bozzetto.cli", {"sites"}),
        ("import bozzetto as bz\nfrom bozzetto import Plan", "bozzetto.cli", set()),
    ],
)
def test_a_wrong_import_is_seen(source: str, module: str, wrong: set[str]):
    assert wrong_way(source, module) == wrong


def test_third_parties_stay_where_they_belong():
    wrong = {m: third_parties_out_of_place(source, m) for m, source in FILES.items()}
    assert {module: tops for module, tops in wrong.items() if tops} == {}


def test_a_third_party_out_of_place_is_seen():
    source = "def f():\n    from sklearn.linear_model import Ridge"
    assert third_parties_out_of_place(source, "bozzetto.plan") == {"sklearn"}
    assert third_parties_out_of_place(source, "bozzetto.regress") == set()


def test_importing_bozzetto_loads_only_torch_numpy_scipy_and_safetensors():
    assert newly_loaded("import bozzetto") == {"bozzetto"}


def test_a_heavy_import_is_seen():
    assert {"sklearn", "joblib"} <= newly_loaded("import sklearn")


def test_nothing_reads_or_writes_pickles():
    wrong = {module: unsafe_files(source, module) for module, source in FILES.items()}
    assert {module: names for module, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch.save(x, f)", {"torch.save"}),
        ("from torch import load", {"torch.load"}),
        ("import pickle", {"pickle"}),
        ("np.load(f, allow_pickle=True)", {"allow_pickle"}),
        ("from safetensors.torch import save_file\nsave_file(x, f)", set()),
    ],
)
def test_a_pickle_is_seen(source: str, found: set[str]):
    assert unsafe_files(source, "bozzetto.io") == found


def test_only_the_command_prints():
    lines = {m: prints(source) for m, source in FILES.items() if "bozzetto.cli" not in m}
    assert {module: found for module, found in lines.items() if found} == {}


def test_a_print_is_seen():
    assert prints('x = 1\nprint(x)\nconsole.print("no")\n"print()"') == [2]


def test_files_are_short():
    lengths = {module: source.count("\n") for module, source in FILES.items()}
    assert {module: length for module, length in lengths.items() if length > LONGEST_FILE} == {}


def test_there_are_no_notes_to_self():
    assert [module for module, source in FILES.items() if notes_to_self(source)] == []


def test_a_note_to_self_is_seen():
    assert notes_to_self("x = 1  # TODO: more\n# fixme is a word here") == ["TODO"]


def test_the_public_names_are_few_and_documented():
    assert 1 <= len(bozzetto.__all__) <= MOST_PUBLIC_NAMES
    assert len(set(bozzetto.__all__)) == len(bozzetto.__all__)
    undocumented = [name for name in bozzetto.__all__ if not getattr(bozzetto, name).__doc__]
    assert undocumented == []
