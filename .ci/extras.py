"""Install each extra by itself beside an installed core, and use what it brings: `make extras`.

Run by the Python of the environment that has the core: `python .ci/extras.py bozzetto-….whl`.
"""

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
MODEL = """
import torch, bozzetto as bz
from torch import nn
model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 16)
"""
USES = {
    "hf": """
import torch, bozzetto as bz
from transformers import GPT2Config, GPT2LMHeadModel
config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2)
batch = {"input_ids": torch.randint(64, (4, 16)), "labels": torch.randint(64, (4, 16))}
small, plan = bz.compress(GPT2LMHeadModel(config).eval(), 0.7, [batch], layers="*mlp*")
assert plan.kept() <= 0.7
""",
    "data": """
import pyarrow, pyarrow.parquet, datasets
from PIL import Image
from pathlib import Path
from bozzetto.data import load_batches
for name in ("a", "b"):
    Path("images", name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(Path("images", name, "0.png"))
assert len(list(load_batches("images"))) == 1
""",
    "train": MODEL
    + """
from accelerate import Accelerator
bz.train(model, [(x, x[:, :4])], bz.Recipe(epochs=1), accelerator=Accelerator(cpu=True))
""",
    "dask": """
import dask.array, distributed, numpy
from bozzetto.regress import DaskShards, ISLETRegressor
x = numpy.random.default_rng(0).standard_normal((100, 4, 4))
parts = dask.array.from_array(x, (50, 4, 4)), dask.array.from_array(x[:, 0, 0], 50)
assert ISLETRegressor(1).fit_batches(DaskShards.of_arrays(*parts)).coef_.shape == (4, 4)
""",
    "onnx": MODEL + "bz.export(model.eval(), 'x.onnx', x)\n",
    "trajectory": """
import pyarrow
from pathlib import Path
from pyarrow import parquet
from bozzetto.trajectory import load
names = "track_id object_type timestep position_x position_y heading".split()
rows = [dict(zip(names, ("a", "vehicle", i, float(i), 0.0, 0.0))) for i in range(30)]
parquet.write_table(pyarrow.Table.from_pylist(rows), "scenario_1.parquet")
(recording,) = load(Path("scenario_1.parquet"))
assert len(recording.tracks[0].state) == 30
""",
    "sumo": """
from pathlib import Path
from bozzetto.trajectory import simulate
assert len(simulate(Path("traffic"), "merge", seconds=20).tracks) > 1
""",
}


def check(extra: str, wheel: Path) -> None:
    """An environment that sees the core's packages and has the extra's own; raises if it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
        python = folder / "env" / "bin" / "python"
        site = next((folder / "env" / "lib").glob("python*/site-packages"))
        (site / "core.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = [python, "-m", "pip", "install", "-qq", "--constraint", CONSTRAINTS]
        subprocess.run([*install, f"{wheel.resolve()}[{extra}]"], check=True)
        subprocess.run([python, "-c", USES[extra]], cwd=folder, check=True)


if __name__ == "__main__":
    for extra in USES:
        check(extra, Path(sys.argv[1]))
        print(extra, "works", flush=True)
