"""Networks of transformers from strangers: a saved folder, a folder of that library, a hub."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha1, sha256
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from fuzzing import Stranger
from mutating import as_json, mutate_json, mutate_safetensors

import bozzetto as bz
from bozzetto.data import load_model

GPT2: dict[str, Any] = {
    "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 60, "n_positions": 32,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_NAME, _SHA = "someone/small", "0" * 40


def resealed(folder: Path) -> None:
    """The checksum in plan.json made that of the weights: who forges can count too."""
    file = folder / "saved" / "plan.json"
    try:
        data = json.loads(file.read_text())
        data["sha256"] = sha256((folder / "saved" / "model.safetensors").read_bytes()).hexdigest()
        file.write_text(json.dumps(data))
    except (ValueError, TypeError, OSError):
        return


def _saved(folder: Path) -> None:
    import transformers

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    bz.save(folder / "saved", *bz.sketch(model, 0.6))


def _whole(folder: Path) -> None:
    import transformers

    transformers.GPT2Model(transformers.GPT2Config(**GPT2)).save_pretrained(folder / "whole")


def _served(folder: Path) -> None:
    """What a hub answers, beside what it has."""
    _saved(folder)
    names = [file.name for file in (folder / "saved").iterdir()]
    tree = [{"type": "file", "path": name, "oid": "1" * 40} for name in [*names, "code.py"]]
    (folder / "answers").mkdir()
    (folder / "answers" / "info.json").write_text(json.dumps({"id": _NAME, "sha": _SHA}))
    (folder / "answers" / "tree.json").write_text(json.dumps(tree))
    (folder / "answers" / "heads.json").write_text(json.dumps({"X-Repo-Commit": _SHA}))


def _read_hub(folder: Path) -> object:
    """Into a cache of its own each time."""
    place = next(folder / f"cache{i}" for i in count() if not (folder / f"cache{i}").exists())
    with _hub(folder, place):
        return bz.load(_NAME)


@contextmanager
def _hub(folder: Path, place: Path) -> Iterator[None]:
    """The hub's own client, and answers from a folder instead of a network."""
    import httpx2
    import huggingface_hub
    from huggingface_hub.utils._http import default_client_factory

    whole = huggingface_hub.snapshot_download

    def download(name: str, **options: Any) -> str:
        return whole(name, endpoint="http://hub", cache_dir=place, **options)

    def answer(request: Any) -> Any:
        code, heads, content = _answered(folder, request.url.path)
        return httpx2.Response(code, headers=heads, content=content)

    transport = httpx2.MockTransport(answer)
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=transport))
    huggingface_hub.snapshot_download = download
    try:
        yield
    finally:
        huggingface_hub.snapshot_download = whole
        huggingface_hub.set_client_factory(default_client_factory)


def _answered(folder: Path, path: str) -> tuple[int, dict[str, str], bytes]:
    """Code, heads and content for a path, as the files under "answers" have it."""
    if path.startswith("/api/"):
        kind = "tree" if "/tree/" in path else "info"
        return 200, {}, _sized(folder, (folder / "answers" / f"{kind}.json").read_bytes())
    file = folder / "saved" / path.rsplit("/", 1)[-1]
    if not file.is_file():
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    content = file.read_bytes()
    heads = {"ETag": f'"{sha1(content).hexdigest()}"', "Content-Length": str(len(content))}
    try:
        more = dict(json.loads((folder / "answers" / "heads.json").read_text()))
    except (ValueError, TypeError):
        more = {}
    clean = {k: v for k, v in more.items() if isinstance(v, str) and (k + v).isascii()}
    return 200, heads | {k: v for k, v in clean.items() if k and (k + v).isprintable()}, content


def _sized(folder: Path, content: bytes) -> bytes:
    """With the sizes of the files as they are now."""
    try:
        data = json.loads(content)
        for entry in data:
            file = folder / "saved" / entry["path"]
            entry["size"] = file.stat().st_size if file.is_file() else 7
        return json.dumps(data).encode()
    except (ValueError, TypeError, KeyError, OSError):
        return content


_CHANGES = {".json": as_json(mutate_json), ".safetensors": mutate_safetensors}
_HOMES = frozenset({"transformers", "huggingface_hub", "httpx2", "torch"}) | sys.stdlib_module_names


def _architectures() -> dict[str, Stranger]:
    if not all(find_spec(name) for name in ("transformers", "huggingface_hub", "httpx2")):
        return {}

    def stranger(write: Callable[[Path], object], read: Callable[[Path], object]) -> Stranger:
        return Stranger(write, read, _CHANGES, resealed, _HOMES)

    return {
        "load: transformers": stranger(_saved, lambda f: bz.load(f / "saved")),
        "load: hub": stranger(_served, _read_hub),
        "transformers": stranger(_whole, lambda f: load_model(str(f / "whole"))),
    }


ARCHITECTURES = _architectures()
