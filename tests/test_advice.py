"""Advice: a search that is stopped anywhere ends as if it had not been, and the command prints what to take first."""

import json

import numpy as np
import pytest

from compress_lab.advice.example import learned_language
from compress_lab.advice.goal import Goal, parse_goal
from compress_lab.advice.search import Search, TableArms, decide
from compress_lab.cli import main
from compress_lab.core.errors import CompressLabError
from compress_lab.evaluate.metrics import Metric

pytest.importorskip("optuna")
PERPLEXITY = Metric("perplexity", better="lower", numerator="nll", denominator="tokens", transform="exp", diverges=True)
LOSSES = {"best": 0.01, "near": 0.03, "bad": 0.2, "worse": 0.4, "large": 0.0}
SIZES = {"best": 0.3, "near": 0.4, "bad": 0.3, "worse": 0.2, "large": 0.9}


class Stopped(Exception):
    pass


def table(goal, stop_at=None, count=32):
    "Arms with known losses; `columns` raises at its call number `stop_at`."
    random, tokens = np.random.default_rng(0), np.full(2 * count, 100.0)
    original = 100 * random.normal(3.0, 0.4, 2 * count)
    noise = {name: random.normal(0, 0.01, 2 * count) for name in LOSSES}
    rows = {
        name: np.column_stack([original, tokens, original + 100 * (loss + noise[name]), tokens])
        for name, loss in LOSSES.items()
    }
    arms, calls = TableArms(rows, {"perplexity": PERPLEXITY}, SIZES, count, goal.quality), []
    columns = arms.columns

    def counted(*given):
        calls.append(given)
        if len(calls) == stop_at:
            raise Stopped
        return columns(*given)

    arms.columns = counted
    return arms, calls


def told(search):
    return [(entry.name, entry.state, entry.why, entry.items) for entry in search.entries]


@pytest.mark.parametrize("take", ["quality", "smallest"])
def test_a_search_stopped_at_any_measurement_ends_the_same(take, tmp_path):
    goal = Goal(bytes=0.5, perplexity=0.05, take=take)
    arms, calls = table(goal)
    whole = Search(goal, arms, tmp_path / "whole").run()
    choice, _ = decide(goal, arms.unseen(whole.finalists()))
    assert choice == "best"
    for stop_at in range(1, len(calls) + 1):
        folder = tmp_path / f"stopped {stop_at}"
        with pytest.raises(Stopped):
            Search(goal, table(goal, stop_at)[0], folder).run()
        assert told(Search(goal, table(goal)[0], folder).run()) == told(whole)


def test_when_every_bound_is_broken_the_nearest_is_named_and_nothing_chosen():
    goal = Goal(bytes=0.1, perplexity=0.05)
    arms, _ = table(goal)
    choice, nearest = decide(goal, arms.unseen(Search(goal, arms).run().finalists()))
    assert choice is None and nearest in ("best", "worse")


@pytest.mark.parametrize(
    "text",
    ["", ",", "half", "perplexity", "half the bytes", "perplexity within five %", "bytes: -1\nperplexity: 5 %", "{"],
)
def test_a_goal_that_is_not_understood_is_refused(text):
    with pytest.raises(CompressLabError):
        parse_goal(text)


def test_the_command_says_first_what_to_take(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    learned_language("texts", steps=40).save("model")
    (tmp_path / "recipes.yaml").write_text(
        "RTN-4: {method: RTN, bits: 4, group_size: 16}\nRTN-8: {method: RTN, bits: 8}"
    )
    asked = ["recommend", "model", "--recipes", "recipes.yaml", "--text", "texts", "--items", "48", "--context", "32"]
    goal = "30 % of the bytes, perplexity within 5 %"
    assert main([*asked, "--goal", goal, "--out", "run"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Take RTN-4: RTN(bits=4, group_size=16)") and "compressing" not in printed.out
    assert json.loads((tmp_path / "run" / "advice.json").read_text())["choice"] == "RTN-4"
    assert (tmp_path / "run" / "dossier.html").is_file() and main(["report", "run"]) == 0
    assert main([*asked, "--goal", "a tenth of the bytes, perplexity within 5 %", "--out", "none"]) == 1
    assert "Nothing was shown to meet the goal. RTN-4 comes nearest" in capsys.readouterr().out
    assert main([*asked, "--goal", "quick", "--out", "no"]) == 2
