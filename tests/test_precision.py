"""The type that a calibration computes in matters less than which texts were drawn for it."""

import dataclasses

import pytest
import torch

import compress_lab as cl
from compress_lab.evaluate.fidelity import divergences
from compress_lab.models.tiny import tiny

METHODS = (cl.GPTQ(bits=3, group_size=16), cl.Wanda(0.5), cl.SparseGPT(0.5), cl.RIA(0.5), cl.AWQ(bits=3, group_size=16))


class Draw:
    "Random tokens, the low numbers more often."

    def __init__(self, seed):
        random = torch.Generator().manual_seed(seed)
        chances = 1 / torch.arange(1.0, 97)
        self.tokens, self.key = torch.multinomial(chances.expand(16, -1), 32, True, generator=random), f"draw {seed}"


@pytest.mark.parametrize("method", METHODS, ids=str)
@torch.inference_mode()
def test_the_type_matters_less_than_the_draw(method):
    subject, rows = cl.Subject(tiny("llama", hidden_size=64, intermediate_size=128)), Draw(99).tokens

    def predictions(dtype, seed):
        with torch.inference_mode(False):
            made = dataclasses.replace(method, calibration_dtype=dtype).apply(subject, Draw(seed))
        assert made.history[-1]["calibration_dtype"] == dtype
        return made.model(rows).logits.flatten(0, 1)

    first, short, other = predictions("float32", 0), predictions("bfloat16", 0), predictions("float32", 1)
    by_type, by_draw = (float(divergences(first, each)[0].mean()) for each in (short, other))
    assert 0 < by_type < by_draw, (by_type, by_draw)
