"""Low rank on every architecture.

A smaller model that computes what the products do and comes back from its folder, or a refusal by name.
"""

import re

import pytest
import torch
from sweeps import ALL, built, swept
from test_architectures import NOT_BUILT

import compress_lab as cl
from compress_lab.core.errors import CompressLabError
from compress_lab.models.forward import inputs, logits
from compress_lab.models.layers import linears
from compress_lab.models.low_rank import alike, ranks
from compress_lab.models.tiny import tiny

torch.set_num_threads(1)

BUILT = [(head, name) for head, name in ALL if name not in NOT_BUILT]

REFUSED = {  # words of the message: the architectures it is for
    "stack of experts": """
        afmoe aria_text axk1 bailing_hybrid beam cohere2_moe deepseek_v2 deepseek_v3 dots1 dots3_note dots3_note_text
        ernie4_5_moe exaone_moe flex_olmo flint glm4_moe glm4_moe_lite gpt_oss granitemoe granitemoe_swa
        granitemoehybrid granitemoeshared hy_v3 hy_v4 inkling2_text inkling_text kimi_linear kolibri1 laguna lfm2_moe
        llama4_text mellum mimo_v2_flash minimax minimax_m2 minimax_m3_vl_text nemotron_h olmoe qwen2_moe qwen3_5_moe
        qwen3_5_moe_text qwen3_moe qwen3_next qwen4_exp qwen4_exp_text solar_open zaya""",
    "shares its weight": "zamba zamba2",
    "contain no supported linear": "ibert squeezebert",
}

# What is refused here can be left out by name, as the message says, and the rest factored: experts, gates and
# indexers that use a weight themselves.
LEFT_OUT = """
    axk2 deepseek_v32 deepseek_v4 falcon_mamba glm_moe_dsa hunyuan_v1_moe jamba jetmoe llama4 longcat_flash mamba
    mixtral phimoe rwkv"""


def factored(model, ignore=()):
    "The model with all its linears factored but those that are refused by name, and the patterns of these."
    try:
        return cl.SVD(0.3).on(ignore=ignore).apply(cl.Subject(model)), ignore
    except CompressLabError as refusal:
        assert refusal.where in {linear.name for linear in linears(model)} and alike(refusal.where) not in ignore
        return factored(model, (*ignore, *re.findall(r"'([^']+)'", refusal.fix)))


def product(pair):
    return pair.second.weight.data @ pair.first.weight.data


@swept("head, name", BUILT)
def test_smaller_or_refused(head, name, tmp_path):
    model = built(head, name)
    if words := next((words for words, names in REFUSED.items() if name in names.split()), None):
        with pytest.raises(CompressLabError, match=words) as refusal:
            cl.SVD(0.3).apply(cl.Subject(model), in_place=True)
        assert refusal.value.where and refusal.value.fix
        return
    low, left_out = factored(model)
    assert bool(left_out) == (name in LEFT_OUT.split())
    assert sum(parameter.numel() for parameter in low.model.parameters()) < sum(
        parameter.numel() for parameter in model.parameters()
    )
    for linear in linears(model):
        if linear.name in ranks(low.model):
            linear.matrices[0].copy_(product(low.model.get_submodule(linear.name)))
    found, expected = (logits(each, inputs(model)) for each in (low.model, model))
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)
    again = cl.load(low.save(tmp_path / "low"))
    assert ranks(again.model) == ranks(low.model)
    torch.testing.assert_close(logits(again.model, inputs(model)), found, atol=0, rtol=0)


def test_factors_can_be_trained(tmp_path):
    subject = cl.Subject(tiny("llama"))

    sample = cl.calibration(inputs(subject.model, batch=8, length=32)["input_ids"])

    low, trained = (
        recipe.apply(subject, sample) for recipe in (cl.SVDLLM(0.5), cl.SVDLLM(0.5) >> cl.Recover(steps=20, lr=1e-3))
    )
    again = cl.load(trained.save(tmp_path / "trained"))
    assert again.fingerprint == trained.fingerprint and ranks(again.model) == ranks(low.model)
    before, recovered, wanted = (logits(each.model, {"input_ids": sample.tokens}) for each in (low, again, subject))
    assert (recovered - wanted).norm() < (before - wanted).norm()


def test_seven_in_ten_are_factored_whole():
    refused = sum(name in f"{LEFT_OUT} {' '.join(REFUSED.values())}".split() for _, name in BUILT)
    assert refused <= 0.3 * len(BUILT)
