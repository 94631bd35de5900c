"Workers of one study: killed at random, alone with their clocks, dying of one cell, and equal to a single process."

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compress_lab as cl
from compress_lab.core.store import Store, different
from compress_lab.models.tiny import tiny

HERE = Path(__file__).parent
RECIPES = {
    "a": [{"method": "Magnitude", "sparsity": 0.1}],
    "b": [{"method": "Magnitude", "sparsity": 0.2}],
    "c": [{"method": "RTN", "bits": 4}],
    "d": [{"method": "RTN", "bits": 3}],
}


def study(*probes, recipes=RECIPES):
    return dict(imports=["study_workers.py"], subject="small", recipes=recipes, probes=probes)


SQUARES = study("squares", {"probe": "squares", "variant": 1}, "size")
SCENARIOS = {  # name: study, kills, whether a single process measures it first
    "clocks": (study("clock", "squares", {"probe": "clock", "variant": 1}), 0, True),
    "hungry": (study("squares", "hungry", recipes={"a": RECIPES["a"]}), 0, False),
}


def run_in(folder, *command):
    "Runs a program in a folder that holds a small model and the study's probes."
    cl.Subject(tiny("llama", num_hidden_layers=2)).save(folder / "small")
    shutil.copy(HERE / "study_workers.py", folder)
    variables = {"STUDY_WORKERS_PAUSE": "0.03", "OMP_NUM_THREADS": "1", "COMPRESS_LAB_PROGRESS": "0"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def forked(folder, scenarios):
    "What became of each scenario, by forks of one process."
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    return json.loads(run_in(folder, HERE / "forked_workers.py", "scenarios.json").splitlines()[-1])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    "What became of the scenarios, and the lines that their probes wrote: word, process, time."
    folder = tmp_path_factory.mktemp("workers")
    found = forked(folder, SCENARIOS)
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return found | {"log": [(word, process, float(time)) for word, process, time in lines]}


def check_kills(rounds, kills):
    assert sum(each["killed"] for each in rounds) == kills
    for each in rounds:
        assert each["cells"] == 15 and not each["unlike"] and not each["left"], each


def test_twenty_kills_leave_the_store_of_an_undisturbed_run(tmp_path):
    check_kills(forked(tmp_path, {"killed": (SQUARES, 20, True)})["killed"], 20)


def test_two_hundred_kills_leave_the_store_of_an_undisturbed_run(tmp_path, request):
    if "slow" not in request.config.getoption("--flags").split():
        pytest.skip("takes minutes: asked for with --flags slow")
    check_kills(forked(tmp_path, {"killed": (SQUARES, 200, True)})["killed"], 200)


def test_who_measures_a_time_is_alone(told):
    [clocks] = told["clocks"]
    assert not clocks["unlike"] and clocks["cells"] == 15
    begun = [(process, time) for word, process, time in told["log"] if word == "begin"]
    ends = [(process, time) for word, process, time in told["log"] if word == "end"]
    assert len({process for process, _ in begun}) == 3, "one process at first, then two workers"
    for process, began in begun:
        end = min(time for other, time in ends if other == process and time > began)
        inside = {other for _, other, time in told["log"] if began < time < end}
        assert inside <= {process}, "another worker computed meanwhile"


def test_a_cell_that_kills_its_workers_fails_alone(told):
    [hungry] = told["hungry"]
    assert hungry["cells"] == 4 and hungry["died"] == 6, "each of two cells kills three workers"
    assert list(hungry["failed"]) == ["original (hungry)", "a (hungry)"]
    reason = hungry["failed"]["a (hungry)"]
    assert "3 processes were killed" in reason and "GiB are free" in reason and "bfloat16" in reason
    assert sum(word == "hungry" for word, *_ in told["log"]) == 6


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_an_executor_gives_the_store_of_a_single_process(executor, tmp_path):
    if executor == "ray":
        pytest.importorskip("ray")
    (tmp_path / "study.yaml").write_text(json.dumps(SQUARES))
    command = ["-m", "compress_lab.cli", "run", "study.yaml", "--out"]
    output = run_in(tmp_path, *command, "spread", "--executor", executor, "--workers", "2", "--threads", "1")
    assert output.count("  seed 0  ") == 15, "each cell is told once, by the worker that measured it"
    run_in(tmp_path, *command, "alone")
    spread, alone = Store(tmp_path / "spread"), Store(tmp_path / "alone")
    assert spread.keys() == alone.keys() and len(alone.keys()) == 15
    assert {key: different(spread.get(key), alone.get(key)) for key in alone.keys()} == dict.fromkeys(alone.keys(), "")
    environments = [json.dumps(store.get(key).environment) for store in (spread, alone) for key in alone.keys()]
    assert len(set(environments)) == 1
