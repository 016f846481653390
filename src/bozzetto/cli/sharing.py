"""Commands that hand results on: report, export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import bozzetto as bz
from bozzetto.analysis.front import Front
from bozzetto.cli.app import BatchSize, Builder, Data, Flag, Json, app
from bozzetto.cli.evidence import FRONT, PLAN, SPEED
from bozzetto.data import load_batches, load_model
from bozzetto.io import read
from bozzetto.report import Bars, Section, add_sections, read_sections, write_report
from bozzetto.terminal import show


@app.command
def report(
    folders: Sequence[Path],
    /,
    *,
    compare: Flag = False,
    out: Annotated[Path, Parameter(metavar="FILE")] = Path("comparison.html"),
    force: Flag = False,
    as_json: Json = False,
) -> None:
    """Write the pages of saved networks anew, or one page that compares them. Runs no model.

    Args:
        folders: DIRs written by compress, train, crash or kernel.
        compare: One page for all of them, made from one target.
        out: The page that compares.
        force: Replace that page.
    """
    if not compare:
        pages = [_page(folder) for folder in folders]
        return show(as_json, {}, {"reports": [{"page": str(page)} for page in pages]})
    if len(folders) < 2:
        raise ValueError(f"a comparison needs two folders or more; got {len(folders)}")
    if out.exists() and not force:
        raise FileExistsError(f"{out} is there already; --force replaces it")
    sections = _compared(folders)
    write_report(out, sections, title=" and ".join(_names(folders)))
    return show(as_json, {"report": str(out)}, {"networks": sections[0].result.rows()})


def _page(folder: Path) -> Path:
    """The folder's page; the plan alone where nothing else was kept."""
    known = {section.title for section in read_sections(folder)}
    if not folder.is_dir() or (not known and not (folder / "plan.json").is_file()):
        raise ValueError(
            f"a report is made of a saved network or of report.json; {folder} has none"
        )
    return add_sections(folder, [] if known else [Section(PLAN, read(folder).plan)])


def _names(folders: Sequence[Path]) -> list[str]:
    """Short names of folders where those differ, else the whole."""
    short = [folder.absolute().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _compared(folders: Sequence[Path]) -> list[Section]:
    """Fronts, latencies and layers of several networks made from one target."""
    names = _names(folders)
    plans = [read(folder).plan for folder in folders]
    if any(plan.target != plans[0].target for plan in plans):
        facts = {name: plan.target for name, plan in zip(names, plans, strict=True)}
        raise ValueError(f"networks of one target can be compared; the targets' prices are {facts}")
    found = [Section(FRONT, _front(folders, names))]
    speeds = [
        {"network": name} | {key: value for key, value in row.items() if key != "model"}
        for folder, name in zip(folders, names, strict=True)
        for row in _rows(folder, SPEED)[1:]
    ]
    if speeds:
        label = "time of one call over that of the target"
        found.append(Section(SPEED, Bars(speeds, "network", ("ratio",), label)))
    for column, title, label in (
        ("params", "Size of each layer", "trained values"),
        ("error", "Predicted error of each layer", "relative error of the layer's output"),
    ):
        found.append(Section(title, _layers(names, plans, column, label)))
    return found


def _front(folders: Sequence[Path], names: Sequence[str]) -> Front:
    """The target, then each network, as they were measured."""
    rows: list[dict[str, Any]] = []
    for folder, name in zip(folders, names, strict=True):
        own = _rows(folder, FRONT)
        if len(own) != 2:
            raise ValueError(
                f"a comparison needs what compress measured; the report of {folder} has no "
                f"{FRONT!r} of a target and one network"
            )
        rows += [*([] if rows else own[:1]), own[1] | {"network": name}]
    return Front.of(rows)


def _rows(folder: Path, title: str) -> list[dict[str, Any]]:
    """The table of a section of the folder's report; empty without it."""
    return next((s.rows for s in read_sections(folder) if s.title == title), [])


def _layers(names: Sequence[str], plans: Sequence[bz.Plan], column: str, label: str) -> Bars:
    """One column of the plans, layer by layer, side by side; none where a layer stays dense."""
    paths = dict.fromkeys(path for plan in plans for path in plan.choices)
    table = [
        {"layer": path}
        | {
            name: getattr(plan.choices[path], column) if path in plan.choices else None
            for name, plan in zip(names, plans, strict=True)
        }
        for path in paths
    ]
    return Bars(table, "layer", tuple(names), label)


@app.command
def export(
    folder: str,
    file: Path,
    /,
    *,
    data: Data,
    batch: Literal["any", "fixed"] = "any",
    opset: int = 18,
    batch_size: BatchSize = 2,
    builder: Builder = None,
    as_json: Json = False,
) -> None:
    """Write a network for other programs: FILE.onnx for ONNX runtimes, FILE.pt2 for torch.export.

    The first of the batches is the example.

    Args:
        folder: DIR written by compress or train, or any MODEL.
        file: File to write; it is compared with the network before it is put in place.
        batch: Whether the file takes batches of any size, or of the example's alone.
        opset: Of ONNX, at least 18.
    """
    network = load_model(folder, build=builder, data=data).network.eval()
    example = next(iter(load_batches(data, size=batch_size)), None)
    if example is None:
        raise ValueError(f"an export needs an example; {data} gave no batch")
    bz.export(network, file, example, batch=batch, opset=opset)
    show(as_json, {"file": str(file), "bytes": file.stat().st_size}, {})
