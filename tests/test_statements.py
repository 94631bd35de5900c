"""Table, sentence, picture and JSON of a dossier say the same of the same figures.

For random studies of several recipes, tasks and seeds.
"""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from compress_lab.core.store import Store, to_json
from compress_lab.evaluate.differences import direction
from compress_lab.evaluate.fidelity import Fidelity
from compress_lab.evaluate.perplexity import Perplexity
from compress_lab.evaluate.records import Records
from compress_lab.evaluate.statistics import holm
from compress_lab.evaluate.task_probe import TaskProbe
from compress_lab.report.claims import told
from compress_lab.report.dossier import Dossier
from compress_lab.report.plots import BLUE, GREY, VERMILION, _row_color

TASKS = ("arc_easy", "piqa", "copa")
SAID = {"better", "worse", "higher", "lower", "no difference", "no difference seen", "no interval", "diverged"}


def answers(random, task, items, size, share, lost, gained, model):
    "Records of right and wrong answers, in passages of `size`."
    right = np.random.default_rng(len(task)).random(items) < share
    right = np.where(random.random(items) < np.where(right, lost, gained), ~right, right)
    prediction = np.where(right, 0, 1)
    return Records(
        pd.DataFrame(
            {
                "item": range(items),
                "cluster": np.arange(items) // size,
                "correct": right,
                "acc_norm": right,
                "prediction": prediction,
            }
        ),
        TaskProbe(task),
        model,
        {"rows": task},
    )


def losses(random, documents, worse, spread, model):
    level = np.random.default_rng(0).normal(3, 0.3, documents)
    nll = level + worse + spread * random.standard_t(3, documents)
    return Records(
        pd.DataFrame({"item": range(documents), "cluster": range(documents), "tokens": 100.0, "nll": 100 * nll}),
        Perplexity(),
        model,
        {"rows": "text"},
    )


def divergences(random, documents, size, model):
    kl = size * random.lognormal(0, 1, documents)
    return Records(
        pd.DataFrame(
            {
                "item": range(documents),
                "cluster": range(documents),
                "tokens": 100.0,
                "kl": 100 * kl,
                "agree": np.round(100 * np.exp(-kl)),
            }
        ),
        Fidelity(),
        model,
        {"rows": "text", "original": "original"},
    )


def study(number):
    "A store with a random study in it, and its seeds."
    random = np.random.default_rng(number)
    seeds = range(int(random.integers(1, 4)))
    items, size, documents = (
        int(random.choice([20, 60, 300])),
        int(random.choice([1, 1, 5, 20])),
        int(random.choice([3, 20, 24, 60])),
    )
    store, tasks = Store(f"memory://statements/{number}"), TASKS[: int(random.integers(1, 4))]
    recipes = {
        name: (
            random.choice([0, 0.03, 0.15]),
            random.choice([0, 0.03, 0.1]),
            random.choice([0, 0.01, 0.3]),
            random.choice([1e-12, 0.01, 0.1]),
        )
        for name in ("a", "b", "c")[: int(random.integers(1, 4))]
    }
    for seed in seeds:
        before = [
            *(answers(random, task, items, size, 0.7, 0, 0, "original") for task in tasks),
            losses(random, documents, 0, 0, "original"),
        ]
        cells = [("original", None, each) for each in before]
        for name, (lost, gained, worse, kl) in recipes.items():
            after = [
                *(answers(random, task, items, size, 0.7, lost, gained, f"{name} {seed}") for task in tasks),
                losses(random, documents, worse, 0.1, f"{name} {seed}"),
            ]
            cells += [(name, *pair) for pair in zip(before, after)] + [
                (name, None, divergences(random, documents, kl, f"{name} {seed}"))
            ]
        for recipe, first, records in cells:
            differences = (
                []
                if recipe == "original"
                else [each.to_dict() for each in records.probe.differences(first, records, margin=0.05)]
            )
            store.put(
                f"{recipe} {records.probe.name} {records.meta['rows']} {seed}".replace(" ", "-"),
                json.loads(
                    to_json(
                        dict(
                            recipe=recipe,
                            probe=records.probe.name,
                            settings=records.probe.settings(),
                            seed=seed,
                            status="measured",
                            reason="",
                            margin=0.05,
                            values=records.summary(),
                            differences=differences,
                            records=records.to_dict(),
                            fingerprint=records.fingerprint,
                            history=[],
                            seconds=0.0,
                        )
                    )
                ),
                records.frame,
            )
    return store, seeds


@pytest.mark.parametrize("number", range(16))
def test_no_two_statements_contradict_each_other(number):
    store, seeds = study(number)
    dossier = Dossier.from_run(store.root)
    rows = dossier.evidence[(dossier.evidence["recipe"] != "original") & dossier.evidence["difference"].notna()]
    assert len(rows)
    for _, row in rows.iterrows():
        check_row(row)
    if len(seeds) == 1:
        check_json(dossier, rows)
    else:
        assert all(
            "seeds" in row["method"] or "one model twice" in row["method"] or "no interval" in row["verdict"]
            for _, row in rows.iterrows()
        )
    for recipe in (name for name in dossier.recipes if name != "original"):
        check_recipe(dossier, recipe, rows[rows["recipe"] == recipe])
    check_summary(dossier, rows)
    if number > 2:
        return  # a page takes seconds to draw
    page = dossier._render("page")
    assert all(
        row["verdict"] in page
        for _, row in rows[rows["probe"] == "task"].iterrows()
        if not row["metric"].endswith((".flips", ".churn", ".changed"))
    )


def check_row(row):
    "Verdict, interval, ratio, p and colour of one difference."
    said, low, high = told(row), row["difference_lo"], row["difference_hi"]
    assert said in SAID, row["verdict"]
    assert (said == "no interval") == (not math.isfinite(low + high))
    if said == "no interval":
        return
    assert (said in ("better", "worse")) == (said != "no difference" and bool(direction(low, high, row["better"]))), row
    if said in ("better", "worse"):
        assert said == direction(low, high, row["better"])
    if row["p"] == row["p"]:
        assert (row["p"] <= 0.05) == (said in ("better", "worse", "higher", "lower"))
    if math.isfinite(row["ratio_lo"]) and said != "no difference":
        assert (row["ratio_lo"] <= 1 <= row["ratio_hi"]) == (low <= 0 <= high)
    if not row["metric"].endswith(("agreement", "kl", ".flips", ".churn", ".changed")):
        assert np.isclose(row["value_lo"], np.clip(row["original"] + low, 0, None), atol=1e-9)
    shown = pd.Series(
        dict(better=row["better"] if said in ("better", "worse") else None, lo=low, hi=high, reference=0.0)
    )
    assert _row_color(shown) == {"worse": VERMILION, "better": BLUE}.get(said, GREY)
    if row["metric"] == "kl":
        assert low >= 0


def check_json(dossier, rows):
    "Of one seed, the evidence is what the cell says."
    for _, row in rows.iterrows():
        [key] = row["cells"]
        [stored] = [each for each in dossier.cells[key]["differences"] if each["metric"] == row["metric"]]
        assert stored["verdict"] == row["verdict"] and stored["value"] == row["difference"]


def check_recipe(dossier, recipe, rows):
    "The sentences about one recipe."
    claims = [str(claim) for claim in dossier.recipe_claims(recipe)]
    perplexity = rows[rows["metric"] == "perplexity"].iloc[0]
    [sentence] = [each for each in claims if "perplexity" in each]
    assert ("raises perplexity" in sentence) == (told(perplexity) == "worse") and ("lowers perplexity" in sentence) == (
        told(perplexity) == "better"
    )
    assert sentence.startswith("No difference in perplexity") == told(perplexity).startswith("no difference") and (
        "cannot be told" in sentence
    ) == (told(perplexity) == "no interval")
    answered = rows[rows["metric"].str.endswith(".acc")]
    [sentence] = [each for each in claims if "changes accuracy" in each]
    sides = sentence.partition(";")[0].partition(". Over all")[0]
    for side in ("worse", "better"):
        named = {
            task
            for part in re.findall(rf"{side} in (.*?)(?= and (?:better|worse) in |\. |$)", sides)
            for task in TASKS
            if task in part
        }
        assert named == {row["metric"].removesuffix(".acc") for _, row in answered.iterrows() if told(row) == side}, (
            sentence
        )
    together = re.search(r"Over all \d tasks accuracy is (better|worse|not seen to change).*?p ([0-9.e-]+)\)", sentence)
    if together:
        assert (together[1] != "not seen to change") == (float(together[2]) <= 0.05) or abs(
            float(together[2]) - 0.05
        ) < 0.001


def check_summary(dossier, rows):
    "The sentences about the whole study."
    text = " ".join(map(str, dossier.summary()))
    accuracies = (
        rows[rows["metric"].str.endswith(".acc") & rows["flips"].notna()]
        if "flips" in rows
        else rows[rows["metric"].str.endswith(".acc")]
    )
    seen = [row for _, row in accuracies.iterrows() if told(row) in ("better", "worse")]
    remain = int((holm([p if p == p else 1.0 for p in accuracies["p"]]) <= 0.05).sum())
    assert f"{len(seen) or 'None'} of {len(accuracies)} change{'s' * (len(accuracies) > 1)} of accuracy" in text
    unknown = sum(told(row) == "no interval" for _, row in accuracies.iterrows())
    assert (f", and {unknown} ha" in text) == bool(unknown)
    assert remain <= len(seen) and (not seen or f"correction {remain or 'none'} remain" in text)
    none = {
        row["recipe"]
        for _, row in rows[rows["metric"] == "perplexity"].iterrows()
        if told(row).startswith("no difference")
    }
    if len(rows["recipe"].unique()) > 1 and none:
        assert all(name in text.partition("but a rise of up to")[0] for name in none)
