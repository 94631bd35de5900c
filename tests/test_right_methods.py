"""What no method may do.

Take silence for information, undo what was done before, touch the caller's random numbers, or trip over a number.
"""

import dataclasses
import random
import typing

import numpy as np
import pytest
import torch

import compress_lab as cl
from compress_lab.compress.input_statistics import Gram
from compress_lab.compress.layerwise import by_weights
from compress_lab.compress.recipe import Recipe, methods
from compress_lab.core.errors import CompressLabError
from compress_lab.models.forward import inputs
from compress_lab.models.layers import linears, text_linears, towers
from compress_lab.models.tiny import tiny
from compress_lab.prune.masks import lowest

QUICK = {  # settings that make a method quick, on rows of 24 tokens
    "AutoRound": {"steps": 2},
    "QAT": {"steps": 2},
    "Recover": {"steps": 2},
    "Distill": {"steps": 2},
    "GKD": {"steps": 2, "prompt": 8},
    "Gradual": {"steps": 4},
    "ScaleTune": {"steps": 2},
    "Int8": {"activations": "static"},
    "Blocks": {"count": 1},
}
AFTER = {  # what has to come before
    **dict.fromkeys(("Recover", "Refit", "Distill", "GKD"), cl.Magnitude(0.5)),
    **dict.fromkeys(("ScaleFit", "ScaleTune", "BiasCorrection"), cl.RTN(4, 16)),
}
KINDS = {name: kind for name, kind in methods().items() if kind.__module__.startswith("compress_lab.")}


def random_rows(model, length=24):
    return cl.calibration(inputs(model, batch=4, length=length)["input_ids"])


def quick(name):
    return KINDS[name](**QUICK.get(name, {}))


def applied(method, subject, text, original):
    "The method after what it needs, on those linears that have what it needs."
    step = method.on("*.q_proj", "*.k_proj", "*.v_proj") if type(method).__name__ == "BiasCorrection" else method
    return Recipe.of(step).apply(subject, text, **({"original": original} if "original" in method.needs else {}))


@pytest.fixture(scope="module")
def plain():
    "A model with biases, its rows, and the same model pruned and rounded."
    model = tiny("qwen2")
    subject = cl.Subject(model)
    return subject, random_rows(model), {method: method.apply(subject) for method in set(AFTER.values())}


# ---- silence is no information

FED = "model.layers.1.self_attn.o_proj"
WEIGHTS_ONLY = [
    (cl.Wanda(0.5), cl.Magnitude(0.5)),
    (cl.Wanda("2:4"), cl.Magnitude("2:4")),
    (cl.ADMM(0.5), cl.Magnitude(0.5)),
    (cl.ADMM("2:4"), cl.Magnitude("2:4")),
    (cl.SparseGPT(0.5), cl.Magnitude(0.5, scope="layer")),
    (cl.Saliency(0.5), cl.Magnitude(0.5, scope="layer")),
    (cl.Saliency(0.5, "snip", "row"), cl.Magnitude(0.5)),
    (cl.Saliency(0.5, scope="model"), cl.Magnitude(0.5, scope="layer")),
    (cl.SVDLLM(0.5), cl.SVD(0.5)),
    (cl.ASVD(0.5), cl.SVD(0.5)),
    (cl.SVDLLM(0.5, "energy"), None),
    (cl.RIA(0.5), None),
    (cl.RIA("2:4", permute=True), None),
    (cl.GPTQ(4, 16, shrinks=0), cl.RTN(4, 16)),
    (cl.QuantEase(4, 16, shrinks=0), cl.RTN(4, 16)),
    (cl.AWQ(4, 16), cl.RTN(4, 16)),
    (cl.AutoRound(4, 16, steps=2), cl.RTN(4, 16)),
    (cl.WeightedCodebook(4), cl.Codebook(4)),
    (cl.Int8("static"), cl.Int8()),
    (cl.Int8("static", "entropy"), cl.Int8()),
    (cl.SmoothQuant(norms_only=False), None),
    (cl.Heads(0.5), None),
    (cl.Hidden(0.5, "least_squares"), None),
]


def dead_model():
    "A model in which one linear is fed zeros, because what comes before it is zero."
    model = tiny("llama")
    model.model.layers[1].self_attn.v_proj.weight.data.zero_()
    return cl.Subject(model)


def figures(report):
    return [value for module in report.values() for key, value in module.items() if isinstance(value, float)]


@pytest.mark.parametrize("method, alone", WEIGHTS_ONLY, ids=lambda value: str(value).replace(" ", ""))
def test_weights_decide_where_a_linear_is_fed_zeros(method, alone):
    subject = dead_model()
    found = method.apply(subject, random_rows(subject.model))
    report = found.history[-1]["modules"]
    assert all(np.isfinite(figures(report)))
    for tensor in found.model.state_dict().values():
        assert tensor.isfinite().all()
    if FED in report:
        assert any("zero" in note or "nothing was learned" in note for note in report[FED]["notes"])
    if alone is None or FED not in report:
        return
    wanted = alone.apply(subject).model
    if type(method).__name__ in ("SVDLLM", "ASVD"):
        ours, theirs = (model.get_submodule(FED) for model in (found.model, wanted))
        torch.testing.assert_close(
            ours.second.weight @ ours.first.weight, theirs.second.weight @ theirs.first.weight, rtol=1e-3, atol=1e-5
        )
    else:
        torch.testing.assert_close(
            found.model.get_submodule(FED).weight, wanted.get_submodule(FED).weight, rtol=0, atol=0
        )


@pytest.mark.parametrize(
    "method",
    [
        cl.Wanda(0.5),
        cl.RIA(0.5),
        cl.SparseGPT(0.5),
        cl.ADMM(0.5),
        cl.Saliency(0.5),
        cl.GPTQ(4, 16),
        cl.WeightedCodebook(3),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "name", ["llama4_text", "mixtral"]
)  # experts that are fed zeros, experts that no token is sent to
def test_experts_without_tokens_lose_by_their_weights(name, method):
    model = tiny(name, num_local_experts=8)
    text = cl.calibration(random_rows(model, length=2).tokens[:1])
    found = method.apply(cl.Subject(model), text)
    stack = next(linear for linear in linears(model) if linear.kind == "experts")
    report = found.history[-1]["modules"]
    assert all(np.isfinite(figures(report))) and report[stack.name]["notes"]
    after = next(linear for linear in linears(found.model) if linear.name == stack.name)
    if not isinstance(method.__dict__.get("sparsity"), float):
        return
    for before, pruned in zip(stack.matrices, after.matrices):  # by position, half of the energy would go
        gone = pruned == 0
        assert gone.float().mean() > 0.49 and before[gone].square().sum() < 0.35 * before.square().sum()


def test_a_stack_with_one_dead_expert_has_the_error_of_the_others():
    model = tiny("mixtral")
    stack = next(linear for linear in linears(model) if linear.kind == "experts")
    stack.matrices[0].zero_()
    report = cl.GPTQ(4, 16).apply(cl.Subject(model), random_rows(model)).history[-1]["modules"]
    assert 0 < report[stack.name]["output_error"] < 1


def test_dead_columns_go_first_and_the_smallest_of_them():
    weight, seen = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), {}
    for method in (cl.Wanda(0.5), cl.RIA(0.5), cl.ADMM(0.5)):
        seen[method] = method.statistic(32)
        seen[method].update(torch.randn(64, 32, generator=torch.Generator().manual_seed(1)) * (torch.arange(32) >= 24))
        gone = by_weights(method, weight, seen[method]).weight == 0
        assert not gone[:, 24:].any() and gone.sum() == 128
        if type(method).__name__ != "RIA":
            assert torch.equal(gone[:, :24], lowest(weight[:, :24].abs(), 16 / 24))
        else:
            assert torch.equal(gone[:, :24], lowest(method.score(weight, None)[:, :24], 128 / 192, "layer"))


def test_what_was_not_repaired_says_so():
    subject = dead_model()
    text = random_rows(subject.model)
    for start, repair in (cl.Magnitude(0.5), cl.Refit()), (cl.RTN(4, 16), cl.ScaleFit()):
        before = start.apply(subject)
        after = repair.apply(before, text, original=subject)
        assert torch.equal(before.model.get_submodule(FED).weight, after.model.get_submodule(FED).weight)
        assert after.history[-1]["modules"][FED]["notes"] == ["all its inputs were zero: left as it was"]


# ---- what was done stays done

QUANTIZERS = [cl.RTN(4, 16), cl.NF4(16), cl.Codebook(3), cl.Int8(), cl.Float("nvfp4")]


def consistent(subject):
    "Whether integers are exactly what the weights are, and the history names what is there."
    places = dict(subject.model.named_parameters())
    assert all(torch.equal(packed.dequantize(), places[key]) for key, packed in subject.packed.items())
    quantized = any(
        KINDS[entry["method"]].quantizes and KINDS[entry["method"]].changes_weights for entry in subject.history
    )
    return quantized == bool(subject.packed)


def silenced(subject, monkeypatch):
    "A copy whose model cannot run."
    copy = subject.copy()

    def run(*args, **more):
        raise AssertionError("a forward pass before the recipe was refused")

    monkeypatch.setattr(type(copy.model), "forward", run)
    return copy


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_lost_that_was_rounded_before(name, plain, monkeypatch):
    subject, text, _ = plain
    method = quick(name)
    for first in QUANTIZERS[:1] if method.keeps_codes or not method.changes_weights else QUANTIZERS:
        rounded = first.apply(subject)
        if method.keeps_codes or not method.changes_weights:
            found = applied(method, rounded, text, subject)
            assert (
                consistent(found)
                and found.packed.keys() == rounded.packed.keys()
                and found.name.startswith(rounded.name)
            )
            continue
        with monkeypatch.context() as patch:
            wordless = silenced(rounded, patch)
            with pytest.raises(CompressLabError, match="quantize") as caught:
                applied(method, wordless, text, subject)
            with pytest.raises(CompressLabError, match="quantize") as planned:
                (first >> method).apply(silenced(subject, patch), text, original=subject)
        if not method.quantizes:
            assert f"{method} >> {first}" in str(planned.value) and type(method).__name__ in str(caught.value)
        elif isinstance(first, cl.Int8):
            assert f"{method} >> {first}" in str(planned.value)


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"Refit", "ScaleFit", "ScaleTune", "BiasCorrection"}))
def test_the_order_that_is_named_works_and_zeros_stay(name, plain):
    subject, text, made = plain
    pruned, method = made[cl.Magnitude(0.5)], quick(name)
    if method.fills_zeros:
        with pytest.raises(CompressLabError, match="fill its zeros"):
            applied(method, pruned, text, subject)
        pruned = subject if name not in AFTER else pruned
    found = applied(method, pruned, text, subject)
    if not method.quantizes:
        found = cl.RTN(4, 16).apply(found)
    assert consistent(found) or not method.changes_weights
    before, after = (dict(each.model.named_parameters()) for each in (pruned, found))
    if pruned is subject or method.whole and name not in ("Distill", "GKD"):
        return
    for linear in text_linears(pruned.model):
        assert (after[linear.key][before[linear.key] == 0] == 0).all(), linear.name


def test_inputs_are_rounded_beside_weights_of_four_bits(plain, tmp_path):
    subject, text, _ = plain
    for first in cl.GPTQ(4, 16), cl.NF4(16):
        four, both = first.apply(subject, text), (first >> cl.Int8("static")).apply(subject, text)
        assert len(both.input_quantizers) == len(both.packed) and all(
            torch.equal(packed.codes, both.packed[key].codes) for key, packed in four.packed.items()
        )
        again = cl.load(both.save(tmp_path / type(first).__name__))
        assert again.fingerprint == both.fingerprint


def test_scales_are_fitted_to_what_codes_stand_for(plain):
    subject, text, _ = plain
    for first in cl.RTN(4, 16), cl.RTN(4, 16, symmetric=True), cl.HQQ(4, 16), cl.NF4(16), cl.Float("fp8_e4m3"):
        report = (first >> cl.ScaleFit(calibration_dtype="float32")).apply(subject, text).history[-1]["modules"]
        assert all(module["output_error"] <= module["output_error_before"] * 1.001 for module in report.values()), first
    for first in cl.NF4(16, double=True), cl.Float("nvfp4"), cl.Codebook(4):
        with pytest.raises(CompressLabError, match="The format fixes"):
            (first >> cl.ScaleFit()).apply(subject, text)


# ---- the caller's random numbers


def drawn():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def seeded(run=lambda: None):
    "What the caller draws after it has set its seeds and run something."
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    run()
    return drawn()


@pytest.mark.parametrize("name", KINDS)
def test_no_method_touches_the_callers_random_numbers_or_goes_by_them(name, plain):
    subject, text, made = plain
    start, method, found = made[AFTER[name]] if name in AFTER else subject, quick(name), []

    def run():
        found.append(applied(method, start, text, subject).fingerprint)

    assert seeded(run) == seeded()
    torch.manual_seed(8)
    np.random.seed(8)
    random.seed(8)
    run()
    assert found[0] == found[1]


def test_no_helper_touches_the_callers_random_numbers(plain):
    subject, text, _ = plain
    from compress_lab.train.trainer import learn

    def taught():
        learn(subject.copy().model, text.tokens, steps=2)

    def student():
        cl.student(subject, blocks=2, weights="fresh"), cl.student(subject, neurons=48, calibration=text)

    for run in taught, student, lambda: cl.written(subject, text, 8), lambda: cl.students(subject, 100_000, steps=2):
        assert seeded(run) == seeded()


# ---- numbers

VALUES = (-1, 0, 10**9, 10**30, float("nan"), float("inf"), 10**400, True, "4", None)


def numbers(kind):
    "Names of its settings that are numbers."
    hints = typing.get_type_hints(kind)
    return [
        field.name
        for field in dataclasses.fields(kind)
        if {hints[field.name], *typing.get_args(hints[field.name])} & {int, float}
    ]


@pytest.mark.parametrize("name", [name for name in KINDS if numbers(KINDS[name])])
def test_every_number_is_refused_by_name_or_works(name, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESS_LAB_CACHE", str(tmp_path))
    model = tiny("llama", num_hidden_layers=1)
    subject, text = cl.Subject(model), random_rows(model)
    start = AFTER[name].apply(subject) if name in AFTER else subject
    for setting in numbers(KINDS[name]):
        refused = 0
        for value in VALUES:
            try:
                method = KINDS[name](**QUICK.get(name, {}) | {setting: value})
            except CompressLabError:
                refused += 1
                continue
            if value == 0 and issubclass(KINDS[name], cl.Distill):
                continue  # a training each
            try:
                found = applied(method, start, text, subject)
            except CompressLabError:
                continue
            assert all(tensor.isfinite().all() for tensor in found.model.state_dict().values()), (setting, value)
        assert refused >= 4, setting


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 0.5, "4", True, None])
def test_seeds_are_refused(seed, plain):
    subject, text, _ = plain
    for run in (
        lambda: cl.Random().apply(subject, seed=seed),
        lambda: cl.Random(seed=seed),
        lambda: cl.Rotate(seed=seed),
        lambda: cl.Codebook(seed=seed),
        lambda: cl.student(subject, blocks=2, weights="fresh", seed=seed),
        lambda: cl.written(subject, text, 8, seed=seed),
    ):
        with pytest.raises(CompressLabError):
            run()


def test_a_group_longer_than_the_row_is_the_row(plain):
    subject, text, _ = plain
    for kind in (cl.RTN, cl.GPTQ, cl.HQQ, cl.NF4, cl.AWQ, cl.AutoRound, cl.QAT):
        long, row = (kind(group_size=size, **QUICK.get(kind.__name__, {})).apply(subject, text) for size in (10**9, 0))
        assert long.fingerprint == row.fingerprint


# ---- weights at the end of what a float holds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "method",
    [
        cl.RTN(4, 16),
        cl.RTN(4, 16, symmetric=True),
        cl.RTN(2, 0, symmetric=True),
        cl.HQQ(4, 16),
        cl.NF4(16),
        cl.NF4(16, double=True),
        cl.Float("mxfp4"),
        cl.Float("nvfp4"),
        cl.Float("fp8_e5m2"),
        cl.Codebook(4),
        cl.Int8(),
        cl.Magnitude(0.5),
        cl.SVD(0.5),
    ],
    ids=str,
)
def test_large_and_tiny_weights_are_right_or_refused_by_name(method, dtype):
    largest, tiniest = torch.finfo(dtype).max, float(torch.finfo(dtype).smallest_normal)
    for size in (0.99 * largest, 0.6 * largest, 0.4 * largest, 0.1 * largest, tiniest, tiniest / 64):
        model = tiny("llama", num_hidden_layers=1).to(dtype)
        victim = next(linear for linear in linears(model) if linear.name.endswith("up_proj"))
        victim.weight.data[:] = (victim.weight.data.double() / victim.weight.data.double().abs().max() * size).to(dtype)
        victim.weight.data[3] = 0
        before = victim.weight.data.double()
        try:
            found = method.apply(cl.Subject(model))
        except CompressLabError as error:
            assert size > largest / 5 and "up_proj" in str(error)
            continue
        report = found.history[-1]["modules"][victim.name]
        assert np.isfinite(report["weight_error"])
        if isinstance(method, cl.SVD):
            continue
        after = found.model.get_submodule(victim.name).weight.data.double()
        assert after.isfinite().all() and not after[3].any()
        if size > tiniest:
            assert (after - before).norm() < 0.8 * before.norm(), size


# ---- towers


def seeing():
    import transformers

    text = dict(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision),
        text_config=transformers.LlamaConfig(**text),
        image_token_index=127,
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize(
    "method",
    [
        cl.RTN(4, 16),
        cl.GPTQ(4, 16),
        cl.Wanda(0.5),
        cl.SVD(0.5),
        cl.Neurons(0.5),
        cl.Int8(),
        cl.SmoothQuant(),
        cl.Distill(steps=2),
    ],
    ids=str,
)
def test_towers_are_left_alone_and_the_history_says_so(method):
    model = seeing()
    text = type("T", (), {"tokens": inputs(model, batch=4, length=24)["input_ids"] % 100, "key": "t"})()
    subject = cl.Subject(model)
    start = cl.Magnitude(0.5).apply(subject) if isinstance(method, cl.Distill) else subject
    found = method.apply(start, text, **({"original": subject} if isinstance(method, cl.Distill) else {}))
    assert found.history[-1]["left_alone"] == {"model.vision_tower": 12} and not any(
        "vision" in name for name in found.history[-1]["modules"]
    )
    after = found.model.state_dict()
    for name, tensor in model.state_dict().items():
        if "vision" in name:
            assert torch.equal(after[name], tensor), name


def test_a_tower_that_is_a_target_is_judged_by_its_weights():
    model = seeing()
    text = type("T", (), {"tokens": inputs(model, batch=4, length=24)["input_ids"] % 100, "key": "t"})()
    found = cl.Wanda(0.5).on("*vision*layers*").apply(cl.Subject(model), text)
    wanted = cl.Magnitude(0.5).on("*vision*layers*").apply(cl.Subject(model))
    assert "left_alone" not in found.history[-1] and all(
        module["notes"] for module in found.history[-1]["modules"].values()
    )
    assert all(map(torch.equal, found.model.state_dict().values(), wanted.model.state_dict().values()))
    with pytest.raises(CompressLabError, match="more than text"):
        cl.Rotate().apply(cl.Subject(model), text)  # images come into the stream that it turns


def test_text_models_have_no_towers():
    for model in tiny("llama"), tiny("gpt2"), tiny("mixtral"), tiny("bert", head="masked_lm"):
        assert towers(model) == []


# ---- what a calibrated method reads


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if "calibration" in quick(name).needs])
def test_rows_of_another_model_are_refused_before_anything_runs(name, plain, monkeypatch):
    subject, text, made = plain
    start = made[AFTER[name]] if name in AFTER else subject
    for tokens in (torch.full((4, 24), 10_000), torch.full((4, 24), -1), torch.zeros(4, 4096, dtype=torch.long)):
        other = type("T", (), {"tokens": tokens, "key": "t"})()
        with monkeypatch.context() as patch, pytest.raises(CompressLabError, match="vocabulary|positions"):
            applied(quick(name), silenced(start, patch), other, subject)


# ---- recipes


@pytest.mark.parametrize(
    "pattern",
    [
        "re:(a|a)*$",
        "re:(a|aa)+$",
        "re:((a{99}){99}){99}{99}",
        "re:a{1000}",
        "re:[",
        "re:" + "(" * 400,
        "*" * 501,
        "re:(?R)",
    ],
)
def test_patterns_that_do_not_end_are_refused(pattern):
    model = torch.nn.Sequential()
    model.add_module("a" * 60 + "b", torch.nn.Sequential(torch.nn.Linear(4, 4)))
    for step in (cl.Magnitude(0.5).on(pattern), cl.Magnitude(0.5).on(ignore=pattern), cl.Magnitude({pattern: 0.5})):
        with pytest.raises(CompressLabError):
            Recipe.of(step).apply(cl.Subject(model))


@pytest.mark.parametrize(
    "data",
    [
        None,
        5,
        {},
        [[]],
        [{}],
        [None],
        {"method": 5},
        {"method": "RTN", "bits": {}},
        {"method": "RTN", "bits": [4]},
        {"method": "RTN", "targets": {}},
        {"method": "RTN", "targets": [None]},
        {"method": "RTN", "ignore": [[]]},
        {"method": "RTN", 4: 4},
        {"method": "Wanda", "sparsity": {"*": {}}},
        {"method": "Wanda", "sparsity": "1:" + "9" * 5000},
        {"method": "Wanda", "sparsity": True},
        {"method": "RTN", "bits": 10**5000},
    ],
)
def test_odd_recipes_are_refused(data):
    with pytest.raises(CompressLabError):
        Recipe.from_dict(data)


def test_recipe_files_are_checked(tmp_path, monkeypatch):
    import os

    (tmp_path / "latin.yaml").write_bytes("[RTN]  # für".encode("latin-1"))
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for name in ("latin.yaml", "folder.yaml", "pipe.yaml", "loop.yaml", "missing.yaml", "nul\0.yaml"):
        with pytest.raises(CompressLabError):
            Recipe.from_yaml(tmp_path / name)
    (tmp_path / "good.yaml").write_text("[{method: RTN, bits: 3}]  # für später, ☺", encoding="utf-8")
    monkeypatch.setattr("locale.getpreferredencoding", lambda *args: "ascii")
    assert Recipe.from_yaml(tmp_path / "good.yaml") == Recipe.of(cl.RTN(3))


def test_second_moments_are_informative_only_with_inputs():
    seen = Gram(4)
    assert not seen.informative
    seen.update(torch.zeros(3, 4))
    assert not seen.informative and seen.rows == 3
    seen.update(torch.eye(4))
    assert seen.informative


# ---- block by block from files


@pytest.mark.parametrize("name", KINDS)
def test_a_method_streams_bit_for_bit_or_is_refused_by_name(name, plain, tmp_path):
    subject, rows, _ = plain
    subject.save(tmp_path / "model")
    step = quick(name).on("*.q_proj", "*.k_proj", "*.v_proj") if name == "BiasCorrection" else Recipe.of(quick(name))
    recipe = AFTER[name] >> step if name in AFTER else Recipe.of(step)
    original = cl.load(tmp_path / "model")
    more = {"original": original} if "original" in KINDS[name].needs else {}
    if quick(name).at_once:
        with pytest.raises(CompressLabError, match=f"{name} cannot be applied block by block"):
            cl.stream(recipe, cl.load(tmp_path / "model"), tmp_path / "small", rows, **more)
        return
    folder = cl.stream(recipe, cl.load(tmp_path / "model"), tmp_path / "small", rows, **more)
    streamed, whole = cl.load(folder), recipe.apply(original, rows, **more)
    assert streamed.fingerprint == whole.fingerprint
    assert [entry["touched"] for entry in streamed.history] == [entry["touched"] for entry in whole.history]
    assert {path.name for path in tmp_path.iterdir()} == {"model", "small"}
