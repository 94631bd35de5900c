"""Neurons, heads, blocks and channels of every architecture.

A smaller model that plain transformers loads, or a refusal by name. Without neurons, heads or blocks it computes what
the original does when they are not read.
"""

import pytest
import torch
from sweeps import ALL, SAMPLE, built, swept
from test_architectures import NOT_BUILT

import compress_lab as cl
from compress_lab.core.errors import CompressLabError
from compress_lab.models.forward import inputs, logits

torch.set_num_threads(1)

METHODS = {
    "Neurons": cl.Neurons(0.5, calibration_dtype="float32"),
    "Heads": cl.Heads(0.5, calibration_dtype="float32"),
    "Blocks": cl.Blocks(1),
    "Hidden": cl.Hidden(0.5, calibration_dtype="float32"),
}
BUILT = [(head, name) for head, name in ALL if name not in NOT_BUILT]

# Their configurations cannot say it, a norm or experts mix the units, or blocks differ in kind; the message says which.
REFUSED = {
    ("Neurons", "causal_lm"): """
        afmoe aria_text axk1 axk2 bailing_hybrid bitnet bloom blt cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32
        deepseek_v4 dots1 dots3_note dots3_note_text ernie4_5_moe exaone_moe falcon_mamba flex_olmo flint gemma4
        gemma4_text glm4_moe glm4_moe_lite glm_moe_dsa gpt_neox_japanese gpt_oss granitemoe granitemoe_swa
        granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 inkling2_text inkling_text jamba jetmoe kimi_linear laguna lfm3
        llama4 llama4_text mamba mamba2 mellum minimax minimax_m2 mixtral mllama moshi mpt olmoe openai-gpt phimoe
        qwen3_moe qwen4_exp qwen4_exp_text recurrent_gemma reformer rwkv solar_open xlm xlstm xmod zamba zamba2 zaya""",
    ("Neurons", "masked_lm"): """
        bart esmc flaubert funnel ibert mbart mobilebert mvp perceiver reformer squeezebert xlm xmod""",
    ("Heads", "causal_lm"): """
        bailing_hybrid bamba bart bert bert-generation big_bird bigbird_pegasus biogpt bitnet blenderbot
        blenderbot-small bloom blt camembert codegen cpmant ctrl data2vec-text deepseek_v4 doge electra ernie falcon
        falcon_h1 falcon_mamba flex_olmo fuyu git gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gptj
        granitemoehybrid helium inkling2_text inkling_text jetmoe kimi_linear laguna mamba mamba2 marian mbart
        megatron-bert minimax minimax_m2 mllama modernbert-decoder mpt musicgen musicgen_melody mvp olmo2 olmo3
        olmo_hybrid olmoe openai-gpt opt pegasus persimmon plbart prophetnet qwen3_5 qwen3_5_moe qwen3_5_moe_text
        qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma reformer rembert roberta
        roberta-prelayernorm roc_bert roformer rwkv stablelm trocr whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet
        xlstm xmod zamba zamba2 zaya""",
    ("Heads", "masked_lm"): """
        albert bart bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm
        esmc flaubert fnet funnel ibert layoutlm longformer luke mbart megatron-bert mobilebert modernbert
        modernvbert mpnet mra mvp neomme nystromformer perceiver reformer rembert roberta roberta-prelayernorm
        roc_bert roformer squeezebert tapas xlm xlm-roberta xlm-roberta-xl xmod yoso""",
    ("Blocks", "causal_lm"): """
        bailing_hybrid blt deepseek_v3 deepseek_v4 dots3_note dots3_note_text ernie4_5_moe gemma3 gemma3n_text gemma4
        gemma4_text gemma4_unified gemma4_unified_text git glm4_moe got_ocr2 gpt_neox_japanese hrm_text hy_v4 jamba
        llama4 llama4_text minicpm3 mllama modernbert-decoder moss_transcribe_diarize nemotron_h openai-gpt
        phi4_multimodal reformer xlm zamba zamba2 zaya""",
    ("Blocks", "masked_lm"): """
        albert bart esm esmc flaubert funnel ibert mbart modernvbert mvp reformer squeezebert ultravbert xlm""",
    ("Hidden", "causal_lm"): """
        bamba bitnet bloom blt codegen deepseek_v4 gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4 gemma4_text
        gemma4_unified gemma4_unified_text gpt_neox_japanese granitemoehybrid hy_v4 jamba lfm3 mamba2 mllama mpt
        olmoe openai-gpt opt prophetnet qwen4_exp qwen4_exp_text recurrent_gemma reformer roc_bert rwkv vaultgemma
        xlm xlnet xlstm xmod zamba zamba2 zaya""",
    ("Hidden", "masked_lm"): """
        convbert esm esmc flaubert ibert mobilebert mpnet neomme perceiver reformer roc_bert squeezebert xlm xmod""",
}


def generated(model, batch):
    "Two more tokens; None where such a model generates nothing."
    try:
        return model.generate(
            **{**batch, "use_cache": True},
            attention_mask=torch.ones_like(batch["input_ids"]),
            max_new_tokens=2,
            min_new_tokens=2,
            do_sample=False,
            pad_token_id=1,
        )
    except Exception:
        return None


@swept("head, name", BUILT)
def test_smaller_or_refused(head, name, tmp_path, request):
    model = built(head, name)
    thorough = name in SAMPLE or "slow" in request.config.getoption("--flags").split()
    subject, text, size = (
        cl.Subject(model),
        cl.calibration(inputs(model, batch=4, length=16)["input_ids"]),
        sum(parameter.numel() for parameter in model.parameters()),
    )
    for kind, method in METHODS.items():
        if name in REFUSED[kind, head].split():
            with pytest.raises(CompressLabError) as refusal:
                method.apply(subject, text)
            assert refusal.value.where and refusal.value.fix
            continue
        smaller = method.apply(
            subject, text
        )  # has compared its logits with those of the original without the units, or itself with what reads back
        assert sum(parameter.numel() for parameter in smaller.model.parameters()) < size
        smaller.model.save_pretrained(tmp_path / kind)
        plain, batch = type(model).from_pretrained(tmp_path / kind), inputs(model)
        torch.testing.assert_close(logits(plain, batch), logits(smaller.model, batch), atol=1e-5, rtol=1e-5)
        if thorough and head == "causal_lm" and "input_ids" in batch and generated(model, batch) is not None:
            assert generated(plain, batch) is not None, kind


def test_most_can_be_cut():
    for kind, share in ("Neurons", 0.6), ("Heads", 0.35), ("Blocks", 0.75), ("Hidden", 0.75):
        refused = sum(len(REFUSED[kind, head].split()) for head in ("causal_lm", "masked_lm"))
        assert refused <= (1 - share) * len(BUILT), kind
