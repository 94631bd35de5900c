"""Rounded activations on models built differently.

Generation gives what one pass gives, saving gives the same, and what cannot be rounded is refused by name.
"""

import pytest
import torch

import compress_lab as cl
from compress_lab.models.tiny import tiny

TOKENS = torch.randint(8, 96, (2, 24), generator=torch.Generator().manual_seed(0))
KEEP_KEYS = ["bloom", "gptj", "opt", "gpt_oss", "deepseek_v3", "gemma3_text", "lfm2"]
NO_KEYS = {
    "mamba2": "keeps no cache",
    "recurrent_gemma": "keeps no cache",
    "openai-gpt": "keeps no cache",
    "minimax": "does not use the cache",
}
NOT_CALLED = {"jamba": "dt_proj", "gpt_oss": "experts", "deepseek_v3": "experts"}


def subject(name):
    model = tiny(name)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    return cl.Subject(model)


@pytest.mark.parametrize("name", KEEP_KEYS)
def test_a_rounded_cache_gives_in_many_calls_what_it_gives_in_one(name):
    original = subject(name)
    model, cache, found = cl.KVCache(3).apply(original).model.double(), None, []
    with torch.no_grad():
        whole = model(TOKENS).logits
        for part in TOKENS.split([10, 1, 1, 5, 7], 1):
            output = model(part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits)
        assert (whole - original.model.double()(TOKENS).logits).norm() > 1e-4 * whole.norm()
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NO_KEYS)
def test_a_model_without_keys_and_values_is_refused_and_left_as_it_was(name):
    original = subject(name)
    with pytest.raises(cl.CompressLabError, match=f"{type(original.model).__name__} {NO_KEYS[name]}"):
        cl.KVCache().apply(original, in_place=True)
    assert not original.input_quantizers


@pytest.mark.parametrize("name", NOT_CALLED)
def test_a_linear_that_is_not_called_is_refused_by_name(name):
    with pytest.raises(cl.CompressLabError, match=NOT_CALLED[name]):
        cl.Int8().apply(subject(name))


@pytest.mark.parametrize("name", ["bloom", "gptj", "opt"])
@pytest.mark.parametrize("method", [cl.Int8(), cl.LLMInt8(0.5)], ids=str)
def test_saved_and_loaded_it_says_the_same(name, method, tmp_path):
    rounded = method.apply(subject(name))
    rounded.save(tmp_path / "rounded")
    again = cl.load(tmp_path / "rounded")
    with torch.no_grad():
        assert torch.equal(again.model(TOKENS).logits, rounded.model(TOKENS).logits)
    assert again.fingerprint == rounded.fingerprint and again.input_quantizers.keys() == rounded.input_quantizers.keys()
