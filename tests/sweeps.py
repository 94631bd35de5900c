"""What takes long: tried on a sample of architectures, or left out, unless asked for with `--flags sweep`."""

import pytest

from compress_lab.models.tiny import causal_lms, encoders

ALL = [("causal_lm", name) for name in causal_lms()] + [("masked_lm", name) for name in encoders()]

# one of each kind: transposed projections, fused ones, experts of three layouts, latent and linear attention, states,
# shared blocks, local attention, projected embeddings; encoders with relative positions, local layers, bottlenecks
SAMPLE = set(
    """llama gpt2 falcon mixtral gpt_oss jetmoe deepseek_v3 mamba2 jamba zamba2 gemma3_text opt qwen3_next phi3 bloom
    bert deberta-v2 modernbert mobilebert albert roberta xlnet""".split()
)


assert SAMPLE <= {name for _, name in ALL}, "transformers calls one of these otherwise"


def swept(names, pairs, **more):
    """Parametrizes a test with all the pairs, or all the names where `names` is one; those out of `SAMPLE` are marked
    with `sweep`.
    """
    values = []
    for pair in pairs:
        head, name = (None, pair) if isinstance(pair, str) else pair
        marks = () if name in SAMPLE else pytest.mark.sweep
        given = (pair,) if head is None else pair
        values.append(pytest.param(*given, marks=marks, id="-".join(given)))
    return pytest.mark.parametrize(names, values, **more)


# notebooks that take half a minute and more, most of it for their figures on a real model
HEAVY = set(
    """quantize/04_gptq quantize/06_awq quantize/07_smoothquant quantize/08_rotation quantize/21_int8
    quantize/22_llm_int8 quantize/23_kv_cache quantize/32_autoround evaluate/10_comparison evaluate/14_task_probe
    evaluate/16_coverage train/02_trainer distill/10_distill prune/31_gradual measure/04_memory runtimes/02_openvino
    runtimes/03_onnxruntime runtimes/04_native deploy/02_compressed_tensors deploy/03_openvino deploy/05_gguf
    deploy/07_torchao evaluate/08_fidelity evaluate/21_bias evaluate/22_security evaluate/25_privacy
    distill/03_students prune/23_hidden data/02_texts measure/05_scenarios measure/13_energy""".split()
)


def notebooks(paths):
    "Parametrizes a test with the paths of notebooks; those in `HEAVY` are marked with `sweep`."
    assert HEAVY <= {path.with_suffix("").as_posix() for path in paths}, "a notebook of this list has another name"
    values = []
    for path in paths:
        marks = pytest.mark.sweep if path.with_suffix("").as_posix() in HEAVY else ()
        values.append(pytest.param(path, marks=marks, id=path.as_posix()))
    return pytest.mark.parametrize("path", values)
