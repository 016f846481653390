import io
import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.cli import run

SHOP = '''
    """A user's own network and data."""

    import torch
    from torch import nn


    def normal(*shape, seed):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


    def network():
        layers = [nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)]
        model = nn.Sequential(*layers)
        with torch.no_grad():
            for seed, value in enumerate(model.parameters()):
                value.copy_(normal(*value.shape, seed=seed) / value[0].numel() ** 0.5)
        return model


    def batches():
        inputs = [normal(20, 12, seed=seed) for seed in range(4)]
        return [(x, network()(x).argmax(-1)) for x in inputs]


    def stream():
        yield from batches()


    def late():
        from beside_it import again

        yield from again(batches())


    def unlabelled():
        return [x for x, _ in batches()]


    def narrow():
        return [(torch.ones(4, 7), torch.zeros(4, dtype=torch.int64))]


    def spoilt():
        return [x / 0 for x, _ in batches()]


    def empty():
        return []


    def fails():
        raise KeyError("no weights here")


    def fails_midway():
        yield batches()[0]
        raise LookupError("the disk is gone")


    def number():
        return 7


    def activation():
        return nn.ReLU()


    constant = 7
'''
count = itertools.count()


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The name of a user's module in the current folder."""
    name = f"shop{next(count)}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(SHOP))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield name
    assert sys.path == before
    sys.modules.pop(name, None)


@pytest.fixture
def saved(shop, capsys):
    """The folder `small`, written by compress."""
    assert compress(shop) == 0
    capsys.readouterr()
    return Path("small")


def compress(shop, *more, data="batches", keep="0.5", out="small"):
    arguments = ["compress", f"{shop}:network", "--data", f"{shop}:{data}", "--out", out]
    return run([*arguments, "--keep", keep, *more])


def loaded(shop):
    return sys.modules[shop]


def told(capsys):
    """The one line on standard error; nothing is on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.count("\n") == 1
    return err.strip()


def answer(capsys, *arguments):
    """What the command says to a program."""
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def state_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_the_whole_way_by_the_installed_command(tmp_path):
    (tmp_path / "shop.py").write_text(textwrap.dedent(SHOP))

    def call(*arguments):
        command = [Path(sys.executable).parent / "bozzetto", *arguments, "--json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    data = ["--data", "shop:batches"]
    made = call("compress", "shop:network", *data, "--keep", "0.5", "--out", "small")
    assert made["params"] <= 0.5 * 1571
    assert made["made_from"] == "shop:network"
    scores = call("evaluate", "small", *data)
    tuned = call("train", "small", *data, "--out", "tuned", "--epochs", "2", "--lr", "0.01")
    assert tuned["params"] == made["params"] == scores["params"]
    assert [epoch["epoch"] for epoch in tuned["epochs"]] == [1, 2]
    better = call("evaluate", "tuned", *data)
    assert better["accuracy"] >= scores["accuracy"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".py") == [
        *(["__pycache__"] if (tmp_path / "__pycache__").exists() else []),
        "small",
        "tuned",
    ]


def test_the_version_is_that_of_the_package(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.1.0"


def test_compress_writes_what_the_library_would(shop, capsys):
    assert compress(shop, "--seed", "3", "--methods", "lowrank", "--json") == 0
    found, err = capsys.readouterr()
    assert err == ""
    user = loaded(shop)
    small, plan = bz.compress(user.network(), 0.5, user.batches(), methods=["lowrank"], seed=3)
    written = bz.load("small", user.network())
    assert_close(dict(written.state_dict()), dict(small.eval().state_dict()), rtol=0, atol=0)
    answer = json.loads(found)
    assert answer["params"] == plan.small["params"]
    assert answer["params_kept"] == plan.kept()
    assert answer["flops_kept"] == plan.kept("flops")
    assert {row["layer"] for row in answer["errors"]} == set(plan.choices)
    assert all(row["measured"] <= row["bound"] * (1 + 1e-9) for row in answer["errors"])
    files = ["model.safetensors", "plan.json", "report.html", "report.json"]
    assert sorted(state_of("small")) == files
    assert Path("small/report.html").read_text().count("<svg") == 6


def test_flops_alone_can_be_bounded(shop, capsys):
    arguments = ["compress", f"{shop}:network", "--data", f"{shop}:stream", "--out", "small"]
    assert run([*arguments, "--flops", "0.6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flops_kept"] <= 0.6


def test_a_sweep_writes_a_network_a_fraction_and_a_page_that_compares_them(shop, capsys):
    arguments = ["compress", f"{shop}:network", "--data", f"{shop}:batches", "--out", "all"]
    said = answer(capsys, *arguments, "--sweep", "0.5,0.25", "--metric", "accuracy")
    assert sorted(path.name for path in Path("all").iterdir()) == ["0.25", "0.5", "report.html"]
    target, half, quarter = said["networks"]
    assert target["params_kept"] == 1
    assert quarter["params_kept"] <= 0.25 < half["params_kept"] <= 0.5
    assert target["error"] == 0 < half["error"] < quarter["error"]
    measured = answer(capsys, "evaluate", "all/0.5", "--data", f"{shop}:batches")
    assert measured["accuracy"] == half["accuracy"]
    page = Path("all/report.html").read_text()
    assert "Size against quality" in page
    assert run([*arguments, "--sweep", "0.5,0.25"]) == 1
    assert "not empty" in told(capsys)
    assert run([*arguments, "--sweep", "0.5", "--force"]) == 1
    assert "all also holds ['0.25']" in told(capsys)
    assert len(answer(capsys, *arguments, "--sweep", "0.25,0.5", "--force")["networks"]) == 3


def test_a_floor_finds_the_smallest_network_that_reaches_it(shop, capsys):
    arguments = ["compress", f"{shop}:network", "--data", f"{shop}:batches", "--out", "small"]
    said = answer(capsys, *arguments, "--floor", "5", "--metric", "loss", "--val", f"{shop}:stream")
    assert said["loss"] <= 5
    assert said["params_kept"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "0.5,none"], "different fractions in (0, 1], as 0.5,0.25; got '0.5,none'"),
        (["--sweep", "0.5,0.5"], "different fractions"),
        (["--sweep", "0.5", "--floor", "0.5", "--metric", "accuracy"], "without a sweep"),
        (["--floor", "0.5"], "a floor goes with a metric"),
        (["--floor", "2", "--metric", "accuracy"], "the target itself is below the floor"),
    ],
)
def test_sweeps_and_floors_that_make_no_sense_are_told(shop, capsys, options, message):
    arguments = ["compress", f"{shop}:network", "--data", f"{shop}:batches", "--out", "small"]
    assert run([*arguments, *options]) != 0
    assert message in told(capsys)
    assert not Path("small").exists()


def test_bytes_and_latency_can_be_bounded(shop, capsys):
    arguments = ["compress", f"{shop}:network", "--data", f"{shop}:batches", "--out", "small"]
    assert answer(capsys, *arguments, "--size", "0.5")["bytes_kept"] <= 0.5
    assert answer(capsys, *arguments, "--latency", "1", "--force")["latency_kept"] <= 1


def test_tables_are_for_people(shop, capsys):
    assert compress(shop) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in ("lowrank", "bound", "measured", "params kept: 0.4", "made from", "latency ratio"):
        assert word in out


def test_inspect_lists_layers(shop, capsys):
    assert run(["inspect", f"{shop}:network", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["params"] == 1571
    assert [(row["layer"], row["kind"], row["params"]) for row in answer["layers"]] == [
        ("0", "Linear", 416),
        ("2", "Linear", 1056),
        ("4", "Linear", 99),
    ]
    assert sum(row["share"] for row in answer["layers"]) == pytest.approx(1)
    assert run(["inspect", f"{shop}:network"]) == 0
    assert "32×12" in capsys.readouterr().out


def test_inspect_shows_the_plan_of_a_folder_without_running_anything(saved, shop, capsys):
    sys.modules.pop(shop)
    assert run(["inspect", str(saved), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["made_from"] == f"{shop}:network"
    assert {row["method"] for row in answer["layers"]} >= {"lowrank"}
    assert shop not in sys.modules


def test_evaluate_measures_folders_and_models(saved, shop, capsys):
    measures = ["--metric", "accuracy", "--metric", "loss"]
    data = ["--data", f"{shop}:stream"]
    small = answer(capsys, "evaluate", str(saved), *data, *measures)
    whole = answer(capsys, "evaluate", f"{shop}:network", *data, *measures)
    user = loaded(shop)
    expected = bz.evaluate(bz.load(saved, user.network()), user.batches(), ["accuracy", "loss"])
    assert {name: small[name] for name in expected} == expected
    assert (whole["accuracy"], whole["params"]) == (1, 1571)
    assert small["params"] < 0.5 * 1571


def test_train_goes_on_where_it_was_interrupted(saved, shop, capsys, monkeypatch):
    def train(out):
        arguments = ["train", str(saved), "--data", f"{shop}:stream", "--out", out]
        return run([*arguments, "--epochs", "4", "--val", f"{shop}:batches"])

    assert train("straight") == 0
    user, real, passes = loaded(shop), loaded(shop).batches, []

    def interrupted():
        passes.append(1)
        if len(passes) == 6:
            raise OSError("the machine went down")
        return real()

    monkeypatch.setattr(user, "batches", interrupted)
    assert train("again") == 1
    checkpoints = list(Path().glob("again-*.training"))
    assert len(checkpoints) == 1
    assert not Path("again").exists()
    monkeypatch.setattr(user, "batches", real)
    assert train("again") == 0
    assert not checkpoints[0].exists()
    one, other = (bz.load(name, user.network()).state_dict() for name in ("straight", "again"))
    assert_close(dict(one), dict(other), rtol=0, atol=0)
    start = bz.load(saved, user.network()).state_dict()
    assert any(bool((start[name] != one[name]).any()) for name in start)


def test_a_checkpoint_of_another_recipe_is_named(saved, shop, capsys, monkeypatch):
    user, real, passes = loaded(shop), loaded(shop).batches, []
    monkeypatch.setattr(
        user, "batches", lambda: real() if len(passes) < 3 and not passes.append(1) else 1 / 0
    )
    train = ["train", str(saved), "--data", f"{shop}:stream", "--out", "tuned"]
    assert run([*train, "--epochs", "5"]) == 1
    assert "ZeroDivisionError: division by zero" in told(capsys)
    monkeypatch.setattr(user, "batches", real)
    assert run([*train, "--epochs", "3"]) == 1
    message = told(capsys)
    assert "epochs is 5 in the file and 3 here" in message
    assert f"delete {next(Path().absolute().glob('tuned-*.training'))}" in message


def test_train_can_replace_its_folder(saved, shop):
    before = state_of(saved)
    train = ["train", str(saved), "--data", f"{shop}:batches", "--epochs", "1", "--no-distill"]
    assert run(train) == 1
    assert state_of(saved) == before
    assert run([*train, "--force"]) == 0
    after = state_of(saved)
    assert json.loads(after["plan.json"])["source"] == f"{shop}:network"
    assert after.keys() == before.keys()
    assert after["model.safetensors"] != before["model.safetensors"]


def test_a_network_can_be_tuned_without_labels(saved, shop, capsys):
    train = ["train", str(saved), "--data", f"{shop}:unlabelled", "--epochs", "1", "--out", "tuned"]
    assert run(train) == 0
    assert run([*train[:-1], "other", "--no-distill"]) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{shop}:absent", "needs 'absent' to be a callable in '{shop}'; it has none"),
        ("{shop}:constant", "needs 'constant' to be a callable in '{shop}'; it is a int"),
        ("{shop}:number", "needs to return a torch.nn.Module; got int"),
        ("{shop}:fails", "calling {shop}:fails failed: KeyError: 'no weights here' ({shop}.py:"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError: No module named"),
        ("{shop}", "package.module:callable, a folder written by bozzetto or a local transformers"),
        ("os:system('ls')", "there is no such folder"),
        (".", "has no plan.json"),
    ],
)
def test_a_model_that_cannot_be_had_is_told_on_one_line(shop, capsys, model, message):
    arguments = ["--data", f"{shop}:batches", "--keep", "0.5", "--out", "small"]
    assert run(["compress", model.format(shop=shop), *arguments]) == 1
    assert message.format(shop=shop) in told(capsys)
    assert not Path("small").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{shop}:absent", "it has none"),
        ("{shop}:number", "needs to return batches to iterate; got int"),
        ("{shop}:empty", "at least one batch; got none"),
        ("{shop}:spoilt", "batch 1 the input of layer '0' has NaN or infinity"),
        ("{shop}:fails_midway", "LookupError: the disk is gone ({shop}.py:"),
        ("{shop}:narrow", "(4, 7) on cpu', 'torch.int64 (4,) on cpu'] fails: mat1 and mat2 shapes"),
        ("nowhere", "DATA needs to be package.module:callable"),
    ],
)
def test_data_that_cannot_be_had_is_told_on_one_line(shop, capsys, data, message):
    arguments = ["--data", data.format(shop=shop), "--keep", "0.5", "--out", "small"]
    assert run(["compress", f"{shop}:network", *arguments]) == 1
    assert message.format(shop=shop) in told(capsys)
    assert not Path("small").exists()


def test_a_module_that_fails_is_told_with_its_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("half_written.py").write_text("import os\n\nos.environ['NO_SUCH_VARIABLE_HERE']\n")
    Path("unfinished.py").write_text("def f(:\n")
    Path("leaves.py").write_text("raise SystemExit(5)\n")
    for name, message in (
        ("half_written", "KeyError: 'NO_SUCH_VARIABLE_HERE' (half_written.py:3)"),
        ("unfinished", "SyntaxError: invalid syntax (unfinished.py, line 1)"),
        ("leaves", "SystemExit: 5 (leaves.py:1)"),
    ):
        assert run(["inspect", f"{name}:f"]) == 1
        assert message in told(capsys)


@pytest.mark.parametrize(
    ("keep", "code", "message"),
    [
        ("0", 1, "keep is a fraction in (0, 1]; got params=0.0"),
        ("-0.5", 1, "keep is a fraction in (0, 1]; got params=-0.5"),
        ("25", 1, "keep is a fraction in (0, 1]; got params=25.0"),
        ("nan", 1, "keep is a fraction in (0, 1]; got params=nan"),
        ("0.01", 3, "no plan keeps 0.01 of the params: the smallest reachable is"),
    ],
)
def test_a_budget_that_cannot_be_met(shop, capsys, keep, code, message):
    assert compress(shop, keep=keep) == code
    assert message in told(capsys)
    assert not Path("small").exists()


def test_a_budget_is_needed(shop, capsys):
    arguments = ["compress", f"{shop}:network", "--data", f"{shop}:batches", "--out", "small"]
    assert run(arguments) == 1
    assert "at least one of params, flops" in told(capsys)


def test_a_model_without_layers_and_an_unknown_method(shop, capsys):
    arguments = ["--data", f"{shop}:batches", "--keep", "0.5", "--out", "small"]
    assert run(["compress", f"{shop}:activation", *arguments]) == 1
    assert "nothing to compress" in told(capsys)
    assert compress(shop, "--methods", "magic") == 1
    assert "'magic'" in told(capsys)


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["compress"], ["compress", "m:f", "--keep", "much"], ["inspect"]]
)
def test_wrong_usage_has_its_own_exit_code(arguments, capsys):
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error" in err


def test_nothing_is_overwritten_without_force(saved, shop, capsys):
    before = state_of(saved)
    assert compress(shop) == 1
    assert "small is not empty" in told(capsys)
    assert state_of(saved) == before
    assert compress(shop, "--force", keep="0.4") == 0
    assert state_of(saved)["model.safetensors"] != before["model.safetensors"]
    (saved / "diary.txt").write_text("dear diary")
    capsys.readouterr()
    assert compress(shop, "--force") == 1
    assert "diary.txt" in told(capsys)
    assert (saved / "diary.txt").read_text() == "dear diary"


def test_the_output_folder_is_looked_at_before_any_work(shop, capsys):
    Path("full").mkdir()
    Path("full/diary.txt").write_text("dear diary")
    assert compress("no_such_module", out="full") == 1
    assert "full is not empty" in told(capsys)


@pytest.mark.parametrize("name", ["plan.json", "model.safetensors"])
def test_a_damaged_folder_is_refused(saved, shop, capsys, name):
    content = (saved / name).read_bytes()
    for damaged in (content[: len(content) // 2], content[:-9] + b"123456789", b""):
        (saved / name).write_bytes(damaged)
        assert run(["evaluate", str(saved), "--data", f"{shop}:batches"]) == 1
        assert str(saved) in told(capsys)
    (saved / name).unlink()
    assert run(["evaluate", str(saved), "--data", f"{shop}:batches"]) == 1
    assert name in told(capsys)


def change_source(folder, source):
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"source": source}))


def test_a_stranger_s_folder_runs_nothing_that_the_user_did_not_name(saved, shop, capsys):
    Path("stranger.py").write_text("from pathlib import Path\nPath('pwned').touch()\n")
    change_source(saved, "stranger:build")
    assert run(["evaluate", str(saved), "--data", f"{shop}:batches"]) == 1
    assert told(capsys).endswith("if you trust it, add --model stranger:build")
    for source in ("stranger:build", "os:getcwd", f"{shop}:network --evil", f"{shop}x:network"):
        change_source(saved, source)
        assert run(["train", str(saved), "--data", f"{shop}:batches", "--out", "tuned"]) == 1
        assert f"--model {source}" in told(capsys)
    assert "stranger" not in sys.modules
    assert not Path("pwned").exists()
    named = ["--model", f"{shop}:network"]
    assert run(["evaluate", str(saved), "--data", f"{shop}:batches", *named]) == 0


def test_a_folder_that_does_not_tell_its_builder_asks_for_it(saved, shop, capsys):
    change_source(saved, None)
    assert run(["evaluate", str(saved), "--data", f"{shop}:batches"]) == 1
    assert "add --model package.module:callable" in told(capsys)


def test_a_folder_can_be_compressed_again(saved, shop, capsys):
    data = ["--data", f"{shop}:batches"]
    assert run(["compress", str(saved), *data, "--keep", "0.8", "--out", "smaller"]) == 0
    capsys.readouterr()
    assert run(["evaluate", "smaller", *data]) == 1
    assert f"add --model {saved}" in told(capsys)
    user = loaded(shop)
    scores = answer(capsys, "evaluate", "smaller", *data, "--model", str(saved))
    smaller = bz.load("smaller", bz.load(saved, user.network()))
    assert scores["accuracy"] == bz.evaluate(smaller, user.batches())
    assert scores["params"] <= 0.8 * answer(capsys, "evaluate", str(saved), *data)["params"]


def test_the_user_s_module_can_import_its_neighbours_and_data_may_be_lazy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corner").mkdir()
    Path("corner/__init__.py").touch()
    Path("corner/nets.py").write_text(
        "from torch import nn\nfrom corner.sizes import N\n\n"
        "def build():\n    from corner import sizes\n    return nn.Linear(sizes.N, N)\n"
    )
    Path("corner/sizes.py").write_text("N = 6\n")
    try:
        assert run(["inspect", "corner.nets:build"]) == 0
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "corner"]:
            del sys.modules[name]


def test_a_callable_may_import_its_neighbours_while_it_runs(saved, shop, capsys):
    Path("beside_it.py").write_text("def again(items):\n    yield from items\n")
    try:
        asked = ["evaluate", str(saved), "--model", f"{shop}:network", "--data", f"{shop}:late"]
        assert answer(capsys, *asked) == answer(capsys, *asked[:-1], f"{shop}:batches")
    finally:
        sys.modules.pop("beside_it", None)


def picture(colour, size=(8, 8), mode="RGB"):
    from PIL import Image

    return Image.new(mode, size, colour)


def bytes_of(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


IMAGES = """
    from torch import nn


    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Linear(16, 2))
"""


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Dark and bright pictures, as folders and as parquet with columns in two layouts."""
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)
    Path("pics.py").write_text(textwrap.dedent(IMAGES))
    found = [(picture((i, 2 * i, 0)), 0) for i in range(5)]
    found += [(picture((255 - i, 200, 100)), 1) for i in range(5)]
    for i, (image, label) in enumerate(found):
        folder = Path("folders", ["dark", "bright"][label] if label else "a dark one")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.png")
    labels = [label for _, label in found]
    content = [bytes_of(image) for image, _ in found]
    Path("data").mkdir()
    rows = [{"bytes": b, "path": None} for b in content]
    parquet.write_table(
        pa.table({"img": rows, "label": labels}), "data/train-00000-of-00001.parquet"
    )
    parquet.write_table(pa.table({"image": content, "label": labels}), "bare.parquet")
    yield
    sys.modules.pop("pics", None)


@pytest.mark.parametrize("data", ["folders", "data", "bare.parquet"])
def test_images_come_from_folders_and_parquet(images, data, capsys):
    from bozzetto.data import load_batches

    loader = load_batches(data, size=4, seed=1)
    batches = list(loader)
    assert [tuple(x.shape) for x, _ in batches] == [(4, 3, 8, 8), (4, 3, 8, 8), (2, 3, 8, 8)]
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert sorted(y.tolist()) == [0] * 5 + [1] * 5
    assert_close(x[y == 0][:, 0, 0, 0].sort().values, torch.arange(5) / 255)
    assert_close(x[y == 1][:, 1], torch.full((5, 8, 8), 200 / 255))
    again = torch.cat([b[1] for b in load_batches(data, size=4, seed=1)])
    assert again.tolist() == y.tolist()
    assert run(["compress", "pics:network", "--data", data, "--keep", "0.5", "--out", "small"]) == 0
    asked = ["evaluate", "small", "--data", data, "--model", "pics:network", "--json"]
    capsys.readouterr()
    assert run(asked) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["accuracy"] <= 1


def test_grey_pictures_have_one_channel(tmp_path):
    from bozzetto.images import image_batches

    for name, mode in (("a", "L"), ("b", "RGB")):
        (tmp_path / name).mkdir()
        picture("white", mode=mode).save(tmp_path / name / "0.png")
    loaders = [image_batches(tmp_path, size=1, seed=seed) for seed in range(6)]
    assert {tuple(x.shape) for loader in loaders for x, _ in loader} == {(1, 1, 8, 8)}
    (tmp_path / "b" / "0.png").unlink()
    picture("white", mode="L").save(tmp_path / "b" / "0.png")
    assert {tuple(x.shape) for x, _ in image_batches(tmp_path, size=2)} == {(2, 1, 8, 8)}


def spoil(kind):
    import pyarrow as pa
    from pyarrow import parquet

    if kind == "sizes":
        picture("red", size=(9, 8)).save("folders/bright/9.png")
        return "folders"
    if kind == "no picture":
        Path("folders/bright/9.png").write_text("this is not a picture")
        return "folders"
    if kind == "deep":
        picture(0, mode="I;16").save("folders/bright/9.png")
        return "folders"
    if kind == "empty class":
        Path("folders/empty").mkdir()
        return "folders"
    if kind == "no classes":
        Path("nothing").mkdir()
        return "nothing"
    if kind == "two splits":
        Path("data/test-00000-of-00001.parquet").write_bytes(Path("bare.parquet").read_bytes())
        return "data"
    if kind == "columns":
        parquet.write_table(pa.table({"text": ["a"], "label": [0]}), "odd.parquet")
    elif kind == "labels":
        parquet.write_table(pa.table({"img": [b"a"], "label": ["cat"]}), "odd.parquet")
    elif kind == "no bytes":
        parquet.write_table(pa.table({"img": ["a.png"], "label": [0]}), "odd.parquet")
    elif kind == "no rows":
        none = pa.table({"img": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
        parquet.write_table(none, "odd.parquet")
    else:
        Path("odd.parquet").write_bytes(Path("bare.parquet").read_bytes()[:-20])
    return "odd.parquet"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sizes", "images need to be of one size"),
        ("no picture", "9.png cannot be read as an image"),
        ("deep", "more than 8 bits a channel"),
        ("empty class", "folders ['empty'] without images"),
        ("no classes", "nothing has no folders"),
        ("two splits", "holds the splits ['test', 'train']: name a file"),
        (
            "columns",
            "needs the columns image (or img) and label; odd.parquet has ['text', 'label']",
        ),
        ("labels", "labels need to be whole numbers; odd.parquet has string"),
        ("no bytes", "needs the bytes of an image; got str"),
        ("no rows", "odd.parquet holds no images"),
        ("damaged", "damaged parquet"),
    ],
)
def test_files_that_are_no_data_are_refused(images, capsys, kind, message):
    arguments = ["--data", spoil(kind), "--keep", "0.5", "--out", "small"]
    assert run(["compress", "pics:network", *arguments]) == 1
    assert message in told(capsys)


def test_what_is_not_installed_is_named(images, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(["compress", "pics:network", "--data", "data", "--keep", "1", "--out", "s"]) == 1
    assert "pip install 'bozzetto[data]'" in told(capsys)
    Path("hub").mkdir()
    Path("hub/config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run(["inspect", "hub"]) == 1
    assert "pip install 'bozzetto[hf]'" in told(capsys)


def test_a_transformers_folder_is_a_model(tmp_path, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    monkeypatch.chdir(tmp_path)
    config = transformers.GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=16, n_inner=64
    )
    with torch.random.fork_rng():
        transformers.GPT2LMHeadModel(config).save_pretrained("hub")
    Path("text.py").write_text(
        "import torch\n\ndef batches():\n"
        "    return [{'input_ids': torch.arange(i, i + 24).view(2, 12)} for i in range(4)]\n"
    )
    try:
        arguments = ["--data", "text:batches", "--out", "small", "--keep", "0.7", "--json"]
        assert run(["compress", "hub", *arguments]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["made_from"] == "hub"
        assert answer["params_kept"] <= 0.7
        assert run(["inspect", "small", "--model", "hub", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["params"] == answer["params"]
        Path("hub/model.safetensors").unlink()
        assert run(["inspect", "hub"]) == 1
        assert "no file named model.safetensors" in told(capsys)
    finally:
        sys.modules.pop("text", None)


def test_progress_is_for_terminals_and_never_on_standard_output(shop, tmp_path):
    environment = os.environ | {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}
    command = [Path(sys.executable).parent / "bozzetto", "compress", f"{shop}:network", "--json"]
    more = ["--data", f"{shop}:batches", "--keep", "0.5", "--out", "small"]
    done = subprocess.run(
        [*command, *more], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["folder"] == "small"
    assert "reading DATA" in done.stderr
