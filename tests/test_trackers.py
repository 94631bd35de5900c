"Trackers of a study that raise, hang or change what they are given change no number and stop nothing."

import random
import time
from functools import partial

import numpy as np
import pytest
import study_tiny as tiny
import torch
from accelerate.tracking import GeneralTracker, register_tracker_class

from compress_lab.core.errors import CompressLabError
from compress_lab.core.store import Store, different
from compress_lab.core.trackers import Trackers

LOGGED = []


class Works(GeneralTracker):
    name, requires_logging_directory = "works", False

    def __init__(self, run_name):
        super().__init__()

    tracker = property(lambda self: self)

    def store_init_configuration(self, values):
        LOGGED.append(values)

    def log(self, values, step=None):
        LOGGED.append((step, values))


class Raises(Works):
    name = "raises"

    def log(self, values, step=None):
        raise ConnectionError("nobody there")


class RaisesAtOnce(Works):
    name = "raises-at-once"

    def __init__(self, run_name):
        raise KeyboardInterrupt


class Sleeps(Works):
    name = "sleeps"

    def log(self, values, step=None):
        time.sleep(3600)


class Alters(Works):
    name = "alters"

    def log(self, values, step=None):
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        for name in values:
            values[name] = 0.0


for kind in (Works, Raises, RaisesAtOnce, Sleeps, Alters):
    register_tracker_class(kind)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "The store of the study without trackers."
    root = tmp_path_factory.mktemp("alone") / "run"
    tiny.study((0.1, 0.2), seeds=(0, 1)).run(root, subject=tiny.subject())
    return Store(root)


def same(store, other):
    return store.keys() == other.keys() and not any(different(store.get(key), other.get(key)) for key in store.keys())


def test_no_tracker_changes_a_number_or_stops_the_study(alone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("compress_lab.study.Trackers", partial(Trackers, patience=0.5))
    LOGGED.clear()
    names = ["works", "raises", "raises-at-once", "sleeps", "alters"]
    tiny.study((0.1, 0.2), seeds=(0, 1)).run(tmp_path / "run", subject=tiny.subject(), trackers=names)
    assert same(Store(tmp_path / "run"), alone)
    output = capsys.readouterr().out
    told = [line for line in output.splitlines() if "left out" in line]
    assert len(told) == 3 and all(
        any(f"tracker {name} is left out: {why}" in line for line in told)
        for name, why in {
            "raises": "ConnectionError: nobody there",
            "raises-at-once": "KeyboardInterrupt",
            "sleeps": "no answer within 0.5 seconds",
        }.items()
    ), output
    about, cells = LOGGED[0], [entry for entry in LOGGED if isinstance(entry, tuple)]
    assert about["subject"] == "tiny llama" and about["recipe share 0.1"] == "Shrink(sparsity=0.1)"
    cells = {(step, name): value for step, values in cells for name, value in values.items()}
    stored = [alone.get(key).result for key in alone.keys()]
    found = next(each for each in stored if each["probe"] == "tiny-distance" and each["recipe"] == "share 0.2")
    [difference] = found["differences"]
    name = (found["seed"], "share 0.2/tiny-distance/distance")
    assert cells[name] == found["values"]["distance"]["value"]
    low, high = found["values"]["distance"]["interval"]
    assert (cells[name[0], f"{name[1]} low"], cells[name[0], f"{name[1]} high"]) == (low, high)


def test_names_are_checked_before_anything_is_computed(tmp_path):
    with pytest.raises(CompressLabError, match="did you mean tensorboard"):
        tiny.study().run(tmp_path / "run", subject=tiny.subject(), trackers=["tensorbord"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_real_trackers_keep_the_figures(name, alone, tmp_path, monkeypatch, capsys):
    pytest.importorskip(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    study = tiny.study((0.1,))
    study.run(tmp_path / "run", subject=tiny.subject(), trackers=[name])
    output = capsys.readouterr().out
    assert "left out" not in output, output
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "run" / "trackers" / "tiny llama"))
        events.Reload()
        [event] = events.Scalars("share 0.1/tiny-distance/distance")
        [value] = [
            result["values"]["distance"]["value"]
            for result in map(Store(tmp_path / "run").peek, Store(tmp_path / "run").keys())
            if result["probe"] == "tiny-distance"
        ]
        assert event.step == 0 and event.value == pytest.approx(value, rel=1e-6)
    if name == "mlflow":
        import mlflow

        [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
        assert "share 0.1/tiny-distance/distance low" in run.data.metrics
