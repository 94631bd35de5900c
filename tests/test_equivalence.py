"Scales moved through every pair that is found, in every architecture; rotations; and the methods that use them."

from types import SimpleNamespace

import pytest
import torch
from sweeps import ALL, built, swept
from test_architectures import NOT_BUILT

import compress_lab as cl
from compress_lab.core.errors import CompressLabError
from compress_lab.models.equivalence import equivalences
from compress_lab.models.forward import inputs, logits
from compress_lab.models.layers import linears
from compress_lab.models.subject import weights_hash
from compress_lab.models.tiny import tiny

torch.set_num_threads(1)

# no norm and no linear of their blocks feeds the next linear channel by channel
WITHOUT = {
    ("causal_lm", "xlnet"),
    ("masked_lm", "ibert"),
    ("masked_lm", "neomme"),
    ("masked_lm", "squeezebert"),
}
BUILT = [(head, name) for head, name in ALL if name not in NOT_BUILT]


def change(before, after):
    return float((after - before).abs().max() / before.abs().max())


def lively(name, seed=0):
    "A tiny model whose blocks and norms weigh in: as built, it is nearly all embedding."
    model, random = tiny(name), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in linears(model):
            if layer.block is not None:
                layer.weight.mul_(5)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.rand(parameter.shape, generator=random))
    return model


@swept("head, name", BUILT)
def test_random_scales_through_every_pair_leave_the_logits(head, name):
    model = built(head, name)
    weights = weights_hash(model)
    found = equivalences(model)
    assert weights_hash(model) == weights
    assert any(pair.source.block is not None for pair in found.pairs) == ((head, name) not in WITHOUT)
    batch, random = inputs(model), torch.Generator().manual_seed(0)
    before = logits(model, batch)
    for pair in found.pairs:
        pair.move(0.5 + torch.rand(pair.experts, len(pair.rows), generator=random))
    assert change(before, logits(model, batch)) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_proof_needs_no_precision(name):
    model = tiny(name)
    expected = [repr(pair) for pair in equivalences(model).pairs]
    assert [repr(pair) for pair in equivalences(model.bfloat16()).pairs] == expected
    assert {repr(pair) for pair in equivalences(tiny(name).half()).pairs} <= set(
        expected
    )  # values that underflow hide some


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "qwen3", "gpt2", "opt", "gpt_neox", "gptj", "mixtral", "phi3", "granite"]
)
def test_a_rotation_leaves_the_logits(name, tmp_path):
    subject = cl.Subject(lively(name))
    batch = inputs(subject.model)
    before = logits(subject.model, batch)
    turned = cl.Rotate().apply(subject)
    assert change(before, logits(turned.model, batch)) < 1e-4 and torch.equal(before, logits(subject.model, batch))
    again = cl.load(turned.save(tmp_path / "turned"))
    assert torch.equal(logits(again.model, batch), logits(turned.model, batch))


@pytest.mark.parametrize("name", ["gemma2", "olmo", "bert", "bloom"])
def test_what_cannot_be_rotated_is_refused(name):
    with pytest.raises(CompressLabError):
        cl.Rotate().apply(cl.Subject(lively(name)))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "phi3", "gemma"])
def test_awq_of_a_pruned_model_keeps_its_zeros_and_reloads(name, tmp_path):
    subject = cl.Subject(tiny(name))
    calibration = SimpleNamespace(tokens=inputs(subject.model, batch=4, length=32)["input_ids"], key="random tokens")
    result = (cl.Magnitude(0.5) >> cl.AWQ(bits=4, group_size=16)).apply(subject, calibration)
    for layer in linears(result.model):
        if layer.block is not None:
            assert all((matrix == 0).float().mean() >= 0.5 for matrix in layer.matrices), layer.name
    again = cl.load(result.save(tmp_path / "awq"))
    batch = inputs(subject.model)
    assert torch.equal(logits(again.model, batch), logits(result.model, batch))


@pytest.mark.parametrize("options", [{}, {"alpha": 0.8, "norms_only": False}])
@pytest.mark.parametrize("name", ["llama", "opt", "mixtral", "gpt_neox"])
def test_smoothing_leaves_the_logits(name, options):
    subject = cl.Subject(lively(name))
    calibration = SimpleNamespace(tokens=inputs(subject.model, batch=4, length=32)["input_ids"], key="random tokens")
    batch = inputs(subject.model)
    assert (
        change(logits(subject.model, batch), logits(cl.SmoothQuant(**options).apply(subject, calibration).model, batch))
        < 1e-4
    )
