"""Models that other tools have quantized: loaded with the weights they compute with, and the size they have on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

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


def test_its_speed_is_not_measured(original, tmp_path):
    cl.export(cl.RTN(4, 32).apply(original), tmp_path / "copy", "gptq")
    with pytest.raises(NotMeasured):
        cl.probe(cl.load(tmp_path / "copy"), "latency", original=original)
    with pytest.raises(CompressLabError, match="a simulation"):
        cl.native(cl.load(tmp_path / "copy"), "eager")


@pytest.mark.parametrize("form", ["gptq", "compressed-tensors", "gguf"])
def test_its_files_are_saved_as_they_are(form, original, tmp_path):
    cl.export(cl.RTN(4, 32, symmetric=True).apply(original), tmp_path / "copy", form)
    loaded = cl.load(tmp_path / "copy")
    saved = loaded.save(tmp_path / "again")
    again = cl.load(saved)
    assert saved.layout == loaded.stored.format and again.fingerprint == loaded.fingerprint
    weights = [path.name for path in (tmp_path / "copy").iterdir() if path.suffix in (".safetensors", ".gguf")]
    assert weights and all((tmp_path / "copy" / name).read_bytes() == (saved / name).read_bytes() for name in weights)
    assert cl.probe(again, "size").summary() == cl.probe(loaded, "size").summary()
    floats = cl.load(loaded.copy().save(tmp_path / "floats"))
    assert floats.stored is None and floats.fingerprint == loaded.copy().fingerprint != loaded.fingerprint
    loaded.model.lm_head.weight.data[0] += 1
    with pytest.raises(CompressLabError, match="was changed after it was loaded"):
        loaded.save(tmp_path / "changed")
    (tmp_path / "again" / weights[0]).unlink()
    with pytest.raises(CompressLabError, match="are gone"):
        again.save(tmp_path / "gone")
    assert not (tmp_path / "changed").exists() and not (tmp_path / "gone").exists()


SAVED = [cl.RTN(4, 32, symmetric=True), cl.RTN(4, 32), cl.RTN(3, 16), cl.RTN(8, 0), cl.Float("fp8_e4m3"), cl.Int8()]


@pytest.mark.parametrize("method", SAVED, ids=repr)
def test_what_is_saved_is_read_by_transformers(method, original, tmp_path):
    made = method.apply(original)
    saved = made.save(tmp_path / "copy")
    again, batch = cl.load(saved), inputs(original.model)
    assert saved.layout == "compressed-tensors" and again.fingerprint == made.fingerprint
    assert all(
        torch.equal(tensor, form.tensors()[name])
        for key, form in again.packed.items()
        for name, tensor in made.packed[key].tensors().items()
    )
    on_disk = sum(tensor.nbytes for tensor in load_file(saved / "model.safetensors").values())
    shapes_and_padding = 32 * len(made.packed)
    assert abs(on_disk - cl.probe(again, "size").summary()["file_bytes"]["value"]) <= shapes_and_padding
    theirs = logits(AutoModelForCausalLM.from_pretrained(saved).eval(), batch)
    far = 0.05 if isinstance(method, cl.Int8) else 1e-3  # its own rounding of inputs; scales of sixteen bits
    assert (theirs - logits(made.model, batch)).norm() < far * theirs.norm()
    twice = cl.load(again.save(tmp_path / "twice"))
    assert twice.fingerprint == made.fingerprint and (twice.history, twice.provenance) == (
        made.history,
        made.provenance,
    )


@pytest.mark.parametrize("method, why", [(cl.NF4(), "not evenly spaced"), (cl.HQQ(4, 32), "not integers")], ids=repr)
def test_what_no_format_holds_is_packed_and_said(method, why, original, tmp_path):
    made = method.apply(original)
    saved = made.save(tmp_path / "copy")
    assert saved.layout == "packed" and why in saved.why and cl.load(saved).fingerprint == made.fingerprint
    with pytest.raises(OSError):
        AutoModelForCausalLM.from_pretrained(saved)


def test_scales_that_lose_digits_are_packed(original, tmp_path):
    half = cl.Subject(original.copy().model.bfloat16())
    made = cl.RTN(4, 32).apply(half)
    saved = made.save(tmp_path / "copy")
    again = cl.load(saved)
    assert again.fingerprint == made.fingerprint and again.model.dtype == torch.bfloat16
    for key, form in made.packed.items():
        assert (
            torch.equal(form.scales, again.packed[key].scales) and form.scales.dtype == again.packed[key].scales.dtype
        )


@pytest.fixture
def adapter(original, tmp_path):
    "A folder with a base in bfloat16 and one with an adapter of it."
    base = cl.Subject(original.copy().model.bfloat16())
    base.model.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    name, random = "base_model.model.model.layers.0.mlp.up_proj", torch.Generator().manual_seed(0)
    state = {f"{name}.lora_A.weight": torch.randn(2, 64, generator=random)}
    state |= {f"{name}.lora_B.weight": torch.randn(96, 2, generator=random)}
    save_file(state, tmp_path / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    return tmp_path / "adapter", state


def test_an_adapter_is_compared_with_its_base(adapter, tmp_path):
    folder, state = adapter
    base, adapted = cl.load(tmp_path / "base"), cl.load(folder)
    assert base.stored.format == "bfloat16" and adapted.stored.format == "bfloat16 and lora 2"
    sizes = [cl.probe(each, "size").summary() for each in (base, adapted)]
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    assert sizes[0]["file_bytes"]["value"] == 2 * parameters and sizes[0]["bits_per_weight"]["value"] == 16
    assert sizes[1]["file_bytes"]["value"] == 2 * parameters + sum(tensor.nbytes for tensor in state.values())
    assert sizes[1]["parameters"]["value"] == parameters and not adapted.simulated
    rows = torch.randint(8, 96, (4, 16), generator=torch.Generator().manual_seed(0))
    comparison = cl.compare(str(tmp_path / "base"), str(folder), ["fidelity", "size"], rows=rows)
    assert comparison.frame.set_index("metric").loc["kl", "compressed"] > 1e-4 and comparison.mismatches == []
    quantized = cl.RTN(4, 32).apply(adapted)
    assert quantized.stored is None and cl.load(quantized.save(tmp_path / "both")).fingerprint == quantized.fingerprint
    saved = cl.load(adapted.save(tmp_path / "merged"))
    assert saved.stored is None and not (tmp_path / "merged" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    "change, why",
    [
        ({"base_model_name_or_path": "no/such/base/model"}, "no folder"),
        ({"base_model_name_or_path": "adapter"}, "is an adapter too"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"use_dora": True}, "not those of its settings"),
        ({"r": 3}, "the rank 3"),
        ({"lora_alpha": "much"}, "cannot be read"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_named(change, why, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = adapter[0] / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(CompressLabError, match=why):
        cl.load(adapter[0])


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
