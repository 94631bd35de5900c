"A model whose weights stay on disk gives the figures of the model in memory, also where memory does not hold it."

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import compress_lab as cl
from compress_lab.core.errors import CompressLabError, NotMeasured
from compress_lab.models.forward import inputs, logits
from compress_lab.models.offloading import OffloadedSubject
from compress_lab.models.tiny import tiny
from compress_lab.study import Study

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
LARGE = dict(vocab_size=1000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=24, num_attention_heads=16)
SMALL = dict(vocab_size=1000, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
PROGRAM = """
import json, resource, sys
import psutil, torch
import compress_lab as cl
rows = torch.randint(0, 1000, (32, 16), generator=torch.Generator().manual_seed(0))

def figures(folder, way):
    subject = cl.load(folder, device_map="disk" if way == "disk" else None)
    records = cl.Perplexity(context=16).measure(subject, rows=rows)
    return [subject.fingerprint, records.summary()["perplexity"]]

folder, way, room = sys.argv[1:]
figures(f"{folder}-small", "disk")  # whatever libraries are loaded and threads are started, it is done before
if int(room):
    most = psutil.Process().memory_info().vms + int(room)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(json.dumps(figures(folder, way)))
"""


def child(folder, way, room):
    "Perplexity on 32 rows in a process that may take so many bytes beyond its libraries; 0: as many as there are."
    command = [sys.executable, "-c", PROGRAM, folder, way, str(room)]
    variables = {"OMP_NUM_THREADS": "1", "COMPRESS_LAB_PROGRESS": "0", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="the address space of a process is limited on Linux")
def test_perplexity_of_a_model_four_times_as_large_as_the_memory(tmp_path, request):
    if "slow" not in request.config.getoption("--flags").split():
        pytest.skip("takes minutes: asked for with --flags slow")
    for name, sizes in {"model": LARGE, "model-small": SMALL}.items():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes)).bfloat16()
        model.save_pretrained(tmp_path / name, max_shard_size="80MB")
        size = sum(4 * weight.numel() for weight in model.parameters())
        if name == "model":
            room = size // 4
        del model
    whole, refused, disk = (
        child(tmp_path / "model", *options) for options in (("memory", 0), ("memory", room), ("disk", room))
    )
    assert whole.returncode == 0, whole.stderr
    assert refused.returncode, "the limit holds"
    assert disk.returncode == 0, disk.stderr[-2000:]
    assert json.loads(disk.stdout) == json.loads(whole.stdout)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma2", "bert", "mamba", "qwen2", "phi"])
def test_outputs_of_every_kind_are_the_same(kind, tmp_path):
    model = tiny(kind)
    model.save_pretrained(tmp_path / "model")
    whole = cl.load(tmp_path / "model")
    batch = inputs(whole.model)
    try:
        disk = cl.load(tmp_path / "model", device_map="disk")
    except CompressLabError as error:
        assert type(model).__name__ in str(error)
        return
    assert isinstance(disk, OffloadedSubject) and disk.fingerprint == whole.fingerprint
    assert torch.equal(logits(disk.model, batch), logits(whole.model, batch))
    assert disk.fingerprint == whole.fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder with a tiny model that reads words, compressed copies of it, a text and a task."
    folder = tmp_path_factory.mktemp("offloading")
    words = {f"w{number}": number for number in range(128)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    reads = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")
    random = torch.Generator().manual_seed(0)
    text = [" ".join(f"w{int(word)}" for word in torch.randint(1, 128, (40,), generator=random)) for _ in range(400)]
    (folder / "text.txt").write_text("\n\n".join(text))
    original = cl.Subject(tiny("llama", num_hidden_layers=2), reads)
    original.save(folder / "model")
    sample = cl.calibration(torch.randint(8, 96, (4, 16), generator=random))
    cl.RTN(4, 16).apply(original).save(folder / "kept")
    cl.Int8(activations="static").apply(original, sample).save(folder / "int8")
    cl.Magnitude(0.75).apply(original).save(folder / "masked", masks=True)
    cl.SVD(0.5).apply(original).save(folder / "factored")
    cl.stream(cl.GPTQ(4, 16), cl.load(folder / "model"), folder / "streamed", sample)
    return folder


def test_compressed_copies_stay_on_disk_too(folder):
    for name in ("kept", "int8", "masked", "factored", "streamed"):
        whole, disk = cl.load(folder / name), cl.load(folder / name, device_map="disk")
        assert isinstance(disk, OffloadedSubject) and disk.fingerprint == whole.fingerprint, name
        assert all(weight.is_meta for weight in disk.model.parameters()) and disk.simulated == whole.simulated
        tokens = torch.arange(40).view(2, 20)
        with torch.inference_mode():
            assert torch.equal(disk.model(tokens).logits, whole.model(tokens).logits), name
        assert disk.history == whole.history


def test_a_study_of_it_stores_the_same_cells(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    probes = [{"probe": name, "text": "text.txt", "n": 8, "context": 16} for name in ("perplexity", "fidelity")]
    study = Study("model", {}, [*probes, "size"], copies={"kept": "kept", "masked": "masked"})
    frames = []
    for asked in (None, "disk"):
        dossier = study.run(tmp_path / str(asked), subject=cl.load("model", device_map=asked))
        frames.append({name: cell["values"] for name, cell in dossier.cells.items()})
    assert frames[0] == frames[1] and len(frames[0]) == 8


def test_what_cannot_be_done_is_refused_by_name(folder, tmp_path):
    disk = cl.load(folder / "model", device_map="disk")
    for refused in (
        lambda: cl.RTN(4, 16).apply(disk),
        lambda: disk.copy(),
        lambda: disk.save(tmp_path / "copy"),
        lambda: cl.export(disk, tmp_path / "out", "safetensors"),
    ):
        with pytest.raises(CompressLabError, match="stay on disk"):
            refused()
    with pytest.raises(NotMeasured, match="read from disk"):
        cl.Latency().measure(disk, disk)


def test_changed_weights_of_a_saved_subject_are_noticed(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(CompressLabError, match="not the ones that were saved"):
        cl.load(tmp_path / "model", device_map="disk")
