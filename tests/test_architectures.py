"Every causal language model and every encoder of transformers, built tiny and audited; those refused, and why."

import pytest
import torch
from sweeps import ALL, built, swept

from compress_lab.compress.architectures import audit
from compress_lab.core.errors import CompressLabError
from compress_lab.models.forward import inputs
from compress_lab.models.tiny import causal_lms, encoders, tiny

torch.set_num_threads(1)


# transformers cannot build these from a configuration with its own defaults
NOT_BUILT = {
    "cohere_compass_text": "full_attention",  # its default has no rotary settings
    "dbrx": "rope_theta",  # its default attention configuration lacks a field that the model reads
    "gemma3n": "timm",  # needs a package for its vision tower
    "gemma4_assistant": "hidden_size_per_layer_input",  # its default configuration is invalid
    "gemma4_unified_assistant": "layer types producing a cache",  # reads the cache of another model
}

# these run, and a calibrated method cannot be trusted on them
NOT_SUPPORTED = {
    "xlnet": "not in linears",  # attention out of three-dimensional parameters and einsum
    "squeezebert": "not in linears",  # convolutions
    "ibert": "not in linears",  # its own integer layers
}


@swept("head, name", ALL)
def test_architecture(head, name):
    if name in NOT_BUILT:
        with pytest.raises(CompressLabError, match=NOT_BUILT[name]):
            tiny(name, head=head)
        return
    model = built(head, name)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_500_000, (
        "a size that models/03_tiny does not cut"
    )
    problems = audit(model, [inputs(model, seed=0), inputs(model, seed=1)]).problems
    if name in NOT_SUPPORTED:
        assert any(NOT_SUPPORTED[name] in problem for problem in problems), problems
    else:
        assert not problems


@pytest.mark.parametrize("names, head", [(causal_lms, "causal_lm"), (encoders, "masked_lm")])
def test_nine_in_ten_are_supported(names, head):
    refused = [name for name in names() if name in NOT_BUILT or name in NOT_SUPPORTED]
    assert len(refused) <= len(names()) / 10


def test_a_seed_decides_every_weight():
    for name in ("mixtral", "mamba2", "rwkv", "xlstm"):
        one, same, other = tiny(name), tiny(name), tiny(name, seed=1)
        assert all(map(torch.equal, one.parameters(), same.parameters()))
        assert not all(map(torch.equal, one.parameters(), other.parameters()))
