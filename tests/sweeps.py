"""Architectures: a sample of them by default, every one with `--flags sweep`."""

import pytest

from compress_lab.models.tiny import causal_lms, encoders

ALL = [("causal_lm", name) for name in causal_lms()] + [("masked_lm", name) for name in encoders()]

# one of each kind: transposed projections, fused ones, experts of three layouts, latent and linear attention, states,
# shared blocks, local attention, projected embeddings; encoders with relative positions, local and shared layers
SAMPLE = set(
    """llama gpt2 falcon mixtral gpt_oss jetmoe deepseek_v3 mamba2 jamba zamba2 gemma3_text opt qwen3_next phi3 bloom
    bert deberta-v2 modernbert albert xlnet""".split()
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
