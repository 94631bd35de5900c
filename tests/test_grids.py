"""What all weight grids promise.

Packed bits give back what was computed, zeros stay, rounding twice changes nothing, damage is named.
"""

import json
import math
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_lab.compress.input_statistics import Gram
from compress_lab.compress.layerwise import by_weights
from compress_lab.compress.recipe import Recipe
from compress_lab.core.errors import CompressLabError
from compress_lab.data.texts import Calibration
from compress_lab.models.layers import linears
from compress_lab.models.loading import load
from compress_lab.models.packed import LEVELS, Packed
from compress_lab.models.subject import Provenance, Subject
from compress_lab.models.tiny import tiny
from compress_lab.prune.magnitude import Magnitude
from compress_lab.quantize.autoround import AutoRound
from compress_lab.quantize.awq import AWQ, search
from compress_lab.quantize.codebook import INITS, Codebook, WeightedCodebook, huffman_lengths
from compress_lab.quantize.floats import NAMES, SHARES, Float
from compress_lab.quantize.gptq import GPTQ
from compress_lab.quantize.grid import codes, grouped, span, values
from compress_lab.quantize.hqq import HQQ
from compress_lab.quantize.int8 import Int8
from compress_lab.quantize.levels import FORMATS, nearest
from compress_lab.quantize.nf4 import NF4
from compress_lab.quantize.quantease import QuantEase
from compress_lab.quantize.rtn import RTN

FLOATS = (
    [Float(name) for name in NAMES]
    + [Float(name, "tensor") for name in ("fp8_e4m3", "fp8_e5m2")]
    + [Float(name, scale="mse") for name in NAMES if FORMATS[name].scale in SHARES]
)
GROUPS = (0, 1, 5, 32)
EVEN = ((False,), (True,), (False, "real"))  # asymmetric, symmetric, zero points that are any number
PLAIN = [
    *FLOATS,
    *(NF4(group, double) for group, double in product(GROUPS, (False, True))),
    *(Codebook(bits, per, init) for bits, per, init in product(range(1, 9), ("row", "tensor"), INITS)),
    *(RTN(bits, group, *grid) for bits, group, grid in product(range(1, 9), GROUPS, EVEN)),
    *(HQQ(bits, group) for bits, group in product(range(1, 9), GROUPS)),
]
CALIBRATED = [
    *(WeightedCodebook(bits, per) for bits, per in product((1, 3, 4, 8), ("row", "tensor"))),
    *(
        GPTQ(bits, group, symmetric, act_order)
        for bits, group, symmetric, act_order in product((1, 3, 4, 8), GROUPS, (False, True), (False, True))
    ),
    *(
        GPTQ(format.bits, 5 if format.group_size is None else format.group_size, levels=name, act_order=act_order)
        for (name, format), act_order in product(FORMATS.items(), (False, True))
    ),
    *(
        AWQ(bits, group, symmetric, clip=clip)
        for bits, group, symmetric, clip in product((1, 3, 4, 8), GROUPS, (False, True), (False, True))
    ),
    *(
        QuantEase(bits, group, *grid[:1], zero_point=grid[-1] if grid[1:] else "integer")
        for bits, group, grid in product((1, 3, 4, 8), GROUPS, EVEN)
    ),
]

# a zero point that is any number is itself rounded, and moves both ends of the grid
IDEMPOTENT = [method for method in PLAIN if getattr(method, "zero_point", "") != "real"]
BITS, SIZES = st.sampled_from((1, 2, 3, 4, 8)), st.sampled_from((0, 5, 32))


@st.composite
def matrices(draw, scales=st.integers(-5, 5)):  # noqa: B008
    "A matrix of normal numbers, some rows or columns much larger than others, some of its weights pruned."
    rows, columns, seed = draw(st.integers(1, 5)), draw(st.integers(1, 70)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 10.0 ** draw(scales)
    weight *= torch.rand(columns if draw(st.booleans()) else (rows, 1), generator=generator) ** draw(
        st.sampled_from((0, 1, 6))
    )
    return weight.masked_fill(
        torch.rand(rows, columns, generator=generator) < draw(st.sampled_from((0, 0.2, 0.9, 1.0))), 0
    )


def stored(method, result, shape):
    "The packed weight after a round trip through tensors and JSON."
    packed = Packed.from_codes(
        result.codes,
        result.scales,
        result.zeros,
        bits=method.bits,
        group_size=method.columns_per_group(shape[1]),
        levels=result.levels,
        outer=result.outer,
    )
    return Packed.load(packed.tensors(), json.loads(json.dumps(packed.meta())))


def check(method, weight, result):
    """The result is finite, keeps zeros, is what its bits stand for, and lies on its grid.

    Its codes are the nearest to it.
    """
    assert result.weight.isfinite().all() and (result.weight[weight == 0] == 0).all()
    assert torch.equal(stored(method, result, weight.shape).dequantize(), result.weight)
    assert result.scales.float().isfinite().all() and (result.scales.float() > 0).all()
    size = method.columns_per_group(weight.shape[1])
    assert (
        result.scales.shape == (len(weight), math.ceil(weight.shape[1] / size))
        and int(result.codes.max()) < 2**method.bits
    )
    if result.levels is None:
        assert torch.equal(
            codes(result.weight, *on_columns(method, result, size), method.bits).to(torch.uint8), result.codes
        )


def on_columns(method, result, size):
    "Scales and zero points of each column of a result on even grids, (rows, in)."
    group, zeros = (
        torch.arange(result.codes.shape[1]) // size,
        torch.full_like(result.scales, 2 ** (method.bits - 1)) if result.zeros is None else result.zeros.float(),
    )
    return result.scales[:, group], zeros[:, group]


def inputs_of(columns, tokens, seed):
    "Second moments of inputs of which some are much larger than others."
    generator, seen = torch.Generator().manual_seed(seed), Gram(columns)
    seen.update(torch.randn(tokens, columns, generator=generator) * torch.rand(columns, generator=generator) ** 3)
    return seen


def cost(change, moments):
    "The output error of each row, (rows,), float64."
    change = change.double()
    return ((change @ moments.double()) * change).sum(1)


def no_larger(error, than, of):
    return (error <= than * (1 + 1e-4) + 1e-9 * of).all()


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLAIN), matrices())
def test_packed_bits_give_back_what_was_computed(method, weight):
    check(method, weight, method.compress(weight))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CALIBRATED), matrices(scales=st.integers(-2, 2)), st.integers(0, 80), st.integers(0, 2**31))
def test_packed_bits_give_back_what_was_calibrated(method, weight, tokens, seed):
    generator, seen = torch.Generator().manual_seed(seed), type(method).statistic(weight.shape[1])
    if tokens:
        seen.update(
            torch.randn(tokens, weight.shape[1], generator=generator)
            * (torch.rand(weight.shape[1], generator=generator) > 0.1)
        )
    check(method, weight, by_weights(method, weight, seen))


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(IDEMPOTENT), matrices())
def test_rounding_twice_changes_nothing(method, weight):
    once = method.compress(weight)
    twice = method.compress(once.weight)
    if once.outer is None or once.scales.dtype == torch.float8_e8m0fnu:
        assert torch.equal(twice.weight, once.weight)
    else:  # a scale that is no normal number of E4M3 may become another; a factor in float32 may move in its last place
        normal = once.scales.float() >= 2**-6
        held = normal[:, torch.arange(weight.shape[1]) // method.columns_per_group(weight.shape[1])]
        assert torch.equal(twice.scales.float()[normal], once.scales.float()[normal]) and torch.equal(
            twice.codes[held], once.codes[held]
        )
        assert torch.allclose(
            twice.weight[held], once.weight[held], rtol=0 if isinstance(method, NF4) else 2**-22, atol=0
        )


@settings(max_examples=100, deadline=None)
@given(matrices(), BITS, SIZES)
def test_hqq_is_no_farther_off_than_rounding_in_its_norm(weight, bits, group):
    method = HQQ(bits, group)
    found, plain = (
        (made.compress(weight).weight - weight).double().abs() ** method.p for made in (method, RTN(bits, group))
    )
    for part in grouped(weight, method.columns_per_group(weight.shape[1])):
        assert no_larger(
            found[:, part].sum(1), plain[:, part].sum(1), (weight[:, part].double().abs() ** method.p).sum(1)
        )


@settings(max_examples=40, deadline=None)
@given(matrices(scales=st.integers(-2, 2)), BITS, SIZES, st.booleans(), st.integers(1, 80), st.integers(0, 2**31))
def test_clipping_by_awq_is_no_farther_off_than_rounding_in_the_outputs_of_a_group(
    weight, bits, group, symmetric, tokens, seed
):
    seen = inputs_of(weight.shape[1], tokens, seed)
    found, plain = (
        made.compress(weight, seen).weight - weight
        for made in (AWQ(bits, group, symmetric), RTN(bits, group, symmetric))
    )
    for part in grouped(weight, AWQ(bits, group).columns_per_group(weight.shape[1])):
        assert no_larger(
            cost(found[:, part], seen.mean[part, part]),
            cost(plain[:, part], seen.mean[part, part]),
            cost(weight[:, part], seen.mean[part, part]),
        )


@settings(max_examples=40, deadline=None)
@given(matrices(scales=st.integers(-2, 2)), BITS, SIZES, st.booleans(), st.integers(1, 80), st.integers(0, 2**31))
def test_the_scales_of_awq_are_no_worse_than_none(weight, bits, group, symmetric, tokens, seed):
    seen, method, columns = (
        inputs_of(weight.shape[1], tokens, seed),
        AWQ(bits, group, symmetric, grid=5),
        torch.arange(weight.shape[1]),
    )
    scales, _, tried = search([(weight, columns, seen.mean)], len(columns), method)

    def rounded(weight):
        parts = [weight[:, part] for part in grouped(weight, method.columns_per_group(len(columns)))]
        grids = [
            span(part.amin(1, keepdim=True).clamp(max=0), part.amax(1, keepdim=True).clamp(min=0), bits, symmetric)
            for part in parts
        ]
        return torch.cat([values(codes(part, *grid, bits), *grid) for part, grid in zip(parts, grids)], 1)

    found, none = (
        cost(rounded(weight * by) / by - weight, seen.mean).sum() for by in (scales, torch.ones(len(columns)))
    )
    whole = cost(weight, seen.mean).sum()
    assert no_larger(found, none, whole) and abs(float(found) - min(tried)) <= 1e-3 * float(found) + 1e-6 * float(whole)


@settings(max_examples=25, deadline=None)
@given(
    matrices(scales=st.integers(-2, 2)), BITS, SIZES, st.sampled_from(EVEN), st.integers(1, 80), st.integers(0, 2**31)
)
def test_quantease_is_no_farther_off_than_rounding_and_gptq_in_the_outputs_of_a_row(
    weight, bits, group, grid, tokens, seed
):
    seen, options = (
        inputs_of(weight.shape[1], tokens, seed),
        {"symmetric": grid[0], "zero_point": "real" if grid[1:] else "integer"},
    )
    moments = seen.mean
    moments.diagonal().add_(QuantEase().percdamp * moments.diagonal().mean() + 1e-30)
    found, *others = (
        cost(made(bits, group, **options).compress(weight, seen).weight - weight, moments)
        for made in (QuantEase, GPTQ, RTN)
    )
    for other in others:
        assert no_larger(found, other, cost(weight, moments))


@settings(max_examples=100, deadline=None)
@given(matrices(), BITS, SIZES, st.sampled_from(EVEN))
def test_the_last_group_is_rounded_as_if_it_stood_alone(weight, bits, group, grid):
    size = RTN(bits, group).columns_per_group(weight.shape[1])
    last, whole = grouped(weight, size)[-1], RTN(bits, group, *grid).compress(weight)
    alone = RTN(bits, 0, *grid).compress(weight[:, last].contiguous())
    assert (
        torch.equal(whole.weight[:, last], alone.weight)
        and torch.equal(whole.codes[:, last], alone.codes)
        and torch.equal(whole.scales[:, -1:], alone.scales)
    )


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(LEVELS)), st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50))
def test_no_level_is_nearer(name, values):
    values = torch.tensor(values, dtype=torch.float32)
    table = LEVELS[name].double()
    distance = (values.double()[:, None] - table).abs().nan_to_num(torch.inf)
    assert torch.allclose(
        distance.gather(1, nearest(values, name).long()[:, None])[:, 0], distance.amin(1), rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda bits: RTN(bits, 32),
        lambda bits: RTN(bits, 0, True),
        Codebook,
        lambda bits: Codebook(bits, "tensor"),
        lambda bits: GPTQ(bits, 32),
        WeightedCodebook,
    ],
)
def test_more_bits_never_hurt(make):
    generator = torch.Generator().manual_seed(0)
    weight, seen = torch.randn(16, 96, generator=generator), make(4).statistic
    if seen:
        seen = seen(96)
        seen.update(torch.randn(200, 96, generator=generator))
    errors = [float((make(bits).compress(weight, seen).weight - weight).square().sum()) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 500


ON_MODELS = [
    RTN(4, 24),
    Float("fp8_e4m3", "tensor"),
    Float("mxfp6_e3m2"),
    Float("mxfp4", scale="mse"),
    Float("nvfp4"),
    NF4(24),
    NF4(double=True),
    Codebook(3),
    Codebook(4, "tensor"),
    WeightedCodebook(3),
    GPTQ(4, 24),
    GPTQ(4, 24, levels="nf4"),
    GPTQ(4, 16, levels="nvfp4"),
]


@cache
def subject_of(name):
    return Subject(tiny(name), provenance=Provenance(name=f"tiny {name}"))


def text():
    return Calibration(torch.randint(0, 128, (4, 24), generator=torch.Generator().manual_seed(0)), None, 0, "tiny")


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gpt_oss"])  # transposed matrices, stacks of experts, both
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
        assert all(
            torch.equal(tensor.view(torch.uint8), again.packed[key].tensors()[field].view(torch.uint8))
            for field, tensor in packed.tensors().items()
        )


FED = [
    WeightedCodebook(),
    GPTQ(),
    GPTQ(levels="nf4"),
    QuantEase(),
    AWQ(),
    AWQ(grid=0),
    AutoRound(steps=2),
    AutoRound(steps=2, quantized_inputs=False),
    Int8("static"),
]


@pytest.mark.parametrize("damage", [float("nan"), 3e38], ids=["NaN", "beyond float32"])
@pytest.mark.parametrize("method", FED, ids=str)
def test_damaged_activations_are_named(method, damage):
    broken = subject_of("llama").copy()
    broken.model.model.layers[1].input_layernorm.weight.data.fill_(
        damage
    )  # what follows reads it; what precedes is sound
    with pytest.raises(CompressLabError, match=r"layers\.1\.") as caught:
        method.apply(broken, text())
    assert "activations hold NaN or infinity" in str(caught.value)


@pytest.mark.parametrize("token", [0, 23])  # in the text; the first is not among the tokens that a model is traced with
@pytest.mark.parametrize("method", FED, ids=str)
def test_damage_that_one_token_brings_is_named(method, token):
    broken = subject_of("llama").copy()
    broken.model.model.embed_tokens.weight.data[token, 1] = float("nan")
    with pytest.raises(CompressLabError, match=r"layers\.0\.self_attn"):
        method.apply(broken, text())


def test_autoround_is_no_farther_off_than_rounding_in_what_a_block_puts_out():
    original, given = subject_of("llama"), text().tokens

    def outputs(subject):
        found = []
        hook = subject.model.model.layers[0].register_forward_hook(
            lambda module, inputs, output: found.append(output if isinstance(output, torch.Tensor) else output[0])
        )
        with torch.no_grad():
            subject.model(given)
        hook.remove()
        return found[0].double()

    for bits, group, symmetric, rate in (
        (2, 24, False, None),
        (3, 0, True, 1.0),
    ):  # the second rate overshoots: the start must be kept
        method = AutoRound(bits, group, symmetric, steps=4, lr=rate, calibration_dtype="float32")
        small, plain = (
            Recipe.of(method.on("re:layers\\.0\\.")).apply(original, text()),
            RTN(bits, group, symmetric).apply(original),
        )
        wanted, found, nearest = (outputs(subject) for subject in (original, small, plain))
        assert (found - wanted).square().mean() <= (nearest - wanted).square().mean() * (1 + 1e-4)
        for linear in linears(small.model):
            if linear.key not in small.packed:
                continue
            packed = small.packed[linear.key]
            level, zeros = packed.integers()
            columns = torch.arange(packed.columns) // packed.group_size
            again = codes(linear.weight.data, packed.scales.float()[:, columns], zeros.float()[:, columns], bits)
            assert torch.equal(packed.dequantize(), linear.weight.data) and torch.equal(again.to(torch.uint8), level)


@pytest.mark.parametrize("damage", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", [RTN(), HQQ(), Float("nvfp4"), NF4(), Codebook(), *FED], ids=str)
def test_damage_is_named(method, damage):
    broken = subject_of("llama").copy()
    victim = next(linear for linear in linears(broken.model) if linear.name.endswith("1.mlp.down_proj"))
    victim.weight.data[3, 5] = damage
    with pytest.raises(CompressLabError, match=r"1\.mlp\.down_proj") as caught:
        method.apply(broken, text())
    assert "NaN or infinity" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(any))
def test_huffman_words_form_a_prefix_code_no_longer_than_codes_of_one_width(counts):
    lengths, used = huffman_lengths(counts), sum(map(bool, counts))
    assert all((length > 0) == (count > 0) for length, count in zip(lengths, counts))
    assert sum(2.0**-length for length in lengths if length) == (1 if used > 1 else 0.5)
    assert sum(map(int.__mul__, counts, lengths)) <= sum(counts) * max(1, (used - 1).bit_length())


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.scale == "power"])
def test_torchao_gives_the_same_bits(name):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    kinds = {
        "e2m1": getattr(torch, "float4_e2m1fn_x2", None),
        "e4m3": torch.float8_e4m3fn,
        "e5m2": torch.float8_e5m2,
        "e2m3": "fp6_e2m3",
        "e3m2": "fp6_e3m2",
    }
    generator = torch.Generator().manual_seed(0)
    weight = torch.cat(
        [
            torch.randn(64, 128, generator=generator) * torch.logspace(-20, 20, 64)[:, None],
            torch.randint(-64, 65, (64, 128), generator=generator) / 8,
        ]
    )
    scales, data = mx.to_mx(weight, kinds[FORMATS[name].levels], 32)
    data, ours = data.view(torch.uint8).reshape(128, -1), Float(name).compress(weight)
    if name == "mxfp4":
        data = torch.stack([data & 15, data >> 4], 2).flatten(1)
    assert torch.equal(scales.view(torch.uint8).reshape(128, -1), ours.scales.view(torch.uint8)) and torch.equal(
        data, ours.codes
    )


def heavy_weights():
    "A matrix whose groups differ by orders of magnitude, with outliers, zeros and ties, (256, 512)."
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 512, generator=generator) * 0.02 * torch.logspace(-3.5, 0, 256)[:, None]
    weight[torch.rand(weight.shape, generator=generator) < 0.001] *= 20
    weight[-32:] = (weight[-32:] * 400).round() / 400
    return weight.masked_fill(torch.rand(weight.shape, generator=generator) < 0.05, 0)


def test_nvfp4_is_what_the_format_defines():
    "By arithmetic of another library: a float32 factor for the tensor, E4M3 for 16 weights, E2M1 for each."
    ml_dtypes, weight = pytest.importorskip("ml_dtypes"), heavy_weights()
    groups, factor = weight.numpy().reshape(256, 32, 16), np.float32(weight.abs().max()) / np.float32(6 * 448)
    scales = (np.abs(groups).max(2) / np.float32(6) / factor).astype(ml_dtypes.float8_e4m3fn)
    step = scales.astype(np.float32) * factor
    codes = (groups / step[..., None]).astype(ml_dtypes.float4_e2m1fn)
    ours = Float("nvfp4").compress(weight)
    assert step.all() and (scales.astype(np.float32) < 2**-6).sum() > 10, "some scales are subnormal"
    assert (ours.scales.view(torch.uint8).numpy() == scales.view(np.uint8)).all() and (
        ours.codes.numpy() == codes.view(np.uint8).reshape(256, 512)
    ).all()
    assert (ours.weight.numpy() == (codes.astype(np.float32) * step[..., None]).reshape(256, 512)).all() and ours.outer[
        0, 0
    ] == float(factor)


def test_nvfp4_is_what_compressed_tensors_makes():
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    weight = heavy_weights()
    form, groups = (
        QuantizationArgs(
            num_bits=4,
            type="float",
            strategy="tensor_group",
            group_size=16,
            symmetric=True,
            dynamic=False,
            scale_dtype=torch.float8_e4m3fn,
        ),
        weight.view(256, 32, 16),
    )
    factor = generate_gparam(weight.min(), weight.max())
    scales, _ = calculate_qparams(groups.amin(2), groups.amax(2), form, factor)
    levels = quantize(weight, scales, None, form, global_scale=factor)
    ours = Float("nvfp4").compress(weight)
    assert torch.equal(ours.scales.float(), scales.float()) and torch.equal(LEVELS["e2m1"][ours.codes.long()], levels)
    torch.testing.assert_close(
        ours.weight, dequantize(levels, scales, None, form, global_scale=factor), rtol=2**-21, atol=0
    )  # it stores the factor's reciprocal
