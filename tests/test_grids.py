"What all weight grids promise: packed bits give back what was computed, zeros stay, rounding twice changes nothing, damage is named."
import json
from functools import cache
from itertools import product

import pytest, torch
from compress_lab.core.activations import ColumnNorms, Gram
from compress_lab.core.errors import CompressLabError
from compress_lab.core.packed import LEVELS, Packed
from compress_lab.core.subjects import Provenance, Subject, load
from compress_lab.core.tiny import tiny
from compress_lab.core.data import Calibration
from compress_lab.core.layers import linears
from compress_lab.core.layerwise import by_weights
from compress_lab.prune.magnitude import Magnitude
from compress_lab.quantize.codebook import INITS, Codebook, WeightedCodebook, huffman_lengths
from compress_lab.quantize.floats import NAMES, SHARES, Float
from compress_lab.quantize.gptq import GPTQ
from compress_lab.quantize.levels import FORMATS, nearest
from compress_lab.quantize.nf4 import NF4
from compress_lab.quantize.rtn import RTN
from hypothesis import given, settings, strategies as st

FLOATS = [Float(name) for name in NAMES] + [Float(name, "tensor") for name in ("fp8_e4m3", "fp8_e5m2")] + [Float(name, scale="mse") for name in NAMES if FORMATS[name].scale in SHARES]
GROUPS = (0, 1, 5, 32)
PLAIN = [*FLOATS, *(NF4(group, double) for group, double in product(GROUPS, (False, True))), *(Codebook(bits, per, init) for bits, per, init in product(range(1, 9), ("row", "tensor"), INITS)),
         *(RTN(bits, group, symmetric) for bits, group, symmetric in product(range(1, 9), GROUPS, (False, True)))]
CALIBRATED = [*(WeightedCodebook(bits, per) for bits, per in product((1, 3, 4, 8), ("row", "tensor"))),
              *(GPTQ(bits, group, symmetric, act_order) for bits, group, symmetric, act_order in product((1, 3, 4, 8), GROUPS, (False, True), (False, True))),
              *(GPTQ(format.bits, 5 if format.group_size is None else format.group_size, levels=name, act_order=act_order) for (name, format), act_order in product(FORMATS.items(), (False, True)))]
# an even grid that spans the weights ends up to a step beside what it rounds the outermost to, so that the next grid is another
IDEMPOTENT = [method for method in PLAIN if not isinstance(method, RTN)]

@st.composite
def matrices(draw, scales=st.integers(-5, 5)):
    "A matrix of normal numbers, some rows or columns much larger than others, some of its weights pruned."
    rows, columns, seed = draw(st.integers(1, 5)), draw(st.integers(1, 70)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 10.0 ** draw(scales)
    weight *= torch.rand(columns if draw(st.booleans()) else (rows, 1), generator=generator) ** draw(st.sampled_from((0, 1, 6)))
    return weight.masked_fill(torch.rand(rows, columns, generator=generator) < draw(st.sampled_from((0, 0.2, 0.9, 1.0))), 0)

def stored(method, result, shape):
    "The packed weight after a round trip through tensors and JSON."
    packed = Packed.from_codes(result.codes, result.scales, result.zeros, bits=method.bits, group_size=method.columns_per_group(shape[1]), levels=result.levels, outer=result.outer)
    return Packed.load(packed.tensors(), json.loads(json.dumps(packed.meta())))

def check(method, weight, result):
    assert result.weight.isfinite().all() and (result.weight[weight == 0] == 0).all()
    assert torch.equal(stored(method, result, weight.shape).dequantize(), result.weight)

@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLAIN), matrices())
def test_packed_bits_give_back_what_was_computed(method, weight):
    check(method, weight, method.compress(weight))

@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CALIBRATED), matrices(scales=st.integers(-2, 2)), st.integers(0, 80), st.integers(0, 2**31))
def test_packed_bits_give_back_what_was_calibrated(method, weight, tokens, seed):
    generator, seen = torch.Generator().manual_seed(seed), type(method).statistic(weight.shape[1])
    if tokens: seen.update(torch.randn(tokens, weight.shape[1], generator=generator) * (torch.rand(weight.shape[1], generator=generator) > 0.1))
    check(method, weight, by_weights(method, weight, seen))

@settings(max_examples=400, deadline=None)
@given(st.sampled_from(IDEMPOTENT), matrices(scales=st.integers(-1, 1)))
def test_rounding_twice_changes_nothing(method, weight):
    once = method.compress(weight).weight
    assert torch.equal(method.compress(once).weight, once)

@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(LEVELS)), st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50))
def test_no_level_is_nearer(name, values):
    values = torch.tensor(values, dtype=torch.float32)
    table = LEVELS[name].double()
    distance = (values.double()[:, None] - table).abs().nan_to_num(torch.inf)
    assert torch.allclose(distance.gather(1, nearest(values, name).long()[:, None])[:, 0], distance.amin(1), rtol=1e-6, atol=1e-12)

@pytest.mark.parametrize("make", [lambda bits: RTN(bits, 32), lambda bits: RTN(bits, 0, True), Codebook, lambda bits: Codebook(bits, "tensor"), lambda bits: GPTQ(bits, 32), WeightedCodebook])
def test_more_bits_never_hurt(make):
    generator = torch.Generator().manual_seed(0)
    weight, seen = torch.randn(16, 96, generator=generator), make(4).statistic
    if seen: seen = seen(96); seen.update(torch.randn(200, 96, generator=generator))
    errors = [float((make(bits).compress(weight, seen).weight - weight).square().sum()) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 500

ON_MODELS = [RTN(4, 24), Float("fp8_e4m3", "tensor"), Float("mxfp6_e3m2"), Float("mxfp4", scale="mse"), Float("nvfp4"), NF4(24), NF4(double=True), Codebook(3), Codebook(4, "tensor"),
             WeightedCodebook(3), GPTQ(4, 24), GPTQ(4, 24, levels="nf4"), GPTQ(4, 16, levels="nvfp4")]

@cache
def subject_of(name): return Subject(tiny(name), provenance=Provenance(name=f"tiny {name}"))
def text(): return Calibration(torch.randint(0, 128, (4, 24), generator=torch.Generator().manual_seed(0)), None, 0, "tiny")

@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gpt_oss"])   # transposed matrices, stacks of experts, both
@pytest.mark.parametrize("method", ON_MODELS, ids=str)
def test_a_saved_model_comes_back_bit_for_bit(method, name, tmp_path):
    original = subject_of(name)
    small = (Magnitude(0.3) >> method).apply(original, text())
    changed = [linear for linear in linears(small.model) if linear.block is not None]
    assert len(small.packed) == len({linear.key for linear in changed}) > 0
    for linear in changed:
        assert torch.equal(small.packed[linear.key].dequantize(), linear.weight.data)
        assert (linear.weight == 0).float().mean() > 0.25
    again = load(small.save(tmp_path / "model"))
    assert again.fingerprint == small.fingerprint
    for key, packed in small.packed.items():
        assert all(torch.equal(tensor.view(torch.uint8), again.packed[key].tensors()[field].view(torch.uint8)) for field, tensor in packed.tensors().items())

@pytest.mark.parametrize("damage", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", [RTN(), Float("nvfp4"), NF4(), Codebook(), WeightedCodebook(), GPTQ(), GPTQ(levels="nf4")], ids=str)
def test_damage_is_named(method, damage):
    broken = subject_of("llama").copy()
    victim = next(linear for linear in linears(broken.model) if linear.name.endswith("1.mlp.down_proj"))
    victim.weight.data[3, 5] = damage
    with pytest.raises(CompressLabError, match=r"1\.mlp\.down_proj") as caught: method.apply(broken, text())
    assert "NaN or infinity" in str(caught.value)

@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(any))
def test_huffman_words_form_a_prefix_code_no_longer_than_codes_of_one_width(counts):
    lengths, used = huffman_lengths(counts), sum(map(bool, counts))
    assert all((length > 0) == (count > 0) for length, count in zip(lengths, counts))
    assert sum(2.0 ** -length for length in lengths if length) == (1 if used > 1 else 0.5)
    assert sum(map(int.__mul__, counts, lengths)) <= sum(counts) * max(1, (used - 1).bit_length())

@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.scale == "power"])
def test_torchao_gives_the_same_bits(name):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    kinds = {"e2m1": getattr(torch, "float4_e2m1fn_x2", None), "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e2m3": "fp6_e2m3", "e3m2": "fp6_e3m2"}
    generator = torch.Generator().manual_seed(0)
    weight = torch.cat([torch.randn(64, 128, generator=generator) * torch.logspace(-20, 20, 64)[:, None], torch.randint(-64, 65, (64, 128), generator=generator) / 8])
    scales, data = mx.to_mx(weight, kinds[FORMATS[name].levels], 32)
    data, ours = data.view(torch.uint8).reshape(128, -1), Float(name).compress(weight)
    if name == "mxfp4": data = torch.stack([data & 15, data >> 4], 2).flatten(1)
    assert torch.equal(scales.view(torch.uint8).reshape(128, -1), ours.scales.view(torch.uint8)) and torch.equal(data, ours.codes)
