"""Calibration: figures that can be computed another way, and what must hold for any model."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from compress_lab.core.errors import CompressLabError
from compress_lab.evaluate.calibration import (
    BINS,
    METRICS,
    aurc,
    bin_columns,
    calibration_differences,
    calibration_loss,
    crossfit,
    distributions,
    ece,
    equal_mass,
    from_noise,
    gap_covariance,
    item_scores,
    reliability,
    rescaled,
    risk_coverage,
    temperature,
)


def records(n, options=3, sharp=1.0, seed=0, clusters=None):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, options))
    label = (logits + random.gumbel(size=logits.shape)).argmax(1)
    frame = pd.DataFrame(
        {
            "item": [f"i{number}" for number in range(n)],
            "label": label,
            "logprobs": list(special.log_softmax(sharp * logits, axis=1)),
        }
    )
    return frame if clusters is None else frame.assign(cluster=np.arange(n) % clusters)


def by_name(*args, **kwargs):
    return {found.metric.name: found for found in calibration_differences(*args, **kwargs)}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 30), st.integers(0, 10_000))
def test_bins_hold_every_item_in_order_and_are_alike_in_size(n, bins, seed):
    confidence = np.random.default_rng(seed).uniform(size=n)
    which = equal_mass(confidence, bins)
    assert which.min() >= 0 and which.max() < bins and (np.diff(which[np.argsort(confidence)]) >= 0).all()
    sizes = np.bincount(which)
    if n >= bins:
        assert sizes.max() - sizes.min() <= 1


def test_equal_confidences_share_a_bin():
    confidence = np.r_[np.full(50, 0.5), np.full(50, 1.0)]
    which = equal_mass(confidence)
    assert len(set(which[:50])) == len(set(which[50:])) == 1 and which[0] != which[-1]


def test_ece_and_calibration_loss_by_hand():
    scores = item_scores(*distributions(records(300)))
    gap, which = scores["confidence"] - scores["correct"], equal_mass(scores["confidence"].to_numpy())
    parts = [(gap[which == b].mean(), (which == b).mean()) for b in set(which)]
    totals = bin_columns(scores).sum(0)
    assert np.isclose(ece(totals), sum(abs(mean) * share for mean, share in parts)) and np.isclose(
        calibration_loss(totals), sum(mean**2 * share for mean, share in parts)
    )
    table = reliability(records(300))
    assert (
        np.isclose(ece(totals), (table["items"] * (table["confidence"] - table["accuracy"]).abs()).sum() / 300)
        and len(table) == BINS
    )


@pytest.mark.parametrize("statistic", ["ece", "calibration_loss"])
def test_a_calibrated_model_is_not_taken_for_another_and_the_plain_figure_would_be(statistic):
    plain, found = {"ece": ece, "calibration_loss": calibration_loss}[statistic], []
    for seed in range(60):
        scores = item_scores(*distributions(records(300, seed=seed)))
        gaps = bin_columns(scores)[:, :BINS] / 300
        noise = np.random.default_rng(seed).multivariate_normal(
            np.zeros(BINS), 300 / 299 * (gaps - gaps.mean(0)).T @ (gaps - gaps.mean(0)), 500, method="eigh"
        )
        of = (lambda each: np.abs(each).sum(-1)) if statistic == "ece" else (lambda each: BINS * (each**2).sum(-1))
        found.append((*from_noise(of, gaps.sum(0), noise), plain(bin_columns(scores).sum(0))))
    middle, low, high, seen = np.array(found).T
    assert (
        (low == 0).mean() > 0.9
        and middle.mean() < seen.mean() / 2
        and (low <= middle).all()
        and (middle <= high + 1e-12).all()
    )


def test_a_calibrated_model_that_is_nearly_always_right_is_not_called_miscalibrated():
    random, alarms = np.random.default_rng(0), np.zeros(2)
    for _ in range(60):
        confidence = 1 - 0.03 * random.uniform(size=600)
        scores = pd.DataFrame({"confidence": confidence, "correct": random.uniform(size=600) < confidence}).astype(
            float
        )
        gaps, which = np.split(bin_columns(scores) / 600, 2, axis=1)
        told = which * (confidence * (1 - confidence))[:, None] / 600
        covariance = gap_covariance(gaps, told, np.arange(600))
        for number, each in enumerate((covariance, 600 / 599 * (gaps - gaps.mean(0)).T @ (gaps - gaps.mean(0)))):
            noise = random.multivariate_normal(np.zeros(BINS), each, 500, method="eigh")
            alarms[number] += from_noise(lambda gaps: np.abs(gaps).sum(-1), gaps.sum(0), noise)[1] > 0
    assert alarms[0] / 60 <= 0.07 and alarms[1] / 60 > 0.12  # the answers alone would tell of too little noise


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 120), st.integers(0, 1000), st.booleans())
def test_aurc_by_hand_with_ties(n, seed, coarse):
    random = np.random.default_rng(seed)
    confidence, correct = random.uniform(size=n), (random.uniform(size=n) < 0.6).astype(float)
    if coarse:
        confidence = confidence.round(1)
    mean, excess = (value.item() for value in aurc(confidence, correct))
    assert np.isclose(mean, np.mean([1 - correct[confidence >= one].mean() for one in confidence])) and excess >= -1e-9
    best = np.sort(correct)[::-1]
    assert np.isclose(mean - excess, np.mean([1 - best[:k].mean() for k in range(1, n + 1)]))
    curve = risk_coverage(confidence, correct)
    assert curve["coverage"].is_monotonic_increasing and np.isclose(curve["risk"].iloc[-1], 1 - correct.mean())


@settings(max_examples=10, deadline=None)
@given(st.floats(0.3, 4), st.integers(0, 50))
def test_a_temperature_undoes_itself(by, seed):
    logp, label = distributions(records(400, seed=seed))
    assert np.isclose(temperature(rescaled(logp, by), label) / temperature(logp, label), 1 / by, rtol=1e-3)
    assert (
        np.allclose(rescaled(rescaled(logp, by), 1 / by), logp)
        and (rescaled(logp, by).argmax(1) == logp.argmax(1)).all()
    )


def test_no_item_is_scored_by_a_temperature_that_saw_its_cluster():
    frame = records(120, clusters=12)
    logp, label = distributions(frame)
    found = crossfit(logp, label, frame["cluster"])
    for cluster in range(12):
        own = frame["cluster"].to_numpy() == cluster
        other = np.where(own, (label + 1) % 3, label)
        assert (crossfit(logp, other, frame["cluster"])[own] == found[own]).all() and not np.array_equal(
            crossfit(logp, other, frame["cluster"]), found
        )
    with pytest.raises(CompressLabError, match="fitted"):
        crossfit(logp, label, np.zeros(120))


@pytest.mark.parametrize("clusters", [None, 5, 40])
@pytest.mark.parametrize("temperature", ["given", "refit", "kept"])
def test_a_model_differs_from_itself_by_nothing_and_from_another_either_way_round(clusters, temperature):
    first, second = records(200, clusters=clusters), records(200, sharp=2.5, clusters=clusters)
    same = calibration_differences(first, first.sample(frac=1, random_state=3), temperature=temperature, same=True)
    assert len(same) == (3 if clusters == 5 else 7) and all(
        found.value == 0 and found.interval == (0, 0) and found.verdict == "no difference" for found in same
    )
    if temperature == "kept":
        return
    forth, back = by_name(first, second, temperature=temperature), by_name(second, first, temperature=temperature)
    for name in forth:
        if forth[name].interval is None:
            assert (
                (clusters == 5 or abs(forth[name].value) < 1e-9)
                and back[name].interval is None
                and forth[name].verdict == "no interval"
            )
            continue
        close = 0.02 if name in ("ece", "calibration_loss") else 1e-9  # the noise is drawn
        assert np.isclose(forth[name].value, -back[name].value, atol=close) and np.allclose(
            forth[name].interval, -np.array(back[name].interval)[::-1], atol=close
        )


def test_items_of_few_passages_are_less_certain():
    first = records(400, clusters=20)
    second = first.assign(
        logprobs=[-2 * row if cluster < 6 else row for row, cluster in zip(first["logprobs"], first["cluster"])]
    )  # six passages turned round
    clustered, items = by_name(first, second), by_name(first.drop(columns="cluster"), second.drop(columns="cluster"))
    assert clustered["nll"].value == pytest.approx(items["nll"].value) and np.ptp(
        clustered["nll"].interval
    ) > 1.3 * np.ptp(items["nll"].interval)
    assert clustered["nll"].n_clusters == 20 and items["nll"].n_clusters == 400


def test_options_of_any_number_and_an_impossible_answer():
    frame = pd.DataFrame(
        {
            "item": range(4),
            "label": [0, 1, 2, 0],
            "logprobs": [[-0.1, -3], [-1, -1, -1], [-2, -2, -0.2, -4], [-np.inf, 0.0]],
        }
    )
    logp, label = distributions(frame)
    assert (
        logp.shape == (4, 4)
        and np.allclose(np.exp(logp).sum(1), 1)
        and item_scores(logp, label)["nll"].iloc[3] == np.inf
    )
    found = by_name(frame[:3], frame[:3]), by_name(frame.assign(logprobs=[*frame["logprobs"][:3], [-1, -1]]), frame)
    assert found[0]["nll"].value == 0 and found[1]["nll"].verdict == "diverged" and found[1]["nll"].interval is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"label": [0, 5]},
        {"label": [0.5, 1]},
        {"logprobs": [[0.0, np.nan], [0.0, 0.0]]},
        {"logprobs": [[-np.inf, -np.inf], [0.0, 0.0]]},
    ],
)
def test_what_is_no_distribution_is_refused(wrong):
    with pytest.raises(CompressLabError, match="label"):
        distributions(pd.DataFrame({"item": [0, 1], "label": [0, 1], "logprobs": [[0.0, 0.0], [0.0, 0.0]]} | wrong))


def test_other_items_or_labels_are_refused():
    frame = records(20)
    for other in (frame[1:], frame.assign(item=range(20)), frame.assign(label=(frame["label"] + 1) % 3)):
        with pytest.raises(CompressLabError, match="same items"):
            calibration_differences(frame, other)


def test_a_margin_is_in_the_metrics_own_unit():
    found = by_name(records(500), records(500, sharp=4), margin={"ece": 0.001, "nll": 5.0})
    assert (
        "outside the margin" in found["ece"].verdict
        and "within the margin" in found["nll"].verdict
        and found["brier"].margin is None
        and set(found) == set(METRICS)
    )
