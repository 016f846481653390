"""From and to the Hugging Face hub: architectures of transformers, downloads, model cards."""

import json
import threading
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bozzetto as bz
from bozzetto.card import model_card
from bozzetto.io import InvalidFolder

transformers = pytest.importorskip("transformers")
hub = pytest.importorskip("huggingface_hub")

GPT2 = {
    "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 60, "n_positions": 32,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BERT = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 60, "max_position_embeddings": 32, "num_labels": 3,
}  # fmt: skip


def words(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def gpt2() -> tuple[nn.Module, bz.Plan]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval()
    model.generation_config.max_new_tokens = 5
    model.generation_config.repetition_penalty = 1.5
    model.config._name_or_path = "/home/alice/secret"
    return bz.compress(model, 0.5, [{"input_ids": words(8, 10)}])


@pytest.fixture
def saved(gpt2: tuple[nn.Module, bz.Plan], tmp_path: Path) -> Path:
    return bz.save(tmp_path / "small", *gpt2)


def test_a_language_model_comes_back_without_being_named_and_generates_the_same(
    gpt2: tuple[nn.Module, bz.Plan], saved: Path
):
    state = torch.get_rng_state()
    again = bz.load(saved)
    assert (torch.get_rng_state() == state).all()
    assert type(again) is transformers.GPT2LMHeadModel
    assert_close(dict(again.state_dict()), dict(gpt2[0].state_dict()), rtol=0, atol=0)
    prompt = words(2, 4)
    found = again.generate(prompt, do_sample=False)
    assert found.shape == (2, 9)  # max_new_tokens of its own generation_config
    assert_close(found, gpt2[0].eval().generate(prompt, do_sample=False), rtol=0, atol=0)


def test_half_precision_comes_back_as_it_was(gpt2: tuple[nn.Module, bz.Plan], tmp_path: Path):
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).to(torch.bfloat16)
    small, plan = bz.sketch(model, 0.6)
    again = bz.load(bz.save(tmp_path / "small", small, plan))
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


def test_a_pipeline_runs_on_a_loaded_classifier(tmp_path: Path):
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)).eval()
    small, plan = bz.compress(model, 0.5, [{"input_ids": words(8, 10)}])
    again = bz.load(bz.save(tmp_path / "small", small, plan))
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "stone", "wax", "small", "large"]
    tokenizer = transformers.BertTokenizer(vocab={name: i for i, name in enumerate(names)})
    run = transformers.pipeline("text-classification", model=again, tokenizer=tokenizer)
    (found,) = run("small wax")
    inputs = tokenizer("small wax", return_tensors="pt")
    with torch.no_grad():
        scores = small.eval()(**inputs).logits.softmax(-1)[0]
    assert found["score"] == pytest.approx(float(scores.max()), rel=1e-5)
    assert found["label"] == f"LABEL_{int(scores.argmax())}"


def test_the_architecture_tells_nothing_of_the_machine_that_wrote_it(saved: Path):
    assert "alice" not in (saved / "architecture.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "pipeline"}, "class of transformers"),
        ({"class": "os.system"}, "class of transformers"),
        ({"class": "GPT2Config"}, "no model of transformers"),
        ({"class": None}, "class of transformers"),
        ({"config": []}, "class of transformers"),
    ],
)
def test_a_tampered_architecture_is_refused(saved: Path, change: dict[str, object], message: str):
    file = saved / "architecture.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InvalidFolder, match=message):
        bz.load(saved)


def test_an_architecture_cannot_ask_for_code_or_weights_from_elsewhere(
    saved: Path, monkeypatch: pytest.MonkeyPatch
):
    file = saved / "architecture.json"
    data = json.loads(file.read_text())
    data["config"] |= {
        "attn_implementation": "stranger/kernel",
        "_attn_implementation_internal": "stranger/kernel",
        "auto_map": {"AutoModel": "stranger/model--code.Model"},
        "quantization_config": {"quant_method": "stranger"},
    }
    file.write_text(json.dumps(data))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert bz.load(saved).config._attn_implementation == "sdpa"


def test_a_model_of_one_s_own_class_is_not_described(tmp_path: Path):
    class Mine(transformers.GPT2LMHeadModel):
        pass

    small, plan = bz.sketch(Mine(transformers.GPT2Config(**GPT2)), 0.6)
    folder = bz.save(tmp_path / "small", small, plan)
    assert not (folder / "architecture.json").exists()
    with pytest.raises(ValueError, match="model=…"):
        bz.load(folder)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: one model, "someone/small"."""

    folder: Path
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        if "/someone/small" not in self.path:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if self.path.startswith("/api/"):
            sizes = {p.name: p.stat().st_size for p in self.folder.iterdir()} | {"code.py": 7}
            data: object = {"id": "someone/small", "sha": "0" * 40}
            if "/tree/" in self.path:
                data = [
                    {"type": "file", "path": name, "size": size, "oid": "1" * 40}
                    for name, size in sizes.items()
                ]
            return self._answer(200, json.dumps(data).encode(), {})
        content = (self.folder / name).read_bytes()
        tag = sha1(content).hexdigest()
        return self._answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": "0" * 40})

    def _answer(self, code: int, content: bytes, heads: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in (heads | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def served(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine that has what was saved."""
    Hub.folder, Hub.asked = saved, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    whole = hub.snapshot_download

    def download(name: str, **options: object) -> str:
        return whole(name, endpoint=address, cache_dir=tmp_path / "cache", **options)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_loaded_by_its_name(
    gpt2: tuple[nn.Module, bz.Plan], served: type[Hub]
):
    again = bz.load("someone/small")
    assert_close(dict(again.state_dict()), dict(gpt2[0].state_dict()), rtol=0, atol=0)
    assert not any("code.py" in path for path in served.asked)


def test_a_folder_of_that_name_comes_first(served: type[Hub], saved: Path):
    saved.rename(saved.parent / "someone")
    (saved.parent / "moved").mkdir()
    (saved.parent / "someone").rename(saved.parent / "moved" / "small")
    bz.load("moved/small")
    assert served.asked == []


def test_a_name_that_the_hub_does_not_know(served: type[Hub]):
    with pytest.raises(FileNotFoundError, match="no folder 'someone/else', and the hub gave no"):
        bz.load("someone/else")


def test_while_the_hub_cannot_be_reached(served: type[Hub], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="no folder 'someone/small', and the hub gave no"):
        bz.load("someone/small")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    bz.load("someone/small")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    bz.load("someone/small")  # from what was downloaded


def test_a_path_is_never_looked_up_at_the_hub(served: type[Hub]):
    for path in (Path("someone/small"), "./small2", "a/b/c", "somewhere"):
        with pytest.raises(InvalidFolder, match=r"has no plan\.json"):
            bz.load(path)
    assert served.asked == []


def test_the_hub_s_own_reader_understands_the_card(gpt2: tuple[nn.Module, bz.Plan], tmp_path: Path):
    small, plan = gpt2
    card = model_card(plan, license="apache-2.0", base="openai/gpt2", results={"Layers": plan})
    folder = bz.save(tmp_path / "card", small, plan, card=card)
    read = hub.ModelCard.load(folder / "README.md")
    assert (read.data.license, read.data.library_name) == ("apache-2.0", "bozzetto")
    assert read.data.base_model == "openai/gpt2"
    assert f"{plan.kept():.1%} of its trained values" in read.text
    assert all(f"| {path} |" in read.text for path in plan.choices)
    bz.load(folder)
