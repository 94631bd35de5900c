"""Models that other tools have quantized: loaded with the weights they compute with, and the size they have on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import compress_lab as cl
from compress_lab.core.errors import CompressLabError, NotMeasured
from compress_lab.models.forward import inputs, logits
from compress_lab.models.tiny import tiny
from compress_lab.study import Study

FORMS = [
    ("compressed-tensors", cl.RTN(4, 32)),
    ("compressed-tensors", cl.RTN(8, 0, symmetric=True)),
    ("compressed-tensors", cl.Float("fp8_e4m3")),
    ("torchao", cl.RTN(4, 32)),
    ("gguf", cl.RTN(4, 32, symmetric=True)),
    ("gptq", cl.RTN(4, 32, symmetric=True)),
    ("gptq", cl.RTN(8, 32)),
]


@pytest.fixture(scope="module")
def original():
    return cl.Subject(tiny("llama", num_hidden_layers=1))


@pytest.mark.parametrize("form, method", FORMS, ids=lambda value: value if isinstance(value, str) else repr(value))
def test_is_loaded_as_what_it_computes(form, method, original, tmp_path):
    made = method.apply(original)
    cl.export(made, tmp_path / "copy", form)
    loaded, batch = cl.load(tmp_path / "copy"), inputs(original.model)
    assert torch.allclose(logits(loaded.model, batch), logits(made.model, batch), atol=1e-5)
    assert loaded.simulated and form.partition("-")[0] in loaded.stored.format
    size = cl.probe(loaded, "size").summary()
    content = [path for path in (tmp_path / "copy").iterdir() if path.suffix in (".safetensors", ".gguf")]
    header = 12_000
    assert 0 <= sum(path.stat().st_size for path in content) - size["file_bytes"]["value"] < header
    assert size["parameters"]["value"] == sum(parameter.numel() for parameter in original.model.parameters())
    assert 0.9 * made_bits(made) < size["bits_per_weight"]["value"] < 2.1 * made_bits(made)


def made_bits(subject):
    return cl.probe(subject, "size").summary()["bits_per_weight"]["value"]


def test_a_gguf_file_is_a_model(original, tmp_path):
    made = cl.RTN(8, 32, symmetric=True).apply(original)
    cl.export(made, tmp_path / "copy", "gguf")
    by_file, by_folder = cl.load(tmp_path / "copy" / "model.gguf"), cl.load(tmp_path / "copy")
    assert by_file.fingerprint == by_folder.fingerprint and by_file.stored.format == "gguf Q8_0"
    assert by_file.tokenizer is None and by_file.provenance.name == "model"
    (tmp_path / "copy" / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CompressLabError, match="GGUF"):
        cl.load(tmp_path / "copy")


def test_its_speed_is_not_measured_and_its_floats_are_not_saved_unasked(original, tmp_path):
    cl.export(cl.RTN(4, 32).apply(original), tmp_path / "copy", "gptq")
    loaded = cl.load(tmp_path / "copy")
    with pytest.raises(NotMeasured):
        cl.probe(loaded, "latency", original=original)
    with pytest.raises(CompressLabError, match="gptq 4 on disk"):
        loaded.save(tmp_path / "again")
    floats = cl.load(loaded.copy().save(tmp_path / "floats"))
    assert floats.stored is None and floats.fingerprint == loaded.copy().fingerprint != loaded.fingerprint


@pytest.mark.parametrize(
    "scheme", [{"quant_method": "of_nobody"}, {"quant_method": 4}, {"bits": 4}, {"quant_method": "hqq"}]
)
def test_an_unknown_format_is_named(scheme, original, tmp_path):
    cl.export(cl.RTN(4, 32).apply(original), tmp_path / "copy", "gptq")
    config = tmp_path / "copy" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": scheme}))
    with pytest.raises(CompressLabError):
        cl.load(tmp_path / "copy")


@pytest.mark.parametrize("part", ["qweight", "scales", "qzeros", "g_idx"])
def test_a_missing_or_misshapen_part_is_named(part, original, tmp_path):
    cl.export(cl.RTN(4, 32).apply(original), tmp_path / "copy", "gptq")
    file = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(file)
    name = f"model.layers.0.mlp.up_proj.{part}"
    for change in ({name: tensors[name][:1].contiguous()}, {})[: 1 if part == "g_idx" else 2]:  # groups may be even
        save_file({key: tensor for key, tensor in tensors.items() if key != name} | change, file, {"format": "pt"})
        with pytest.raises(CompressLabError):
            cl.load(tmp_path / "copy")


def test_a_study_compares_it_with_its_original(original, tmp_path):
    original.copy().save(tmp_path / "original")
    cl.export(cl.RTN(2, 32).apply(original), tmp_path / "copy", "gptq")
    study = Study(str(tmp_path / "original"), {}, ("size",), copies={"theirs": str(tmp_path / "copy")})
    dossier = study.run(tmp_path / "run")
    assert dossier.table().loc["theirs", "stored size"] < 0.7
    assert "simulated" in dossier.notes("theirs")
