"""Properties of intervals, tests and verdicts that must hold for any data."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from compress_lab.core.errors import CompressLabError
from compress_lab.evaluate.differences import margin_of, verdict
from compress_lab.evaluate.metrics import Metric, show
from compress_lab.evaluate.probe import Probe
from compress_lab.evaluate.records import Records
from compress_lab.evaluate.statistics import (
    FEWEST,
    Pairs,
    against_bound,
    detectable,
    flips,
    holm,
    interval,
    intervals,
    mcnemar,
    non_inferior,
    over_seeds,
    paired,
    paired_interval,
    paired_ratio,
    power,
    ratio_score,
    score,
    share,
)

PERPLEXITY = Metric("perplexity", better="lower", numerator="nll", denominator="tokens", transform="exp", diverges=True)


@dataclass(frozen=True)
class Losses(Probe):
    "A probe whose records are given."

    metrics: ClassVar = (PERPLEXITY,)

    def measure(self, subject, original=None, *, seed=0):
        raise NotImplementedError


def mean(totals):
    return totals[..., 0] / totals[..., 1]


def table(rows, clusters, scale=1.0, seed=0):
    random = np.random.default_rng(seed)
    cluster = np.concatenate([np.arange(min(clusters, rows)), random.integers(0, clusters, max(0, rows - clusters))])
    tokens = random.integers(1, 500, rows)
    return pd.DataFrame(
        {
            "item": np.arange(rows),
            "cluster": cluster,
            "tokens": tokens,
            "nll": scale * tokens * random.gamma(3, 1, rows),
        }
    )


def recorded(frame):
    return Records(frame, Losses(), "f")


few_or_many = st.tuples(st.integers(1, 60), st.integers(1, 30), st.integers(0, 10_000))


@settings(max_examples=40, deadline=None)
@given(few_or_many)
def test_a_model_differs_from_itself_by_exactly_nothing(sizes):
    rows, clusters, seed = sizes
    frame = table(rows, clusters, seed=seed)
    found = Losses().difference(recorded(frame), recorded(frame.sample(frac=1, random_state=seed)))
    assert found.value == 0 and found.interval == (0, 0) and found.ratio == 1 and found.ratio_interval == (1, 1)
    assert found.verdict == "no difference"


@settings(max_examples=40, deadline=None)
@given(few_or_many, st.floats(0.2, 5))
def test_the_interval_holds_the_value_and_turns_round_with_the_arms(sizes, factor):
    rows, clusters, seed = sizes
    before, after = table(rows, clusters, seed=seed), table(rows, clusters, seed=seed)
    after["nll"] *= factor * np.random.default_rng(seed).uniform(0.9, 1.1, rows)
    forth, back = (
        Losses().difference(recorded(before), recorded(after)),
        Losses().difference(recorded(after), recorded(before)),
    )
    assert forth.value == -back.value and forth.n_clusters == back.n_clusters
    assert (forth.interval is None) == (before["cluster"].nunique() < FEWEST)
    if forth.interval is None:
        assert forth.verdict == "no interval" and f"at least {FEWEST} are needed" in forth.method and forth.p is None
        return
    assert forth.interval[0] <= forth.value <= forth.interval[1]
    assert np.allclose(forth.interval, [-back.interval[1], -back.interval[0]], rtol=1e-6, atol=1e-9)
    assert {"better": "worse", "worse": "better"}.get(forth.verdict, forth.verdict) == back.verdict
    assert (
        (forth.p <= 0.05)
        == (forth.verdict in ("better", "worse"))
        == (not forth.interval[0] <= 0 <= forth.interval[1])
        == (not forth.ratio_interval[0] <= 1 <= forth.ratio_interval[1])
    )


@settings(max_examples=40, deadline=None)
@given(few_or_many)
def test_the_order_of_rows_does_not_matter(sizes):
    rows, clusters, seed = sizes
    frame = table(rows, clusters, seed=seed)
    first, second = recorded(frame).summary(), recorded(frame.sample(frac=1, random_state=seed)).summary()
    assert np.isclose(first["perplexity"]["value"], second["perplexity"]["value"])
    if frame["cluster"].nunique() >= FEWEST:
        assert np.allclose(first["perplexity"]["interval"], second["perplexity"]["interval"])


SKEWED = {
    "normal": (lambda random, n: random.normal(0.3, 1, n), 0.3),
    "exponential": (lambda random, n: random.exponential(size=n), 1.0),
    "log-normal": (lambda random, n: random.lognormal(0, 1, n), np.exp(0.5)),
    "heavy": (lambda random, n: random.standard_t(3, n), 0.0),
}


@pytest.mark.parametrize("count", [20, 60])
@pytest.mark.parametrize("kind", SKEWED)
def test_an_interval_of_a_mean_holds_the_truth(kind, count):
    random, (draw, truth) = np.random.default_rng(count), SKEWED[kind]
    ends = np.array([intervals(np.column_stack([draw(random, count), np.ones(count)]), mean)[0] for _ in range(800)])
    assert 0.92 <= ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean() <= 0.985


@pytest.mark.parametrize("clusters, size", [(8, 10), (30, 15)])
def test_a_test_of_passages_rarely_sees_what_is_not_there(clusters, size):
    random, alarms = np.random.default_rng(0), np.zeros(2)
    passage = np.repeat(np.arange(clusters), size)
    for _ in range(600):
        own = random.beta(1, 4, (clusters, 2))[passage]  # of going wrong and of coming right
        before, after = (random.random(len(passage)) < share for share in (0.5 * own).T)
        alarms += [mcnemar(before, after, passage)[2] <= 0.05, mcnemar(before, after)[2] <= 0.05]
    assert alarms[0] / 600 <= 0.065 < alarms[1] / 600


@pytest.mark.parametrize("clusters", [8, 30])
@pytest.mark.parametrize("alike", [0, 0.3])
def test_an_interval_by_passage_holds_the_truth_and_is_no_longer_than_it_must_be(clusters, alike):
    random, hits = np.random.default_rng(clusters), np.zeros(2)
    rates = np.array([0.15, 0.1, 0.75])  # of going wrong, of coming right, of staying right
    for _ in range(300):
        own = random.dirichlet(rates * (1 - alike) / alike, clusters) if alike else np.tile(rates, (clusters, 1))
        lost, gained, right = random.multinomial(15, own).T
        sums = np.column_stack([right, lost, gained, np.full(clusters, 15)]).astype(float)
        ends = paired_interval(Pairs(sums)), share(sums[:, [1, 3]])
        hits += [low <= truth <= high for (low, high), truth in zip(ends, (-0.05, 0.15))]
    assert (0.92 <= hits / 300).all() and (hits / 300 <= 0.985).all()


def test_an_interval_over_seeds_holds_the_truth_where_one_seed_does_not():
    random, hits = np.random.default_rng(0), np.zeros(2)
    for _ in range(600):
        level = random.normal(0, 0.5, 40)
        parts = [
            (
                np.arange(40),
                np.column_stack([0.2 + random.normal(0, 0.5) + level + random.normal(0, 0.5, 40), np.ones(40)]),
                np.ones(40),
            )
            for _ in range(3)
        ]
        ends = over_seeds(parts, mean).interval(), intervals(parts[0][1], mean)[0]
        hits += [low <= 0.2 <= high for low, high in ends]
    assert 0.93 <= hits[0] / 600 <= 0.99 and hits[1] / 600 < 0.6


def test_two_windows_of_one_document_tell_nothing_of_another():
    one = table(30, 1)
    found = Losses().difference(recorded(one), recorded(one.assign(nll=one["nll"] * 2)), margin=0.05)
    assert (
        found.interval is None
        and found.verdict == "no interval, margin of 5 % not settled"
        and "1 document: at least" in found.method
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 200))
def test_a_share_is_never_certain(n, right):
    low, high = share(np.column_stack([np.arange(n) < right, np.ones(n)]).astype(float))
    assert 0 <= low <= min(right, n) / n <= high <= 1 and high - low > 0.5 / n


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80), st.sampled_from([None, 1, 4]))
def test_difference_ratio_and_p_of_answers_agree(items, size):
    before, after = (np.array(part) for part in zip(*items))
    pairs = paired(before, after, None if size is None else np.arange(len(items)) // size)
    low, high = paired_interval(pairs)
    if pairs.too_few:
        assert np.isnan([low, high, pairs.p()]).all()
        return
    assert (pairs.p() <= 0.05) == (low > 0 or high < 0) and low <= after.mean() - before.mean() <= high and high > low
    if before.any():
        down, up = paired_ratio(pairs)
        assert (
            (pairs.p() <= 0.05) == (down > 1 or up < 1)
            and down <= after.mean() / before.mean() * (1 + 1e-9)
            and up >= after.mean() / before.mean() * (1 - 1e-9)
        )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_symmetric_and_exact(items):
    original, compressed = [a for a, _ in items], [b for _, b in items]
    lost, gained, p = mcnemar(original, compressed)
    assert mcnemar(compressed, original) == (gained, lost, p) and 0 < p <= 1
    if lost + gained:
        assert np.isclose(p, min(1, 2 * stats.binom.cdf(min(lost, gained), lost + gained, 0.5)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_lies_between_nothing_and_bonferroni(p_values):
    adjusted, p_values = holm(p_values), np.array(p_values)
    assert (adjusted >= p_values).all() and (adjusted <= np.minimum(1, p_values * len(p_values))).all()
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(st.floats(0.1, 10), st.floats(0, 5), st.floats(0, 1))
def test_a_margin_is_kept_missed_or_open_and_never_two_of_them(centre, reach, margin):
    low, high = centre - reach, centre + reach
    kept = against_bound((low, high), 1 + margin, "lower")
    assert kept == ("within" if high <= 1 + margin else "outside" if low > 1 + margin else "open")
    assert against_bound((-high, -low), -(1 + margin), "higher") == kept


@settings(max_examples=40, deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["", "s", "bytes", "share", "count", "nats"]))
def test_any_number_can_be_shown(value, unit):
    assert show(value, unit) and show(value, unit, like=1.0)


@pytest.mark.parametrize(
    "arms, verdict_, words",
    [
        ((False, True), "diverged", "the compressed model"),
        ((True, False), "the original diverged", "the original"),
        ((True, True), "both diverged", "the original and the compressed model"),
    ],
)
def test_a_diverged_model_is_called_diverged(arms, verdict_, words):
    frames = [table(20, 5) for _ in arms]
    for frame, broken in zip(frames, arms):
        if broken:
            frame.loc[3, "nll"] = np.inf
    found = Losses().difference(*map(recorded, frames), margin=0.05)
    assert found.verdict == verdict_ + (
        ", outside the margin of 5 %" if verdict_ == "diverged" else ", margin of 5 % not settled"
    )
    assert found.method == f"no interval: {words} diverged" and found.interval is None


def test_not_a_number_is_refused_with_probe_and_item():
    frame = table(10, 3)
    frame.loc[4, "nll"] = np.nan
    with pytest.raises(CompressLabError, match="item 4"):
        recorded(frame)


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf"), "5%", True, [0.1]])
def test_a_margin_that_is_none_is_refused(margin):
    with pytest.raises(CompressLabError):
        margin_of(PERPLEXITY, margin)


def test_no_word_of_difference_where_there_is_no_interval():
    assert verdict(1.0, None, None, PERPLEXITY, 0.05) == "no interval, margin of 5 % not settled"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_the_interval_over_seeds_is_that_of_the_textbook(values):
    middle, low, high = interval(values)
    reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    assert (
        np.allclose([low, high], [np.mean(values) - reach, np.mean(values) + reach], rtol=1e-6, atol=1e-6)
        and low <= middle <= high
    )


def answered(predictions, cluster=None):
    frame = pd.DataFrame(
        {"item": np.arange(len(predictions)), "prediction": predictions, "correct": np.asarray(predictions) == 1}
    )
    return frame if cluster is None else frame.assign(cluster=cluster)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=80))
def test_flips_add_up(items):
    first, second = (answered(list(part)) for part in zip(*items))
    found = flips(first, second.sample(frac=1, random_state=0))
    share = found["share"]
    assert np.isclose(share["flips"], share["went wrong"] + share["came right"]) and np.isclose(
        share["agreement"], 1 - share["changed"]
    )
    assert np.isclose(share["churn"], share["flips"] - abs(share["net change"])) and share["flips"] <= share["changed"]
    assert np.isclose(share["net change"], second["correct"].mean() - first["correct"].mean())
    assert (
        (found["low"] <= found["share"] + 1e-12).all()
        and (found["share"] <= found["high"] + 1e-12).all()
        and (found["high"] > found["low"]).all()
    )
    assert flips(*(part.rename(columns={"correct": "acc"}) for part in (first, second)), column="acc").equals(
        flips(first, second)
    )
    above = flips(first, second, second)
    assert (
        (above["above"] == 0).all()
        and (above["above_low"].fillna(0) <= 0).all()
        and (above["above_high"].fillna(0) >= 0).all()
    )


def test_flips_of_whole_passages_are_less_certain_than_flips_of_items():
    random = np.random.default_rng(0)
    cluster = np.repeat(np.arange(30), 10)
    wrong = (random.uniform(size=30) < 0.2)[cluster]
    items, passages = (
        flips(answered(np.ones(300, int), kind), answered(np.where(wrong, 0, 1), kind)) for kind in (None, cluster)
    )
    assert items["share"].equals(passages["share"])
    assert (passages["high"] - passages["low"])["flips"] > 2 * (items["high"] - items["low"])["flips"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 60), st.just(0.0) | st.floats(1e-6, 0.5))
def test_paired_interval_and_non_inferiority_agree_and_turn_round(lost, gained, kept, margin):
    before = np.r_[np.ones(lost), np.zeros(gained), np.ones(kept)]
    after = np.r_[np.zeros(lost), np.ones(gained), np.ones(kept)]
    pairs = paired(before, after)
    low, high = paired_interval(pairs)
    assert -1 <= low <= (gained - lost) / len(before) <= high <= 1 and low < high
    assert np.allclose(paired_interval(paired(after, before)), (-high, -low), atol=1e-6)
    if margin and abs(low + margin) > 1e-6:
        assert (non_inferior(pairs, margin) <= 0.025) == (low > -margin)
    assert (
        np.isfinite(score(lost, gained, len(before), [-0.999, -0.3, 0.3, 0.999])).all()
        and np.isfinite(ratio_score(kept, lost, gained, len(before), [0.01, 0.5, 2, 100])).all()
    )


@pytest.mark.parametrize("n, discordance", [(200, 0.1), (1000, 0.05)])
def test_what_is_called_detectable_is_detected(n, discordance):
    effect = detectable(n, discordance)
    lost, gained = (
        np.random.default_rng(0)
        .multinomial(n, [(discordance + effect) / 2, (discordance - effect) / 2, 1 - discordance], size=20_000)[:, :2]
        .T
    )
    assert abs((2 * stats.binom.cdf(np.minimum(lost, gained), lost + gained, 0.5) <= 0.05).mean() - 0.8) < 0.015
    assert power(n, discordance, 0) <= 0.05 and power(n, discordance, -effect) == power(n, discordance, effect)


SHARE = Metric("share", "share", "higher", "right", "asked")


@dataclass(frozen=True)
class Asked(Probe):
    "A probe of which some items only count."

    metrics: ClassVar = (SHARE,)

    def measure(self, subject, original=None, *, seed=0):
        raise NotImplementedError


def test_a_metric_about_few_items_is_resampled_over_these():
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"item": np.arange(400), "cluster": np.arange(400), "asked": (np.arange(400) < 12).astype(float)}
    )
    before, after = (frame.assign(right=frame["asked"] * (random.uniform(size=400) < share)) for share in (0.9, 0.5))
    whole, few = (
        Asked().difference(*(Records(part[:rows], Asked(), "f") for part in (before, after))) for rows in (400, 12)
    )
    assert (
        np.allclose(whole.interval, few.interval)
        and whole.n_items == few.n_items == 12
        and np.isfinite(whole.interval).all()
    )
    assert Records(before, Asked(), "f").interval == Records(before[:12], Asked(), "f").interval
