"""What `export` writes is read by other programs, in processes that never import compress_lab, to the same outputs."""
import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from compress_lab.core.errors import CompressLabError
from compress_lab.core.subjects import Subject
from compress_lab.core.tiny import inputs, logits, tiny
from compress_lab.deploy.export import FORMATS, as_format, export
from compress_lab.quantize.floats import Float
from compress_lab.quantize.rtn import RTN

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
    known = dict(input_ids=numpy.array(tokens), attention_mask=numpy.ones((rows, length), numpy.int64), beam_idx=numpy.arange(rows, dtype=numpy.int32),
                 position_ids=numpy.broadcast_to(numpy.arange(length), (rows, length)).copy())
    return {name: known[name] if name in known else numpy.zeros((rows, int(shape[1]), 0, int(shape[3])), numpy.float32) for name, shape in specs}
"""
READERS = {
    "compressed-tensors": TRANSFORMERS,
    "torchao": TRANSFORMERS,
    "gguf": TRANSFORMERS,
    "openvino": GRAPH_INPUTS + """
import openvino
compiled = openvino.Core().compile_model(folder + "/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
found = torch.from_numpy(compiled.create_infer_request().infer(feed([(port.get_any_name(), [str(size) for size in port.partial_shape]) for port in compiled.inputs]))[compiled.outputs[0]])
""",
    "onnx": GRAPH_INPUTS + """
import onnxruntime
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
found = torch.from_numpy(session.run([session.get_outputs()[0].name], feed([(spec.name, spec.shape) for spec in session.get_inputs()]))[0])
""",
}
CASES = [  # format, model, head, method
    ("compressed-tensors", "llama", "causal_lm", RTN(4, 32)), ("compressed-tensors", "llama", "causal_lm", RTN(8, 0, symmetric=True)),
    ("compressed-tensors", "bert", "base", RTN(3, 16, symmetric=True)), ("compressed-tensors", "llama", "causal_lm", Float("fp8_e4m3")),
    ("torchao", "llama", "causal_lm", RTN(4, 32)),
    ("gguf", "llama", "causal_lm", RTN(4, 32, symmetric=True)), ("gguf", "qwen2", "causal_lm", RTN(8, 32, symmetric=True)), ("gguf", "llama", "causal_lm", RTN(4, 32)),
    ("openvino", "llama", "causal_lm", RTN(4, 32)), ("openvino", "bert", "base", RTN(8, 0, symmetric=True)),
    ("onnx", "llama", "causal_lm", RTN(4, 32)), ("onnx", "bert", "base", RTN(8, 32)),
]


def quantized(name, head, method):
    "A small model, rounded."
    return method.apply(Subject(tiny(name, head=head, **({} if name == "qwen2" else {"num_hidden_layers": 1}))))


def elsewhere(script, folder, tokens):
    "What a fresh process reads and computes, and whether it imported compress_lab on the way."
    around = "import json, sys, torch\nfolder, tokens = sys.argv[1], json.loads(sys.argv[2])\n" + script + \
        "\nprint(json.dumps([found.float().tolist(), any(name.partition('.')[0] == 'compress_lab' for name in sys.modules)]))"
    done = subprocess.run([sys.executable, "-c", around, str(folder), json.dumps(tokens.tolist())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    outputs, imported = json.loads(done.stdout.strip().splitlines()[-1])
    return torch.tensor(outputs), imported


@pytest.mark.parametrize("form, name, head, method", CASES, ids=[f"{form}-{name}-{method}" for form, name, _, method in CASES])
def test_is_read_by_another_process(form, name, head, method, tmp_path):
    needs = {*as_format(form).writes, *as_format(form).reads}
    if lacks := [package for package in needs if find_spec(package) is None]: pytest.skip(f"{', '.join(lacks)} is not installed")
    subject = quantized(name, head, method)
    export(subject, tmp_path/"out", form, check=False)
    more = ', gguf_file="model.gguf", dtype=torch.float32' if form == "gguf" else ""
    tokens = inputs(subject.model, length=6)["input_ids"]
    found, imported = elsewhere(READERS[form].replace("CLASS", type(subject.model).__name__).replace("MORE", more), tmp_path/"out", tokens)
    expected = logits(subject.model, {"input_ids": tokens})
    allowed = 5e-3 if form == "gguf" and not method.symmetric else 1e-5
    assert not imported and found.shape == expected.shape
    assert (found - expected).abs().max() <= allowed * expected.abs().max()


@pytest.mark.parametrize("form", FORMATS)
def test_is_refused_by_name_and_leaves_nothing(form, tmp_path):
    subject = quantized("llama", "causal_lm", RTN(4, 32))
    name, packed = next(iter(subject.packed.items()))
    for change, words in (({"levels": "e2m1"}, "evenly spaced"), ({"outer": torch.ones(1, 1)}, "quantized themselves"), ({"zeros": torch.zeros(*packed.scales.shape)}, "no integers")):
        odd = subject.copy()
        odd.packed[name] = type(packed)(**{**vars(packed), **change})
        with torch.no_grad(): odd.model.get_parameter(name).copy_(odd.packed[name].dequantize())
        with pytest.raises(CompressLabError, match=words): export(odd, tmp_path/"out", form)
    assert not list(tmp_path.iterdir())


def test_what_reads_back_otherwise_is_not_left_behind(tmp_path, monkeypatch):
    form = as_format("gptq")
    monkeypatch.setattr(type(form), "run", lambda self, folder, tokens: torch.zeros(2, 12, 128))
    with pytest.raises(CompressLabError, match="Read back, the outputs differ"): export(quantized("llama", "causal_lm", RTN(4, 32)), tmp_path/"out", "gptq")
    assert not list(tmp_path.iterdir())


def test_several_schemes_with_and_without_zero_points(tmp_path):
    pytest.importorskip("compressed_tensors")
    for symmetric in (True, False):
        mixed = (RTN(8, 32, symmetric).on("*.mlp.*") >> RTN(4, 32, symmetric).on("*.self_attn.*")).apply(Subject(tiny("llama", num_hidden_layers=1)))
        if symmetric: assert export(mixed, tmp_path/"out").difference == 0
        else:
            with pytest.raises(CompressLabError, match="several schemes"): export(mixed, tmp_path/"out")
