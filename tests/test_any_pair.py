"""An original and copies of every kind: equal weights give equal figures, and what differs besides is said first."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import compress_lab as cl
from compress_lab.cli import main
from compress_lab.evaluate.noise_floor import again
from compress_lab.models.tiny import tiny
from compress_lab.study import Study

FORMS = ("compressed-tensors", "gptq", "gguf")  # each holds eight bits without zero points
GRAPHS = ("onnx", "openvino")
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    "A folder with a tiny model, its copy of eight bits in several forms, and the copy with an adapter of zeros."
    folder = tmp_path_factory.mktemp("pairs")
    words = {f"w{number}": number for number in range(128)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    reads = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", chat_template=TEMPLATE)
    random = torch.Generator().manual_seed(0)
    text = [" ".join(f"w{int(word)}" for word in torch.randint(1, 128, (40,), generator=random)) for _ in range(400)]
    (folder / "text.txt").write_text("\n\n".join(text))
    original = cl.Subject(tiny("llama", num_hidden_layers=1), reads)
    original.save(folder / "model")
    copy = cl.RTN(8, 32, symmetric=True).apply(original)
    copy.save(folder / "saved")
    for form in FORMS:
        cl.export(copy, folder / form, form, check=False)
    (folder / "adapter").mkdir()
    name = "base_model.model.model.layers.0.mlp.up_proj"
    state = {f"{name}.lora_A.weight": torch.ones(2, 64), f"{name}.lora_B.weight": torch.zeros(96, 2)}
    save_file(state, folder / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(folder / "saved")}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_one_dossier_in_which_the_same_weights_agree(here, monkeypatch):
    monkeypatch.chdir(here)
    for form in GRAPHS:
        cl.export(cl.load("saved"), form, form, check=False)
    probes = (
        {"probe": "fidelity", "text": "text.txt", "n": 20, "context": 16},
        {"probe": "perplexity", "text": "text.txt", "n": 20, "context": 16},
        "size",
    )
    copies = {name: name for name in ("saved", *FORMS, *GRAPHS, "adapter")}
    dossier = Study("model", {}, probes, copies=copies, noise_floor=True).run("run")
    table = dossier.table()
    original = cl.load("model")
    found = {name: cl.compare(original, name, probes).frame.set_index("metric")["compressed"] for name in copies}
    assert cl.compare(original, "onnx", ["size"]).mismatches == []
    floor = cl.probe(again(original), probes[0], original=original).summary()["kl"]["value"]
    values = [figures["kl"] for figures in found.values()]
    assert 100 * floor < min(values) and max(values) - min(values) < 0.01 * min(values)
    values = [figures["perplexity"] for figures in found.values()]
    assert max(values) / min(values) - 1 < 1e-4
    assert {*copies} <= {*table.index} and not table.loc[[*copies]].isna().all(axis=1).any()
    for name in copies:
        weights = [path for path in (here / name).iterdir() if path.suffix in (".safetensors", ".gguf", ".onnx")]
        weights += [*(here / name).glob("*.xml"), *(here / name).glob("*.bin"), *(here / name).glob("*.data")]
        weights += [*(here / "saved").glob("*.safetensors")] * (name == "adapter")
        assert 0 <= sum(path.stat().st_size for path in weights) - found[name]["file_bytes"] < 12_000, name


def test_what_differs_besides_the_weights_is_named_first(here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(here / "gptq", "planted")
    (tmp_path / "planted" / "chat_template.jinja").write_text(TEMPLATE.replace("<", "["))
    rows = torch.arange(8, 24)[None]
    for copy in ("planted", cl.load("planted")):
        comparison = cl.compare(here / "model", copy, ["fidelity"], rows=rows)
        assert comparison.mismatches == ["the chat templates differ"]
        assert "the chat templates differ" in capsys.readouterr().out
        assert "besides the weights: the chat templates differ" in repr(comparison)
    assert main(["compare", str(here / "model"), "planted", "--suite", "size", "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert said.index("the chat templates differ") < said.index("file_bytes")


def test_a_copy_without_a_tokenizer_reads_with_its_originals(here, tmp_path, monkeypatch):
    monkeypatch.chdir(here)
    shutil.copytree(here / "gptq", tmp_path / "bare")
    for path in (tmp_path / "bare").glob("token*"):
        path.unlink()
    asked = [{"probe": "perplexity", "text": "text.txt", "n": 20, "context": 16}]
    bare, whole = (cl.compare("model", place, asked) for place in (tmp_path / "bare", "gptq"))
    assert bare.mismatches[0] == "the copy has no tokenizer and uses the other's"
    assert bare.frame["compressed"].tolist() == whole.frame["compressed"].tolist()


def test_apply_writes_a_format_in_one_go(here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = str(here / "model")
    command = ["apply", "RTN", "--bits", "8", "--group-size", "32", "--symmetric", "--model", model, "--out"]
    assert main([*command, "made", "--format", "gptq"]) == 0 and "gptq, " in capsys.readouterr().out
    assert cl.load("made").fingerprint == cl.load(here / "gptq").fingerprint
    assert main([*command, "made", "--format", "gptq"]) == 0  # an export may be replaced
    assert main([*command, "made"]) == 2 and "does not hold a saved Subject" in capsys.readouterr().err
    assert main([*command, "kept"]) == 0
    assert "in the layout compressed-tensors, read by transformers" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "kept", "--format", "gptq"]) == 2 and "hold an export" in capsys.readouterr().err
    assert main([*command, "none", "--format", "ggfu"]) == 2 and "did you mean gguf" in capsys.readouterr().err
    floats = ["apply", "Float", "--format", "fp8_e4m3", "--model", model, "--out", "floats"]
    assert main([*floats, "--format", "compressed-tensors"]) == 0
    assert cl.load("floats").stored.format == "compressed-tensors float-quantized"
