"What a study must stand: kill -9, two processes in one folder, Ctrl-C, damage, a full disk, files that say anything."

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import study_tiny as tiny
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from compress_lab.compress.recipe import Recipe
from compress_lab.core.errors import CompressLabError
from compress_lab.core.store import Store
from compress_lab.study import Study, failures

HERE = Path(__file__).parent
CELLS = 2 + 4 * 3  # the original under two unpaired probes, four recipes under three


@pytest.fixture(scope="module")
def model():
    return tiny.subject()


@pytest.fixture
def log(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setattr(tiny, "LOG", str(path))
    return lambda: path.read_text().splitlines()


def start(root, log, pause=0.05):
    return subprocess.Popen(
        [sys.executable, str(HERE / "study_tiny.py"), str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "STUDY_TINY_LOG": str(log), "STUDY_TINY_PAUSE": str(pause), "COMPRESS_LAB_PROGRESS": "0"},
    )


def values(root):
    store = Store(root)
    return {
        (cell.result["recipe"], cell.result["probe"], cell.result["settings"].get("variant")): cell.result["values"]
        for cell in map(store.get, store.current())
    }


def measured(lines):
    return Counter(tuple(line.split()[1:]) for line in lines if line.startswith("measure"))


def stored(root):
    "What the log would say of the cells that are stored."
    found = set()
    for cell in map(Store(root).get, Store(root).keys()):
        share = cell.result["history"][-1]["sparsity"] if cell.result["history"] else 0
        found.add(
            (cell.result["probe"], str(cell.result["settings"].get("variant", 0)), str(share), str(cell.result["seed"]))
        )
    return found


def test_killed_again_and_again(tmp_path, model, log):
    root, chance, before, seen = tmp_path / "run", random.Random(1), set(), 0

    def check():
        "Nothing that was stored before was measured since."
        nonlocal before, seen
        lines, before_now = log()[seen:], before
        assert not set(measured(lines)) & before_now
        seen, before = seen + len(lines), stored(root)

    for kill in range(3):
        process = start(root, tiny.LOG)
        assert "ready\n" in iter(process.stdout.readline, "")
        for _ in range(3 * kill):
            process.stdout.readline()  # so that the kills spread over the study
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.wait()
        check()
    tiny.study().run(root, subject=model)
    check()
    assert len(before) == CELLS == len(Store(root).keys())
    assert sum(measured(log()).values()) <= CELLS + 3, "a kill may cost the one cell it hit"
    blocks = Counter(line for line in log() if line.startswith("block"))
    assert sum(count - 1 for count in blocks.values()) <= 3, "a calibration goes on at its block"
    assert not list(Path(root, "cells").glob(".tmp-*")) and not list(Path(root, "checkpoints").iterdir())
    tiny.study().run(tmp_path / "undisturbed", subject=model)
    assert values(root) == values(tmp_path / "undisturbed")


def test_two_processes_in_one_folder(tmp_path):
    root, log = tmp_path / "run", tmp_path / "log"
    both = [start(root, log) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    lines = log.read_text().splitlines()
    assert len(Store(root).keys()) == CELLS and len(values(root)) == CELLS
    assert set(measured(lines).values()) == {1}, "a cell was measured twice"
    assert Counter(line for line in lines if line.startswith("apply")).most_common(1)[0][1] == 1, (
        "a recipe was applied twice"
    )


def test_ctrl_c_and_on(tmp_path, model, log):
    root = tmp_path / "run"
    process = start(root, tiny.LOG, pause=0.3)
    process.stdout.readline()
    while "share 0.1" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    done = len(Store(root).keys())
    assert process.returncode in (1, -signal.SIGINT, 130) and 3 <= done < CELLS
    assert f"Stopped. {done} of {CELLS} cells are stored" in output and "original 2, share 0.1" in output
    lines = len(log())
    tiny.study().run(root, subject=model)
    assert sum(measured(log()[lines:]).values()) == CELLS - done


def test_nothing_is_applied_when_all_is_stored(tmp_path, model, log):
    tiny.study().run(tmp_path / "run", subject=model)
    first = log()
    dossier = tiny.study().run(tmp_path / "run", subject=model)
    assert log() == first and len(dossier.cells) == CELLS


def test_seeds_recipes_and_probes_have_cells_of_their_own(tmp_path, model, log):
    root = tmp_path / "run"
    tiny.study(shares=(0.1,), seeds=(0, 1)).run(root, subject=model)
    assert len(Store(root).current()) == 2 * 5
    tiny.study(shares=(0.2,), seeds=(1,)).run(root, subject=model)
    assert len(Store(root).current()) == 5 and len(Store(root).keys()) == 13
    assert {name for name, *_ in values(root)} == {"original", "share 0.2"}


def test_another_model_measures_anew(tmp_path, model):
    root, other = tmp_path / "run", model.copy()
    tiny.study(shares=(0.1,)).run(root, subject=model)
    with tiny.torch.no_grad():
        tiny.weights(other)[0][0, 0] += 1
    tiny.study(shares=(0.1,)).run(root, subject=other)
    assert len(Store(root).keys()) == 10 and len(Store(root).current()) == 5


def test_a_renamed_recipe_is_not_measured_again(tmp_path, model, log):
    root = tmp_path / "run"
    tiny.study(shares=(0.1,)).run(root, subject=model)
    lines = log()
    Study("tiny llama", {"a tenth": tiny.Shrink(0.1)}, tiny.study().probes).run(root, subject=model)
    assert log() == lines and {name for name, *_ in values(root)} == {"original", "a tenth"}


def test_a_failing_recipe_leaves_the_others_and_is_tried_again(tmp_path, model, monkeypatch, capsys):
    root, run = tmp_path / "run", tiny.Shrink.run

    def breaks(self, *arguments, **options):
        if self.sparsity == 0.1:
            raise CompressLabError("The Hessian is singular.", "layer 3", "raise percdamp")
        if self.sparsity == 0.2:
            raise RuntimeError("out of cheese")
        return run(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(tiny.Shrink, "run", breaks)
        tiny.study(shares=(0.1, 0.2, 0.3)).run(root, subject=model)
        with pytest.raises(RuntimeError):
            tiny.study(shares=(0.2,)).run(tmp_path / "debug", subject=model, debug=True)
    said = capsys.readouterr().out
    assert "raise percdamp" in said and "RuntimeError: out of cheese" in said
    assert {name.split(" (")[0] for name in failures(Store(root))} == {"share 0.1", "share 0.2"}
    assert (
        values(root)["share 0.3", "tiny-distance", None]["distance"]["value"] > 0
        and values(root)["share 0.1", "tiny-distance", None] == {}
    )
    tiny.study(shares=(0.1, 0.2, 0.3)).run(root, subject=model)
    assert not failures(Store(root)) and all(values(root).values())


def test_what_cannot_be_measured_is_final(tmp_path, model, log):
    root, probes = tmp_path / "run", (tiny.Zeros(), tiny.Never())
    for _ in range(2):
        tiny.study(shares=(0.1,), probes=probes).run(root, subject=model)
    cells = [Store(root).get(key).result for key in Store(root).current()]
    assert [(cell["status"], cell["reason"]) for cell in cells if cell["probe"] == "tiny-never"] == [
        ("not measured", "there is nothing to see")
    ] * 2
    assert sum("tiny-never" in line for line in log()) == 2 and not failures(Store(root))


def test_a_damaged_cell_is_named_and_measured_again(tmp_path, model, log, capsys):
    root = tmp_path / "run"
    tiny.study(shares=(0.1,)).run(root, subject=model)
    store, whole, lines = Store(root), values(root), len(log())
    key = store.current()[-1]
    path = Path(store.at(key), "records.parquet")
    path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    tiny.study(shares=(0.1,)).run(root, subject=model)
    assert f"{key} is damaged: records.parquet" in capsys.readouterr().out
    assert values(root) == whole and sum(line.startswith("measure") for line in log()[lines:]) == 1


def test_a_full_disk_ends_the_run_and_the_next_completes_it(tmp_path, model, log, monkeypatch):
    root, left, fsync = tmp_path / "run", [9], os.fsync

    def fill(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fill)
        with pytest.raises(CompressLabError, match="disk is full"):
            tiny.study().run(root, subject=model)
    stored = Store(root).keys()
    assert (
        all(Store(root).get(key) for key in stored)
        and len(stored) < CELLS
        and not list(Path(root, "cells").glob(".tmp-*"))
    )
    tiny.study().run(root, subject=model)
    assert len(Store(root).keys()) == CELLS


def test_a_run_in_memory(model, monkeypatch):
    monkeypatch.setattr(
        tiny.Shrink,
        "run",
        lambda self, *arguments, checkpoint=None, **options: {"no": {}} if checkpoint is None else 1 / 0,
    )
    tiny.study(shares=(0.1,)).run("memory://study", subject=model)
    assert len(Store("memory://study").current()) == 5 and not failures(Store("memory://study"))


GOOD = {
    "subject": "smollm2-135m",
    "calibration": {"text": "wikipedia", "n": 32, "length": 256},
    "seeds": [0],
    "margin": 0.05,
    "recipes": {
        "RTN-4": [{"method": "RTN", "bits": 4, "group_size": 64, "targets": ["*.mlp.*"]}],
        "both": [{"method": "Wanda", "sparsity": "2:4"}, {"method": "GPTQ"}],
    },
    "probes": [{"probe": "tiny-zeros", "variant": 3}, "tiny-distance"],
}


def sound_or_refused(text):
    try:
        study = Study.from_yaml(text + "\n")
    except CompressLabError as error:
        assert str(error) and len(str(error)) < 2000
        return
    assert Study.from_yaml(study.to_yaml()) == study


def places(value, path=()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new) if path[1:] else new
    return copy


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["GPTQ", "size", "2:4", "original", "wikipedia", -1, 0, 10**30]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8) | st.integers() | st.sampled_from(["method", "probe", "bits", "targets", "n"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@fuzz
@given(st.sampled_from(list(places(GOOD))), anything)
@example(("seeds",), [float("nan")])
@example(("recipes",), {})
@example(("margin",), float("nan"))
def test_any_study_works_or_says_why_not(path, new):
    sound_or_refused(json.dumps(replaced(GOOD, path, new)))


@fuzz
@given(st.sampled_from(list(places(GOOD))[1:]))
def test_a_missing_part_works_or_is_named(path):
    parent = GOOD
    for key in path[:-1]:
        parent = parent[key]
    rest = (
        {key: value for key, value in parent.items() if key != path[-1]}
        if isinstance(parent, dict)
        else [value for i, value in enumerate(parent) if i != path[-1]]
    )
    sound_or_refused(json.dumps(replaced(GOOD, path[:-1], rest)))


@fuzz
@given(
    st.text()
    | st.lists(
        st.sampled_from(
            [
                "subject: a",
                "recipes:",
                "  a: [RTN]",
                "probes: [tiny-zeros]",
                "seeds: [0]",
                "- ",
                "&a ",
                "*a",
                "<<: *a",
                "? ",
                "!!set",
                "{",
                "]",
                "\t",
                "...",
                "---",
                "1:30",
                "2026-99-99",
                "!!binary x",
                "'",
                "\x00",
                "[" * 500,
            ]
        ),
        max_size=8,
    ).map("\n".join)
)
@example("&a [*a]")
@example("subject: a\nprobes: &p [*p]\nrecipes: {a: [RTN]}")
@example("subject: a\nprobes: [tiny-zeros]\nrecipes: &r {a: *r}")
@example("{" * 5000)
@example("- " * 5000)
@example("seeds: [" + "9" * 5000 + "]")
def test_any_text_works_or_says_why_not(text):
    sound_or_refused(text)


@fuzz
@given(st.sampled_from(list(places(GOOD["recipes"]["both"]))), anything)
@example((0, "sparsity"), float("nan"))
@example((0, "targets"), ["re:["])
def test_any_recipe_works_or_says_why_not(path, new):
    text = json.dumps(replaced(GOOD["recipes"]["both"], path, new))
    try:
        recipe = Recipe.from_yaml(text + "\n")
    except CompressLabError as error:
        assert str(error)
    else:
        assert (
            Recipe.from_yaml(recipe.to_yaml()) == recipe
            and Recipe.from_json(recipe.to_json() + "\n") == recipe
            and len(recipe.hash) == 16
        )


@fuzz
@given(st.text())
@example("&a [*a]")
@example("[" * 5000)
@example("{method: Wanda, sparsity: 2:4}\n")
def test_any_recipe_text_works_or_says_why_not(text):
    try:
        Recipe.from_yaml(text + "\n")
    except CompressLabError as error:
        assert str(error)


def test_what_yaml_would_misread():
    text = "subject: a\nprobes: [tiny-zeros]\nrecipes: {a: [{method: Wanda, sparsity: 2:4}]}\n"
    assert Study.from_yaml(text).recipes["a"].steps[0].method.sparsity == "2:4"
    with pytest.raises(CompressLabError, match="twice"):
        Study.from_yaml("subject: a\nsubject: b\nprobes: [tiny-zeros]\nrecipes: {a: [RTN]}\n")


def test_a_folder_on_two_machines_has_two_rows_of_times_and_one_of_quality(model, tmp_path, monkeypatch):
    from compress_lab.core import store
    from compress_lab.measure.latency import Latency
    from compress_lab.prune.magnitude import Magnitude
    from compress_lab.report.dossier import Dossier

    probes = [tiny.Zeros(), Latency(prefill_tokens=4, decode_tokens=1, blocks=3)]
    study = Study("tiny llama", {"half": Magnitude(0.5)}, probes)
    here = store.environment()
    for name in ("Processor A", "Processor B", "Processor A"):
        machine = here | {"processor": {"model": name, "flags": [], "cores": 2}}
        monkeypatch.setattr(store, "_fixed", lambda machine=machine: machine)
        before = set(Store(tmp_path).keys())
        study.run(tmp_path, subject=model)
        new = set(Store(tmp_path).keys()) - before
        assert len(new) == (3 if not before else 1 if name == "Processor B" else 0)  # only the time is measured again
    dossier = Dossier.from_run(tmp_path)
    timed, quality = (dossier.rows[dossier.rows["metric"] == metric] for metric in ("prefill_seconds", "zeros"))
    threads = here["threads"]
    label = f", {threads} thread{'s' * (threads != 1)})"
    assert sorted(timed["recipe"]) == [f"half (Processor A{label}", f"half (Processor B{label}"]
    assert sorted(quality["recipe"]) == ["half", "original"]
    assert [*dossier.recipes] == ["original", "half", *sorted(timed["recipe"])]
    assert not any(gap["reason"] == "the run has not reached it" for gap in dossier.not_measured())


def test_a_copy_that_runs_on_a_backend_too_is_compressed_once(model, tmp_path, monkeypatch):
    from compress_lab.compress.recipe import Recipe
    from compress_lab.prune.magnitude import Magnitude

    applied, apply = [], Recipe.apply
    monkeypatch.setattr(
        Recipe, "apply", lambda self, *given, **more: (applied.append(self), apply(self, *given, **more))[1]
    )
    recipes = {"half": Magnitude(0.5), "third": Magnitude(0.3)}
    study = Study("tiny llama", recipes, [tiny.Zeros()], native={"half": "eager", "original": "eager"})
    dossier = study.run(tmp_path, subject=model)
    assert [recipe.steps[0].method.sparsity for recipe in applied] == [0.5, 0.3]
    zeros = dossier.rows[dossier.rows["metric"] == "zeros"].set_index("recipe")["value"]
    assert zeros["half"] == zeros["half on eager"] != zeros["third"] and zeros["original"] == zeros["original on eager"]


def test_the_page_follows_a_running_study_and_never_stops_it(model, tmp_path, monkeypatch):
    from compress_lab.prune.magnitude import Magnitude
    from compress_lab.report.dossier import Dossier

    written, write = [], Dossier.to_html

    def noted(self, path, running=False):
        written.append((running, len(self.cells)))
        return write(self, path, running=running)

    monkeypatch.setattr(Dossier, "to_html", noted)
    study = Study("tiny llama", {"half": Magnitude(0.5), "third": Magnitude(0.3)}, [tiny.Zeros()])
    page = tmp_path / "page.html"
    study.run(tmp_path / "run", subject=model, page=page)
    assert written == [(True, 1), (True, 2), (True, 3)] and 'http-equiv="refresh"' in page.read_text()
    page.write_text("no page of a dossier")
    study.run(tmp_path / "again", subject=model, page=page)
    assert len(Store(tmp_path / "again").keys()) == 3 and page.read_text() == "no page of a dossier"
