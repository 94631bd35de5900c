"""Folders of models as a hostile supplier, a failing disk or a killed process leaves them.

They are refused by name or read rightly, and never a hang.
"""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import compress_lab as cl
from compress_lab.core.errors import CompressLabError
from compress_lab.models import loading
from compress_lab.models.checkpoints import weight_files, weights_sha256
from compress_lab.models.loading import load
from compress_lab.models.starters import Starter
from compress_lab.models.subject import Subject
from compress_lab.models.tiny import tiny

CONFIG = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)


@contextmanager
def within(seconds: int):
    "Fails where the block takes longer."

    def late(*_):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def saved(model, tmp_path) -> Path:
    "A saved Subject with integers, a licence and a history."
    subject = (cl.Magnitude(0.5) >> cl.RTN(bits=4, group_size=16)).apply(Subject(model, files={"LICENSE": b"free"}))
    return subject.save(tmp_path / "saved")


def change(folder: Path, **config) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def refused(folder: Path, *words: str):
    with within(20), pytest.raises(CompressLabError) as error:
        load(folder)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value)) < 3000


ODD = [None, True, -1, 0, 10**30, 1.5, float("nan"), "", "x", "\x1b[0m", [], [1], {}, {"a": 1}, [[]], "float64"]


def mutated(value, draw: random.Random):
    "The value with one part of it replaced, removed or repeated."
    value = copy.deepcopy(value)
    at, parent, key = value, None, None
    while isinstance(at, (dict, list)) and at and (parent is None or draw.random() < 0.7):
        parent, key = at, draw.choice(list(at)) if isinstance(at, dict) else draw.randrange(len(at))
        at = parent[key]
    if draw.random() < 0.2:
        del parent[key]
    else:
        parent[key] = copy.deepcopy(draw.choice(ODD))
    return value


# what is loaded is what was checked


def sharded(model, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def test_the_hash_is_of_the_files_that_were_read(model, tmp_path):
    folder = sharded(model, tmp_path / "m")
    files = weight_files(folder)
    assert len(files) > 1
    save_file({"decoy": torch.zeros(1)}, folder / "another.safetensors")
    subject = load(folder)
    assert subject.provenance.sha256 == weights_sha256(files)
    assert torch.equal(subject.model.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    "named", ["pytorch_model.bin", "../outside.safetensors", "/etc/passwd", "model.pt", "a/b.safetensors", None, 5]
)
def test_an_index_that_names_anything_else(model, tmp_path, named):
    folder = sharded(model, tmp_path / "m")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name = next(iter(index["weight_map"]))
    save_file({name: torch.ones(64, 32)}, tmp_path / "outside.safetensors")
    torch.save({name: torch.ones(64, 32)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({**index, "weight_map": {**index["weight_map"], name: named}})
    )
    refused(folder, "model.safetensors.index.json")


def test_a_single_file_beside_shards_is_a_guess(model, tmp_path):
    folder = sharded(model, tmp_path / "m")
    save_file({name: tensor + 1 for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    refused(folder, "model.safetensors and others")


def test_a_config_that_names_its_weights(folder):
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    refused(change(folder, transformers_weights="other.safetensors"), "transformers_weights")


@pytest.mark.parametrize(
    "config, words",
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq 4"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": "eight bits"}, "eight bits"),
    ],
)
def test_quantized_formats_are_named(folder, config, words):
    refused(change(folder, **config), words)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_codes_are_not_taken_for_weights(folder, dtype):
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(
        {**state, name: (state[name] * 1000).to(dtype), name + "_scale": torch.ones(48, 1)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    refused(folder, "stored as codes", name)


# sizes and depth


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 0},
        {"num_labels": 10**9},
        {"vocab_size": 10**12},
        {"hidden_size": 10**9},
        {"max_position_embeddings": -1},
        {"pad_token_id": 10**9},
        {"num_attention_heads": 10**9},
        {"architectures": ["PreTrainedModel"]},
        {"architectures": ["LlamaPreTrainedModel"]},
        {"architectures": ["\x1b[31mred"]},
        {"model_type": "\x1b]0;title\x07"},
        {"num_hidden_layers": 2.5},
        {"head_dim": 0},
        {"rope_parameters": {"rope_type": "yarn", "factor": float("nan")}},
        {"layer_types": ["full_attention"] * 10**5},
    ],
    ids=str,
)
def test_configs_beyond_reason(folder, config):
    try:
        with within(20):
            found = load(change(folder, **config))
    except CompressLabError as error:
        assert "\x1b" not in str(error) and len(str(error)) < 3000
    else:
        assert (
            torch.equal(
                found.model.get_input_embeddings().weight,
                load_file(folder / "model.safetensors")["model.embed_tokens.weight"],
            )
            and len(found.model.model.layers) == 2
        )


@pytest.mark.parametrize(
    "kind, head",
    [("gpt2", "causal_lm"), ("mixtral", "causal_lm"), ("roberta", "masked_lm"), ("qwen3_next", "causal_lm")],
)
def test_odd_values_in_configs(tmp_path, kind, head):
    draw = random.Random(kind)
    tiny(kind, head=head).save_pretrained(tmp_path)
    said = {
        name: json.loads((tmp_path / name).read_text())
        for name in ("config.json", "generation_config.json")
        if (tmp_path / name).exists()
    }
    for _ in range(25):
        for name, values in said.items():
            (tmp_path / name).write_text(json.dumps(mutated(values, draw)))
        try:
            with within(20):
                repr(load(tmp_path))
        except CompressLabError as error:
            assert len(str(error)) < 3000


def test_a_config_of_any_depth(folder):
    for depth in (500, 5_000, 200_000):
        (folder / "config.json").write_text('{"a": ' * depth + "1" + "}" * depth)
        refused(folder)


@pytest.mark.parametrize(
    "text",
    [
        "---" + "\n" * 10**6,
        "---\n" + "license:" * 10**5,
        "---\n" + " - \n" * 10**5 + "---\n",
        "---\nlicense: " + "x" * 10**6 + "\n---\n",
    ],
)
def test_a_card_that_keeps_patterns_busy(folder, text):
    (folder / "README.md").write_text(text)
    with within(5):
        assert len(load(folder).provenance.licence) <= 200


# what stands in the place of a file


def put_pipe(path):
    os.mkfifo(path)


def put_folder(path):
    path.mkdir()


def put_loop(path):
    path.symlink_to(path.name)


def put_device(path):
    path.symlink_to("/dev/zero")


def put_nothing(path):
    path.symlink_to("nowhere")


@pytest.mark.parametrize("put", [put_pipe, put_folder, put_loop, put_device])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
    ],
)
def test_no_file_in_the_place_of_one(folder, name, put):
    (folder / name).unlink(missing_ok=True)
    put(folder / name)
    refused(folder, name)


@pytest.mark.parametrize("put", [put_pipe, put_folder, put_loop, put_device, put_nothing])
def test_no_file_in_the_place_of_one_that_was_saved(saved, put):
    for name in sorted(path.name for path in saved.iterdir()):
        copied = shutil.copytree(saved, saved.with_name(f"copy-{name}"), symlinks=True)
        (copied / name).unlink()
        put(copied / name)
        refused(copied)


def test_names_that_no_system_takes(folder, model, tmp_path):
    for name in ("a\0b", "x" * 5000, "", tmp_path / "pipe"):
        if isinstance(name, Path):
            os.mkfifo(name)
        with within(5), pytest.raises(CompressLabError):
            load(name)
    for name in ("a\0b", str(tmp_path / ("x" * 300))):
        with pytest.raises(CompressLabError):
            Subject(model).save(name)


# damage


def test_any_flipped_bit_is_noticed(saved):
    draw = random.Random(0)
    for path in sorted(saved.iterdir()):
        content = path.read_bytes()
        for _ in range(12):
            at, bit = draw.randrange(len(content)), draw.randrange(8)
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            try:
                load(saved)
            except CompressLabError:
                continue
            raise AssertionError(f"bit {bit} of byte {at} of {path.name}")
        path.write_bytes(content)


def test_odd_values_in_the_record_of_a_save(saved):
    path, draw = saved / "compress_lab.json", random.Random(1)
    meta, wanted = json.loads(path.read_text()), load(saved).fingerprint
    del meta["checksum"]
    for _ in range(250):
        odd = mutated(meta, draw)
        path.write_text(json.dumps(odd))
        try:
            with within(10):
                found = load(saved)
        except CompressLabError as error:
            assert len(str(error)) < 3000
            continue
        repr(found), found._repr_html_(), found.name
        assert found.fingerprint == wanted, {key: value for key, value in odd.items() if value != meta.get(key)}


def test_a_model_that_was_converted_is_checked_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_LAB_CACHE", str(tmp_path / "cache"))
    made = []

    def dequantise(gguf, folder):
        made.append(folder)
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (folder / name).write_text(name)

    monkeypatch.setattr(loading, "_dequantise", dequantise)
    starter = Starter("fake", "model", "fake==1.0", {"fake/a.gguf": "0"}, 1, "CC0")
    (tmp_path / "cache").mkdir()
    folder = loading._converted(starter, tmp_path / "a.gguf")
    assert loading._converted(starter, tmp_path / "a.gguf") == folder and len(made) == 1
    for count, damage in enumerate(
        [
            lambda: (folder / "config.json").write_text("config_json"),
            lambda: (folder / "tokenizer.json").unlink(),
            lambda: (folder / "added.json").write_text("{}"),
            lambda: folder.with_name("fake.json").write_text("{"),
            lambda: folder.with_name("fake.json").unlink(),
            lambda: (shutil.rmtree(folder), folder.write_text("a file")),
            lambda: (shutil.rmtree(folder), folder.symlink_to(folder.name)),
            lambda: ((folder / "config.json").unlink(), os.mkfifo(folder / "config.json")),
        ],
        2,
    ):
        damage()
        with within(5):
            loading._converted(starter, tmp_path / "a.gguf")
        assert (
            len(made) == count
            and (folder / "config.json").read_text() == "config.json"
            and len(list(folder.iterdir())) == 3
        )


# killed between the two renames

KILLED = """
import os, signal, sys
from pathlib import Path
from compress_lab.models.loading import load
subject = load(sys.argv[1])
subject.history = ({"method": "Second"},)
rename = Path.rename
def killed(self, target):
    if ".part-" in self.name: os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return rename(self, target)
Path.rename = killed
subject.save(sys.argv[1])
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_killed_between_the_renames(model, tmp_path, how):
    folder = Subject(model, history=({"method": "First"},)).save(tmp_path / "out")
    subprocess.run([sys.executable, "-P", "-c", KILLED, str(folder), how], capture_output=True)
    found = load(folder)
    assert found.name.endswith("Second") and torch.equal(found.model.lm_head.weight, model.lm_head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_is_followed(model, tmp_path):
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    Subject(model).save(tmp_path / "link")
    Subject(model).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and load(tmp_path / "real").fingerprint == Subject(model).fingerprint


# what is said


def test_long_lists_and_escapes_are_shown_and_cut(folder):
    state = load_file(folder / "model.safetensors")
    save_file(
        {**state, **{f"value_head_{'x' * (index % 50)}{index}": torch.zeros(1) for index in range(20_000)}},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    (folder / "README.md").write_text("---\nlicense: \x1b[31mred\u202e\n---\n")
    subject = load(folder)
    assert len(str(subject.provenance.steps)) < 1000 and "20,000" in subject.provenance.steps[0]
    assert "\x1b" not in repr(subject) + subject._repr_html_() and "\u202e" not in repr(subject)


def test_files_of_a_processor_come_along(folder, tmp_path):
    (folder / "preprocessor_config.json").write_text('{"size": 32}')
    (folder / "LICENSE").write_text("free")
    os.mkfifo(folder / "other.pipe")
    found = load(load(folder).save(tmp_path / "out"))
    assert (
        set(found.files) == {"preprocessor_config.json", "LICENSE"}
        and (tmp_path / "out" / "LICENSE").read_text() == "free"
    )
