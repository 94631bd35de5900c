"""What an earlier version wrote is read by this one: `before.zip` holds a tiny model, a text of made-up words, the run
folder of a study and a saved Subject, all written by 0.1.0 as it was before the package was divided into its rooms. Its
recipes name the type they compute in, which "auto" would leave to the processor, and the keys of the cells with it.
"""

import json
import zipfile
from pathlib import Path

import pytest

import compress_lab as cl
from compress_lab.cli import main


@pytest.fixture
def before(tmp_path, monkeypatch):
    with zipfile.ZipFile(Path(__file__).with_name("before.zip")) as written:
        written.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_saved_subject_is_the_one_that_was_saved(before):
    subject = cl.load("subject")
    assert subject.fingerprint == (before / "fingerprint.txt").read_text()
    assert [step["method"] for step in subject.history] == ["Wanda", "GPTQ", "Int8"]
    assert len(subject.packed) == len(subject.input_quantizers) == 14 and subject.simulated


def test_a_run_folder_is_shown(before):
    values = {}
    for result in map(json.loads, (path.read_text() for path in before.glob("run/cells/*/result.json"))):
        values |= {(result["recipe"], name): entry["value"] for name, entry in result["values"].items()}
    rows = cl.Dossier.from_run("run").table()
    assert list(rows.index) == ["original", "RTN-4", "half, then GPTQ", "Int8"]
    for recipe in rows.index:
        assert rows.loc[recipe, "perplexity"] == pytest.approx(values[recipe, "perplexity"])


def test_a_study_goes_on_with_what_is_stored(before):
    times = lambda: {path: path.stat().st_mtime_ns for path in before.glob("run/cells/*/result.json")}
    stored = times()
    assert main(["run", "study.yaml", "--out", "run"]) == 0
    assert len(stored) == 11 and times() == stored
