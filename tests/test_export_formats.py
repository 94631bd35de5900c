"""What `export` writes is read by other programs, in processes that never import compress_lab, to the same outputs."""

import copy
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from random import Random

import pytest
import torch

from compress_lab.core.errors import CompressLabError
from compress_lab.core.registry import FORMATS
from compress_lab.deploy.export import as_format, export, row_length
from compress_lab.deploy.gguf import check_header, llama_cpp
from compress_lab.models.forward import inputs, logits, relative_error
from compress_lab.models.subject import Subject
from compress_lab.models.tiny import tiny
from compress_lab.quantize.floats import Float
from compress_lab.quantize.rtn import RTN
from compress_lab.runtimes.onnxruntime import OnnxRuntime

TRANSFORMERS = """
import transformers
transformers.logging.set_verbosity_error()
model = transformers.CLASS.from_pretrained(folderMORE).eval()
with torch.inference_mode(): outputs = model(torch.tensor(tokens))
found = getattr(outputs, "logits", outputs[0])
"""
GRAPH_INPUTS = """
import numpy
def feed(specs):
    rows, length = len(tokens), len(tokens[0])
    known = dict(input_ids=numpy.array(tokens), attention_mask=numpy.ones((rows, length), numpy.int64),
                 beam_idx=numpy.arange(rows, dtype=numpy.int32),
                 position_ids=numpy.broadcast_to(numpy.arange(length), (rows, length)).copy())
    return {name: known[name] if name in known else numpy.zeros((rows, int(shape[1]), 0, int(shape[3])), numpy.float32)
            for name, shape in specs}
"""
READERS = {
    "compressed-tensors": TRANSFORMERS,
    "torchao": TRANSFORMERS,
    "gguf": TRANSFORMERS,
    "openvino": GRAPH_INPUTS
    + """
import openvino
compiled = openvino.Core().compile_model(folder + "/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
specs = [(port.get_any_name(), [str(size) for size in port.partial_shape]) for port in compiled.inputs]
found = torch.from_numpy(compiled.create_infer_request().infer(feed(specs))[compiled.outputs[0]])
""",
    "onnx": GRAPH_INPUTS
    + """
import onnxruntime
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
specs = [(spec.name, spec.shape) for spec in session.get_inputs()]
found = torch.from_numpy(session.run([session.get_outputs()[0].name], feed(specs))[0])
""",
}
FORMS = sorted(FORMATS.discover())
CASES = [  # format, model, head, method
    ("compressed-tensors", "llama", "causal_lm", RTN(4, 32)),
    ("compressed-tensors", "llama", "causal_lm", RTN(8, 0, symmetric=True)),
    ("compressed-tensors", "bert", "base", RTN(3, 16, symmetric=True)),
    ("compressed-tensors", "llama", "causal_lm", Float("fp8_e4m3")),
    ("torchao", "llama", "causal_lm", RTN(4, 32)),
    ("gguf", "llama", "causal_lm", RTN(4, 32, symmetric=True)),
    ("gguf", "qwen2", "causal_lm", RTN(8, 32, symmetric=True)),
    ("gguf", "llama", "causal_lm", RTN(4, 32)),
    ("openvino", "llama", "causal_lm", RTN(4, 32)),
    ("openvino", "bert", "base", RTN(8, 0, symmetric=True)),
    ("onnx", "llama", "causal_lm", RTN(4, 32)),
    ("onnx", "bert", "base", RTN(8, 32)),
]


def quantized(name, head, method):
    "A small model, rounded."
    return method.apply(Subject(tiny(name, head=head, **({} if name == "qwen2" else {"num_hidden_layers": 1}))))


READER = """
import json, sys, torch
for line in sys.stdin:
    script, folder, tokens = json.loads(line)
    names = {"torch": torch, "folder": folder, "tokens": tokens}
    exec(script, names)
    imported = any(name.partition(".")[0] == "compress_lab" for name in sys.modules)
    torch.save([names["found"].float(), imported], folder + ".seen")
    print("\\nread", flush=True)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    "A function that says what another process reads and computes, and whether it imported compress_lab on the way."
    errors = tmp_path_factory.mktemp("reader") / "errors"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors.open("w"), "text": True}
    with subprocess.Popen([sys.executable, "-c", READER], **pipes) as reader:

        def read(script, folder, tokens):
            print(json.dumps([script, str(folder), tokens.tolist()]), file=reader.stdin, flush=True)
            if "read\n" not in iter(reader.stdout.readline, ""):  # libraries may print other lines
                raise AssertionError(errors.read_text()[-2000:])
            return torch.load(f"{folder}.seen")

        yield read
        reader.stdin.close()


@pytest.mark.parametrize(
    "form, name, head, method", CASES, ids=[f"{form}-{name}-{method}" for form, name, _, method in CASES]
)
def test_is_read_by_another_process(form, name, head, method, tmp_path, elsewhere):
    needs = {*as_format(form).writes, *as_format(form).reads}
    if lacks := [package for package in needs if find_spec(package) is None]:
        pytest.skip(f"{', '.join(lacks)} is not installed")
    subject = quantized(name, head, method)
    export(subject, tmp_path / "out", form, check=False)
    more = ', gguf_file="model.gguf", dtype=torch.float32' if form == "gguf" else ""
    tokens = inputs(subject.model, length=6)["input_ids"]
    found, imported = elsewhere(
        READERS[form].replace("CLASS", type(subject.model).__name__).replace("MORE", more), tmp_path / "out", tokens
    )
    expected = logits(subject.model, {"input_ids": tokens})
    allowed = 5e-3 if form == "gguf" and not method.symmetric else 1e-5
    assert not imported and found.shape == expected.shape
    assert (found - expected).abs().max() <= allowed * expected.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_is_refused_by_name_and_leaves_nothing(form, tmp_path):
    subject = quantized("llama", "causal_lm", RTN(4, 32))
    name, packed = next(iter(subject.packed.items()))
    for change, words in (
        ({"levels": "e2m1"}, "evenly spaced"),
        ({"outer": torch.ones(1, 1)}, "quantized themselves"),
        ({"zeros": torch.zeros(*packed.scales.shape)}, "not integers"),
    ):
        odd = subject.copy()
        odd.packed[name] = type(packed)(**{**vars(packed), **change})
        with torch.no_grad():
            odd.model.get_parameter(name).copy_(odd.packed[name].dequantize())
        with pytest.raises(CompressLabError, match=words):
            export(odd, tmp_path / "out", form)
    assert not list(tmp_path.iterdir())


def test_what_reads_back_otherwise_is_not_left_behind(tmp_path, monkeypatch):
    form = as_format("gptq")
    monkeypatch.setattr(type(form), "run", lambda self, folder, tokens: torch.zeros(2, 12, 128))
    with pytest.raises(CompressLabError, match="Read back, the outputs differ"):
        export(quantized("llama", "causal_lm", RTN(4, 32)), tmp_path / "out", "gptq")
    assert not list(tmp_path.iterdir())


def test_several_schemes_with_and_without_zero_points(tmp_path):
    pytest.importorskip("compressed_tensors")
    for symmetric in (True, False):
        mixed = (RTN(8, 32, symmetric).on("*.mlp.*") >> RTN(4, 32, symmetric).on("*.self_attn.*")).apply(
            Subject(tiny("llama", num_hidden_layers=1))
        )
        if symmetric:
            assert export(mixed, tmp_path / "out").difference == 0
        else:
            with pytest.raises(CompressLabError, match="several schemes"):
                export(mixed, tmp_path / "out")


def skip_without(form):
    "Skips a test where a package that the format needs is not installed."
    if lacks := [
        package for package in {*as_format(form).writes, *as_format(form).reads} if find_spec(package) is None
    ]:
        pytest.skip(f"{', '.join(lacks)} is not installed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_models_of_every_type(form, dtype, tmp_path):
    """What the file gives is what the quantized weights give in float32; bfloat16 costs the scales three bits where
    they are kept in it.
    """
    skip_without(form)
    model = tiny("llama", num_hidden_layers=1)
    wide, rotary = copy.deepcopy(model).to(dtype).float(), copy.deepcopy(model.model.rotary_emb)
    wide.model.rotary_emb = rotary
    subject = RTN(4, 32, symmetric=True).apply(Subject(model.to(dtype)))
    with torch.no_grad():
        for name, packed in subject.packed.items():
            wide.get_parameter(name).copy_(packed.dequantize())
    done, tokens = export(subject, tmp_path / "out", form), inputs(wide, length=9)["input_ids"]
    far = relative_error(as_format(form).run(tmp_path / "out", tokens), logits(wide, {"input_ids": tokens}))
    assert (
        far < (0.02 if dtype is torch.bfloat16 and form in ("compressed-tensors", "torchao") else 1e-5)
        and done.difference < 0.02
    )


@pytest.mark.parametrize(
    "name, asked, settings",
    [
        (
            "qwen2",
            "sliding_window=16",
            dict(use_sliding_window=True, sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2),
        ),
        (
            "qwen3",
            "sliding_window=8",
            dict(use_sliding_window=True, sliding_window=8, layer_types=["full_attention"] * 3 + ["sliding_attention"]),
        ),
        ("llama", "hidden_act='gelu'", dict(hidden_act="gelu")),
        (
            "llama",
            "rope_type='dynamic'",
            dict(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        ),
    ],
)
def test_gguf_refuses_by_name_what_it_cannot_say(name, asked, settings, tmp_path):
    with pytest.raises(CompressLabError, match=f"gguf cannot store .*{asked}"):
        export(Subject(tiny(name, **settings)), tmp_path / "out", "gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "form, name, length",
    [("onnx", "mistral", 20), ("onnx", "gpt2", 64), ("onnx", "llama", 36), ("openvino", "mistral", 20)],
)
def test_rows_are_longer_than_what_changes_with_their_length(form, name, length, tmp_path):
    skip_without(form)
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    layers = {"n_layer" if name == "gpt2" else "num_hidden_layers": 1}
    model = tiny(name, **layers, **({"rope_parameters": scaled} if name == "llama" else {}))
    assert row_length(model) == length
    done = export(Subject(model), tmp_path / "out", form)
    assert done.tokens == length and done.difference < 1e-5 and not done.beyond


def test_a_reader_that_forgets_a_window_is_noticed_and_named(tmp_path, monkeypatch):
    skip_without("onnx")
    form = type(as_format("onnx"))
    model = tiny("mistral")
    whole = type(model)(type(model.config)(**{**model.config.to_dict(), "sliding_window": None}))
    whole.load_state_dict(model.state_dict())
    monkeypatch.setattr(form, "run", lambda self, folder, tokens: logits(whole.eval(), {"input_ids": tokens}))
    with pytest.raises(CompressLabError, match="onnx does not hold sliding_window=16.*rows of 20 tokens"):
        export(Subject(model), tmp_path / "out", "onnx")


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "torchao", "gguf"])
def test_settings_for_generation_that_transformers_refuses_are_written_all_the_same(form, tmp_path):
    skip_without(form)
    subject = quantized("llama", "causal_lm", RTN(4, 32, symmetric=True))
    subject.model.generation_config.do_sample, subject.model.generation_config.temperature = False, 0.6
    done = export(subject, tmp_path / "out", form)
    if form in ("compressed-tensors", "gptq", "torchao"):
        assert json.loads((done.folder / "generation_config.json").read_text())["temperature"] == 0.6


@pytest.mark.parametrize("asked", [31, None, ["gguf"], {}, "gg\0uf", "", int, b"gguf"])
def test_a_format_that_is_none_is_refused(asked, tmp_path):
    with pytest.raises(CompressLabError, match="There is no format"):
        export(quantized("llama", "causal_lm", RTN(4, 32)), tmp_path / "out", asked)


def test_a_folder_that_can_be_none_is_refused(tmp_path):
    subject = quantized("llama", "causal_lm", RTN(4, 32))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for place in (
        "a\0b",
        "x" * 300,
        tmp_path / "file",
        tmp_path / "loop",
        tmp_path / "pipe",
        tmp_path / "file" / "inner",
        31,
        None,
    ):
        with pytest.raises(CompressLabError):
            export(subject, place, "gptq")
    assert (tmp_path / "file").read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["file", "loop", "pipe"]


WEIGHTS = {
    "compressed-tensors": "model.safetensors",
    "gptq": "model.safetensors",
    "torchao": "model.safetensors",
    "gguf": "model.gguf",
    "onnx": "model.onnx",
    "openvino": "openvino_model.xml",
}


@pytest.mark.parametrize("form", FORMS)
def test_files_that_are_damaged_are_named(form, tmp_path):
    """Of any file of an export: cut off, emptied, zeroed, a folder, a pipe, a loop, or with bytes of chance at its
    beginning, where it says what it is.
    """
    skip_without(form)
    format = as_format(form)
    export(RTN(4, 32, symmetric=True).apply(Subject(tiny("llama", num_hidden_layers=1))), tmp_path / "out", form)
    tokens = inputs(tiny("llama"), length=4)["input_ids"]
    expected = format.run(tmp_path / "out", tokens)
    for path in sorted((tmp_path / "out").iterdir()):
        good = path.read_bytes()

        def replaced(content, path=path):
            path.write_bytes(content)
            try:
                return format.run(tmp_path / "out", tokens)
            except CompressLabError as error:
                return error

        named = [replaced(content) for content in (b"", good[: len(good) // 2], bytes(len(good)))]
        if path.name == WEIGHTS[form]:
            assert all(isinstance(found, CompressLabError) and path.name in str(found) for found in named), named
        for seed in range(6):
            random, content = Random(seed), bytearray(good)
            for _ in range(3):
                content[random.randrange(min(len(good), 2000))] = random.randrange(256)
            replaced(content)
        path.unlink()
        for make in (os.mkdir, os.mkfifo, lambda path: path.symlink_to(path)):
            make(path)
            if path.name == WEIGHTS[form]:
                with pytest.raises(CompressLabError, match=path.name):
                    format.run(tmp_path / "out", tokens)
            path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(good)
    assert torch.equal(format.run(tmp_path / "out", tokens), expected)


def test_a_graph_that_is_none_is_named(tmp_path):
    skip_without("onnx")
    for content in (b"", b"graph", bytes(1000)):
        (tmp_path / "some.onnx").write_bytes(content)
        with pytest.raises(CompressLabError, match="some.onnx cannot be read as onnx"):
            OnnxRuntime(tiny("llama"), tmp_path / "some.onnx")


def test_a_header_that_claims_more_than_there_is_ends_at_once(tmp_path):
    skip_without("gguf")
    export(Subject(tiny("llama", num_hidden_layers=1)), tmp_path / "out", "gguf")
    good = (tmp_path / "out" / "model.gguf").read_bytes()
    assert check_header(tmp_path / "out" / "model.gguf") == sum(
        parameter.numel() for parameter in tiny("llama", num_hidden_layers=1).parameters()
    )
    for place in (8, 16):  # how many tensors, how many keys
        for count in (2**40, 2**63, 2**64 - 1):
            (tmp_path / "out" / "model.gguf").write_bytes(
                good[:place] + count.to_bytes(8, "little") + good[place + 8 :]
            )
            with pytest.raises(CompressLabError, match="model.gguf cannot be read as gguf"):
                as_format("gguf").run(tmp_path / "out", torch.zeros(1, 2, dtype=torch.long))
    if find_spec("xllamacpp"):
        with pytest.raises(CompressLabError, match="model.gguf cannot be read as gguf"):
            llama_cpp(tmp_path / "out", [[1]], 128)
