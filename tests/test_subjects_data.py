"""Fetching, loading and data under conditions that a notebook cell cannot set up.

Races, kills, full disks, hostile files, a Hub of our own.
"""

import hashlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from compress_lab.core.errors import CompressLabError
from compress_lab.data.texts import calibration, task, text
from compress_lab.models.loading import load
from compress_lab.models.packed import INTEGERS, Bitmask, Packed, masked_bytes
from compress_lab.models.subject import Subject

CONTENT = b"weights " * 50_000
SETUP = f"""
import sys
from compress_lab.models import starters
starters.STARTERS["tiny"] = starters.Starter(
    "tiny", "model", "tiny-starter==1.0", {{"tiny/weights": "{hashlib.sha256(CONTENT).hexdigest()}"}}, 1, "CC0"
)
"""
FETCH = SETUP + "print((starters.fetch('tiny')/'weights').stat().st_size)"
FAKE_PIP = """
import os, pathlib, shutil, sys, time
work = pathlib.Path(os.environ["TMPDIR"])
with open(os.environ["PIP_LOG"], "a") as log: log.write(f"{os.getpid()}\\n")
(work/"unfinished.whl").write_bytes(b"half")
time.sleep(float(os.environ["PIP_SLEEP"]))
target = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
target.mkdir()
for wheel in pathlib.Path(os.environ["PIP_FIND_LINKS"]).glob("*.whl"): shutil.copy(wheel, target)
"""


def wheel(folder: Path, content: bytes = CONTENT) -> Path:
    folder.mkdir(exist_ok=True)
    info = "tiny_starter-1.0.dist-info"
    path = folder / "tiny_starter-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/weights", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-starter\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def places(tmp_path):
    """An environment with an empty cache, a folder with a good wheel as the only index, and a stand-in for pip that can
    be slow.
    """
    wheel(tmp_path / "links")
    (tmp_path / "fake" / "pip").mkdir(parents=True)
    (tmp_path / "fake" / "pip" / "__init__.py").touch()
    (tmp_path / "fake" / "pip" / "__main__.py").write_text(FAKE_PIP)
    plain = {
        **os.environ,
        "COMPRESS_LAB_CACHE": str(tmp_path / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "links"),
    }
    slow = {**plain, "PYTHONPATH": str(tmp_path / "fake"), "PIP_LOG": str(tmp_path / "log"), "PIP_SLEEP": "1"}
    return tmp_path, plain, slow


def start(code: str, environment: dict) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_fetch_through_pip_and_again_without_an_index(places):
    folder, plain, _ = places
    for environment in (plain, {**plain, "PIP_FIND_LINKS": "/nowhere"}):
        out, error = start(FETCH, environment).communicate()
        assert out.strip() == str(len(CONTENT)), error
    assert sorted(path.name for path in (folder / "cache").rglob("*") if path.is_file()) == ["tiny.lock", "weights"]


def test_two_processes_fetch_once(places):
    folder, _, slow = places
    both = [start(FETCH, slow) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert all(out.strip().endswith(str(len(CONTENT))) for out, _ in said), said
    assert sum("another process is fetching tiny" in out for out, _ in said) == 1
    assert len((folder / "log").read_text().split()) == 1


def test_killed_halfway_then_again(places):
    folder, plain, slow = places
    process = start(FETCH, {**slow, "PIP_SLEEP": "60"})
    while not (folder / "log").exists() or not list((folder / "cache").rglob("unfinished.whl")):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    os.kill(int((folder / "log").read_text()), signal.SIGKILL)
    assert not (folder / "cache" / "starters").exists()
    out, error = start(FETCH, plain).communicate()
    assert out.strip() == str(len(CONTENT)), error
    assert not list((folder / "cache").rglob("unfinished.whl"))


def test_finished_wheel_is_kept_until_its_files_are_taken(places):
    folder, plain, _ = places
    wheel((folder / "cache" / "downloads").mkdir(parents=True) or folder / "cache" / "downloads" / "tiny")
    out, error = start(FETCH, {**plain, "PIP_FIND_LINKS": "/nowhere"}).communicate()
    assert out.strip() == str(len(CONTENT)), error


@pytest.mark.parametrize("content", [b"other", CONTENT[:-1]])
def test_wrong_hash_is_refused_and_not_kept(places, content):
    folder, plain, _ = places
    wheel(folder / "links", content)
    _, error = start(FETCH, plain).communicate()
    assert "CompressLabError" in error and "not the one this package was tested with" in error
    assert not [path for path in (folder / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    wheel(folder / "links")
    assert start(FETCH, plain).communicate()[0].strip() == str(len(CONTENT))


def test_damaged_cache_is_fetched_again(places):
    folder, plain, _ = places
    start(FETCH, plain).communicate()
    kept = folder / "cache" / "starters" / "tiny" / "weights"
    kept.write_bytes(b"weighty " * 50_000)
    start(FETCH, plain).communicate()
    assert kept.read_bytes() == CONTENT


LIMIT = (
    "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
)


def test_full_disk_while_fetching(places):
    folder, plain, slow = places
    wheel((folder / "cache" / "downloads").mkdir(parents=True) or folder / "cache" / "downloads" / "tiny")
    _, error = start(LIMIT + FETCH, plain).communicate()
    assert "CompressLabError: The files of 'tiny' could not be written" in error and "COMPRESS_LAB_CACHE" in error
    assert start(FETCH, plain).communicate()[0].strip() == str(len(CONTENT))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    return Subject(LlamaForCausalLM(config).eval()).save(tmp_path_factory.mktemp("model") / "tiny")


@contextmanager
def small_files():
    "No file may grow beyond 60,000 bytes: writing fails as on a full disk."
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])


@pytest.mark.parametrize("packed", [False, True])
def test_full_disk_while_saving(model, tmp_path, packed):
    subject = load(model)
    if packed:
        subject.packed["model.layers.0.mlp.up_proj"] = Packed.from_codes(
            torch.ones(48, 32, dtype=torch.long), torch.ones(48, 1), None, bits=4, group_size=32
        )
        subject.model.model.layers[0].mlp.up_proj.weight.data[:] = -7
    with small_files(), pytest.raises(CompressLabError, match="The folder could not be written"):
        subject.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert load(subject.save(tmp_path / "out")).fingerprint == subject.fingerprint


def test_save_keeps_the_old_subject_when_the_new_one_fails(model, tmp_path, monkeypatch):
    subject = load(model)
    subject.save(tmp_path / "out")
    monkeypatch.setattr(
        LlamaForCausalLM, "save_pretrained", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(CompressLabError, match="No space left"):
        subject.save(tmp_path / "out")
    assert load(tmp_path / "out").fingerprint == subject.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip_in_each_type(model, tmp_path, dtype):
    subject = load(model, dtype=dtype)
    again = load(subject.save(tmp_path / "out"))
    assert again.fingerprint == subject.fingerprint and str(again.model.dtype) == f"torch.{dtype}"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), subject.model.parameters()))


def copy(model: Path, target: Path, config: dict | None = None, **files) -> Path:
    target.mkdir()
    for path in model.iterdir():
        if path.name != "compress_lab.json":
            (target / path.name).write_bytes(path.read_bytes())
    (target / "config.json").write_text(
        json.dumps({**json.loads((target / "config.json").read_text()), **(config or {})})
    )
    for name, content in files.items():
        (target / name.replace("_DOT_", ".")).write_bytes(content)
    return target


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 10**10},
        {"hidden_size": -1},
        {"hidden_size": "wide"},
        {"num_hidden_layers": None},
        {"num_attention_heads": 0},
        {"num_attention_heads": 7},
        {"architectures": ["pipeline"]},
        {"architectures": ["BertModel"]},
        {"architectures": [5]},
        {"architectures": "LlamaForCausalLM"},
        {"model_type": "bert"},
        {"model_type": None},
        {"model_type": ["llama"]},
        {"auto_map": {"AutoConfig": "x.y"}},
        {"hidden_act": "__import__"},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"rope_parameters": {"rope_type": "none such", "rope_theta": 1.0}},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"intermediate_size": 49},
        {"tie_word_embeddings": False},
    ],
)
def test_config_that_does_not_fit(model, tmp_path, config):
    try:
        found = load(copy(model, tmp_path / "m", config))
    except CompressLabError:
        return
    assert torch.equal(found.model.get_input_embeddings().weight, load(model).model.get_input_embeddings().weight)
    assert config in ({"architectures": [5]}, {"architectures": "LlamaForCausalLM"}), "loaded"


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", b""),
        ("config.json", b"[]"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"\xff\xfe"),
        ("config.json", b"{}"),
        ("model.safetensors", b""),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        ("model.safetensors", b"\xff" * 8 + b"{}"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"not json"),
        ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["x.y", null]}}'),
        ("compress_lab.json", b"{}"),
        ("compress_lab.json", b'{"provenance": [], "history": 5}'),
        ("compress_lab.json", b"null"),
    ],
)
def test_hostile_model_files(model, tmp_path, name, content):
    folder = copy(model, tmp_path / "m", **{name.replace(".", "_DOT_"): content})
    with pytest.raises(CompressLabError):
        load(folder)


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "x.parquet", "x.jsonl", "x.csv", "x.txt"])
def test_pickles_are_never_opened(model, tmp_path, monkeypatch, name):
    monkeypatch.setenv("EVIL", str(tmp_path / "ran"))
    content = pickle.dumps(Evil())
    if name.startswith("x."):
        (tmp_path / name).write_bytes(content)
        for read in (text, task):
            try:
                read(tmp_path / name)
            except CompressLabError:
                pass
    else:
        folder = copy(model, tmp_path / "m")
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)
        with pytest.raises(CompressLabError):
            load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", b'{"text": null}\n{"text": "x"}'),
        ("a.jsonl", b'{"words": "x"}'),
        ("a.jsonl", b"{"),
        ("a.jsonl", b""),
        ("a.csv", b""),
        ("a.csv", b"text\n"),
        ("a.csv", b'text\n"never closed'),
        ("a.txt", b""),
        ("a.txt", b"  \n\n "),
        ("a.txt", b"\xff\xfe\x00"),
        ("a.parquet", b"PAR1"),
        ("a.docx", b"x"),
        ("a", b"x"),
    ],
)
def test_hostile_texts(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CompressLabError):
        text(tmp_path / name)


def test_one_document_cannot_be_both(tmp_path):
    (tmp_path / "one.txt").write_text("A single document. " * 20)
    with pytest.raises(CompressLabError, match="never share one"):
        for which in ("calibration", "evaluation"):
            text(tmp_path / "one.txt").half(which)


def test_calibration_without_a_tokenizer(model):
    with pytest.raises(CompressLabError, match="no tokenizer"):
        calibration("wikipedia", load(model))


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.from_regex(r"[\w.~-]{0,8}(/[\w.-]{0,8}){0,3}", fullmatch=True),
        st.just("x" * 5000),
        st.none(),
        st.integers(),
    )
)
def test_any_name_is_found_or_refused(name):
    for read in (load, text, task):
        try:
            read(name)
        except CompressLabError as error:
            assert str(error)


def test_mirror_is_read_and_not_left(tmp_path, monkeypatch):
    for split, labels in (("validation", [0, 1]), ("test", [-1, -1])):
        path = tmp_path / "mirror" / "acme" / "reviews" / "default" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"text": ["good", "bad"], "label": labels}).to_parquet(path)
    pd.DataFrame({"label": [1]}).to_parquet(tmp_path / "secret.parquet")
    monkeypatch.setenv("COMPRESS_LAB_MIRROR", str(tmp_path / "mirror"))
    found = task("acme/reviews", columns=("text", "label"))
    assert (len(found), found.split, found.config) == (2, "validation", "default") and len(
        found.provenance.sha256
    ) == 64
    with pytest.raises(CompressLabError, match="hidden"):
        task("acme/reviews", split="test")
    for config, split in (("..", None), ("default", "../../../../secret"), ("default", "train")):
        with pytest.raises(CompressLabError, match="There is no"):
            task("acme/reviews", config, split)


def hub(model: Path, commit: str):
    "A server that speaks as much of the Hub's language as loading needs, and the paths it was asked for."
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            files = sorted(path.name for path in model.iterdir())
            if self.path.startswith("/api/models/acme/tiny/tree"):
                found = json.dumps(
                    [
                        {"type": "file", "path": name, "size": (model / name).stat().st_size, "oid": "0" * 40}
                        for name in files
                    ]
                ).encode()
            elif self.path.startswith("/api/models/acme/tiny"):
                found = json.dumps(
                    {"id": "acme/tiny", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
                ).encode()
            elif (
                self.path.startswith(f"/acme/tiny/resolve/{commit}/")
                and (path := model / self.path.rpartition("/")[2]).exists()
            ):
                found = path.read_bytes()
            else:
                found = None
            self.send_response(404 if found is None else 200)
            for key, value in {
                "X-Repo-Commit": commit,
                "ETag": f'"{hashlib.sha1(found or b"").hexdigest()}"',
                "Content-Length": len(found or b""),
                **({"X-Error-Code": "RepoNotFound"} if found is None else {}),
            }.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(found or b"")

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, asked


def test_hub_model_by_its_id(model, tmp_path, monkeypatch):
    commit = "a" * 40
    files = copy(
        model,
        tmp_path / "hub",
        README_DOT_md=b"---\nlicense: mit\nbase_model:\n- acme/big\n---\n",
        modeling_DOT_py=b"print('run')",
        optimizer_DOT_pt=b"pickle",
    )
    server, asked = hub(files, commit)
    here = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": here,
        "HUGGINGFACE_CO_URL_TEMPLATE": here + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    found = load("acme/tiny").provenance
    assert (found.revision, found.licence, found.base_model) == (commit, "mit", "acme/big") and len(found.sha256) == 64
    assert any(path.endswith("model.safetensors") for path in asked) and not [
        path for path in asked if path.endswith((".py", ".pt"))
    ]
    with pytest.raises(CompressLabError, match="No starter, folder or Hub model is called 'acme/none'"):
        load("acme/none")
    (files / "model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    with pytest.raises(CompressLabError, match="optimizer.pt, a format that can run code"):
        load("acme/tiny")
    server.shutdown()
    server.server_close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CompressLabError, match="HF_HUB_OFFLINE forbids"):
        load("acme/tiny")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert load("acme/tiny").fingerprint == load(model).fingerprint


FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(sorted(FLOATS)),
    shape=st.lists(st.integers(0, 9), max_size=3),
    share=st.sampled_from([0, 0.1, 0.5, 0.97, 1]),
    seed=st.integers(0, 2**20),
)
def test_any_bits_come_back_from_a_bitmask(dtype, shape, share, seed):
    "Every pattern of bits a float can have: negative zeros, NaNs that carry something, infinities, subnormal numbers."
    random = torch.Generator().manual_seed(seed)
    integer = INTEGERS[FLOATS[dtype].itemsize]
    bits = torch.randint(torch.iinfo(integer).min, torch.iinfo(integer).max, shape, dtype=integer, generator=random)
    bits.masked_fill_(torch.rand(shape, generator=random) < share, 0)
    bits.masked_fill_(torch.rand(shape, generator=random) < 0.1, torch.iinfo(integer).min)  # a negative zero
    weight = bits.view(FLOATS[dtype])
    stored = Bitmask.of(weight)
    assert torch.equal(stored.whole().view(integer), bits) and stored.whole().shape == weight.shape
    assert stored.nbytes == -(-weight.numel() // 8) + int((bits != 0).sum()) * weight.element_size()
    assert masked_bytes(weight) == weight.nbytes or masked_bytes(weight) == stored.nbytes < weight.nbytes


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_saved_bitmask_survives_loading_and_notices_damage(model, tmp_path, dtype):
    subject = load(model, dtype=dtype)
    for name, parameter in subject.model.named_parameters():
        if "mlp" in name:
            parameter.data.view(-1, 4)[:, :2] = 0  # 2:4
        if "q_proj" in name:
            parameter.data.zero_()
        if "o_proj" in name:
            parameter.data.view(-1)[::2] = -0.0
    folder = subject.save(tmp_path / "masked", masks=True)
    stored = load_file(folder / "masked.safetensors")
    assert {name.rpartition(".")[0] for name in stored} == {
        name for name, _ in subject.model.named_parameters() if "mlp" in name or "q_proj" in name
    }  # negative zeros are values, and do not pay
    again = load(folder)
    assert again.fingerprint == subject.fingerprint and load(folder, dtype="float32").model.dtype == torch.float32
    plain, quantized = load(again.save(tmp_path / "plain")), subject.copy()
    assert plain.fingerprint == subject.fingerprint and AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", dtype=FLOATS[dtype]
    )
    weight = quantized.model.model.layers[0].mlp.up_proj.weight
    packed = Packed.from_codes(
        (weight.float().sign() + 1).long(),
        torch.ones(len(weight), 1),
        torch.ones(len(weight), 1, dtype=torch.uint8),
        bits=2,
        group_size=weight.shape[1],
    )
    quantized.packed["model.layers.0.mlp.up_proj"] = packed
    weight.data.copy_(packed.dequantize())
    assert load(quantized.save(tmp_path / "both", masks=True)).fingerprint == quantized.fingerprint
    assert not any("layers.0.mlp.up_proj" in name for name in load_file(tmp_path / "both" / "masked.safetensors"))
    name = next(name for name in stored if name.endswith(".values") and len(stored[name]))
    for damage, words in (
        ({name: stored[name][:-1].clone()}, "does not fit its values"),
        ({name: -stored[name]}, "not the ones that were saved"),
        ({name: None}, "incomplete"),
    ):
        save_file(
            {key: value for key, value in {**stored, **damage}.items() if value is not None},
            folder / "masked.safetensors",
        )
        with pytest.raises(CompressLabError, match=words):
            load(folder)
    (folder / "masked.safetensors").unlink()
    with pytest.raises(CompressLabError, match="could not be read"):
        load(folder)


@pytest.mark.parametrize(
    "recipe",
    [
        "Magnitude(0.5)",
        "Wanda(0.5)",
        "SparseGPT(0.5)",
        "RIA('2:4')",
        "ADMM(0.5)",
        "Wanda(0.5) >> cl.Refit()",
        "Wanda(0.5) >> cl.Recover(steps=4, calibration_dtype='float32')",
        "Saliency(0.5)",
        "Gradual(sparsity=0.5, steps=4, calibration_dtype='float32')",
        "Gradual(sparsity=0.5, criterion='movement', steps=4, calibration_dtype='float32')",
    ],
)
def test_what_is_pruned_is_a_positive_zero(recipe):
    "A negative zero is a value, and a bitmask could save nothing on it."
    import compress_lab as cl
    from compress_lab.models.forward import inputs
    from compress_lab.models.layers import linears
    from compress_lab.models.tiny import tiny

    sample = calibration(inputs(tiny("llama"), batch=8, length=16)["input_ids"])

    pruned = eval(f"cl.{recipe}").apply(cl.Subject(tiny("llama")), sample)
    weights = {linear.name: linear.weight for linear in linears(pruned.model) if linear.block is not None}
    for name, weight in weights.items():
        assert len(Bitmask.of(weight).values) == weight.count_nonzero(), name
    assert (
        abs(
            sum(int(weight.count_nonzero()) for weight in weights.values())
            / sum(weight.numel() for weight in weights.values())
            - 0.5
        )
        < 0.03
    )
