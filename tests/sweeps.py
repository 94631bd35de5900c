"""Architectures: a sample of them by default, every one with `--flags sweep`."""

import copy
from functools import lru_cache

import pytest

from compress_lab.models.tiny import causal_lms, encoders, tiny

ALL = [("causal_lm", name) for name in causal_lms()] + [("masked_lm", name) for name in encoders()]

# one of each kind: transposed projections, fused ones, experts of three layouts, latent and linear attention, states,
# shared blocks, local attention, projected embeddings; encoders with relative positions, local and shared layers
SAMPLE = set(
    """llama gpt2 falcon mixtral gpt_oss jetmoe deepseek_v3 mamba2 jamba zamba2 gemma3_text opt qwen3_next phi3 bloom
    bert deberta-v2 modernbert albert xlnet""".split()
)


assert SAMPLE <= {name for _, name in ALL}, "transformers calls one of these otherwise"


@lru_cache(maxsize=1)
def _built(head, name):
    return tiny(name, head=head)


def built(head, name):
    "A tiny model of the architecture: a copy of one that is built once for the tests of it that follow each other."
    return copy.deepcopy(_built(head, name))


def architecture(item):
    "The architecture that a case of a swept test is about, as `head-name`; empty for other tests."
    if getattr(item, "function", None) not in SWEPT:
        return ""
    case = item.callspec.id
    return case if case.startswith(("causal_lm-", "masked_lm-")) else f"causal_lm-{case}"


SWEPT = set()  # the test functions


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

    def parametrized(test):
        SWEPT.add(test)
        return pytest.mark.parametrize(names, values, **more)(test)

    return parametrized
