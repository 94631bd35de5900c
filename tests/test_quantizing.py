"""Every architecture that the walk is right for can be quantized, with and without calibration text.

The others are refused by name.
"""

import pytest
import torch
from sweeps import ALL, built, swept
from test_architectures import NOT_BUILT, NOT_SUPPORTED

import compress_lab as cl
from compress_lab.core.errors import CompressLabError
from compress_lab.models.forward import inputs, logits
from compress_lab.models.layers import text_linears, tied

METHODS = (
    cl.RTN(bits=4, group_size=16),
    cl.HQQ(bits=4, group_size=16),
    cl.GPTQ(bits=4, group_size=16, shrinks=0, calibration_dtype="float32"),
)
BUILT = [(head, name) for head, name in ALL if name not in NOT_BUILT]


@swept("head, name", BUILT)
def test_quantized(head, name):
    model = built(head, name)
    batch = inputs(model, seed=0)
    subject, text = cl.Subject(model), cl.calibration(batch["input_ids"])
    inside = text_linears(model)
    if not inside:
        assert name in NOT_SUPPORTED
        for method in METHODS:
            with pytest.raises(CompressLabError, match="no supported linear"):
                method.apply(subject, text)
        return
    shared = {key for group in tied(model) for key in group}
    if any(linear.key in shared for linear in inside):
        with pytest.raises(CompressLabError, match="shares its weight"):
            METHODS[0].apply(subject)
    free = {linear.key for linear in inside if linear.key not in shared}
    for method in METHODS:
        result = (
            method if len(free) == len(inside) else method.on(*[linear.name for linear in inside if linear.key in free])
        ).apply(subject, text)
        places = dict(result.model.named_parameters())
        assert result.packed.keys() == free, method
        for key, packed in result.packed.items():
            assert torch.equal(packed.dequantize(), places[key]), (method, key)
        assert torch.isfinite(logits(result.model, batch)).all(), method
    assert cl.Subject(model).fingerprint == subject.fingerprint
