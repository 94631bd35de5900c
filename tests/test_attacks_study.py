"""Studies, run folders, pages and the command line under attack.

As a hostile user, somebody else's folder and a failing machine would have them.
"""

import errno
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import study_tiny as tiny
from test_dossier import synthetic

import compress_lab
from compress_lab.cli import main
from compress_lab.compress.recipe import Recipe
from compress_lab.core import store as store_module
from compress_lab.core.errors import CompressLabError
from compress_lab.core.settings import read_yaml
from compress_lab.core.store import Store, checksum, to_json, unsigned
from compress_lab.evaluate.metrics import Metric
from compress_lab.evaluate.probe import Probe
from compress_lab.evaluate.records import Records
from compress_lab.evaluate.tasks import read_task
from compress_lab.report.dossier import Dossier
from compress_lab.study import Study, contents, failures, identity

REPORT = "import sys; from compress_lab.cli import main; sys.exit(main(['report', 'run', '--out', 'page.html']))"


@pytest.fixture(scope="module")
def model():
    return tiny.subject()


@pytest.fixture
def drawn():
    return False  # whether pages have their pictures, which take a second


@pytest.fixture
def here(tmp_path, monkeypatch, drawn):
    if not drawn:
        monkeypatch.setattr(Dossier, "pictures", lambda self: [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_LAB_PROGRESS", "0")
    return tmp_path


def run_of(names=("RTN-4",), **changes):
    "A run folder with made-up results in the working folder."
    store = Store("run")
    for key, cell in synthetic(names, blocks=2).items():
        store.put(key, {**cell, **changes})
    store.expect_cells(store.keys())
    return store


# YAML

LAUGHS = "\n".join(
    ["l0: &l0 [x, x, x, x, x, x, x, x, x]", *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))]
)
PLACES = {
    "subject": "subject: {}",
    "recipes": "subject: m\nrecipes: {}\nprobes: [size]",
    "probes": "subject: m\nrecipes: {{a: [RTN]}}\nprobes: {}",
    "seeds": "subject: m\nrecipes: {{a: [RTN]}}\nprobes: [size]\nseeds: {}",
    "setting": "subject: m\nrecipes: {{a: [{{method: RTN, bits: {}}}]}}\nprobes: [size]",
    "margin": "subject: m\nrecipes: {{a: [RTN]}}\nprobes: [size]\nmargin: {}",
}


def promptly(function, *words):
    "The message of the error that is raised within a second."
    began = time.perf_counter()
    with pytest.raises(CompressLabError) as caught:
        function()
    assert time.perf_counter() - began < 1 and all(word in str(caught.value) for word in words), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("place", PLACES)
def test_aliases_of_aliases_are_refused_at_once_wherever_they_stand(place, here):
    text = f"{LAUGHS}\n{PLACES[place].format('*l11')}\n"
    for refuse in (lambda: Study.from_yaml(text), lambda: Recipe.from_yaml(text), lambda: read_task(Path("task.yaml"))):
        Path("task.yaml").write_text(text)
        promptly(refuse, "30,000 values")
    assert (
        Study.from_yaml(
            "subject: m\nrecipes: {a: &r [{method: RTN, bits: 8}], b: [{method: RTN, bits: 4}]}\n"
            "probes: &p [size]\nseeds: [0]\n"
        )
        .to_yaml()
        .count("*")
        == 0
    )


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        "{a: " * 20_000,
        "- " * 20_000,
        "? " * 20_000,
        "[" * 60 + "]" * 60,
        "a: " + "x" * 600_000,
        "&a {b: *a}",
        "a: &a {<<: *a}",
        "!!timestamp x",
        "!!int ''",
        '"\\UFFFFFFFF"',
        '"\\ud83d\\ude00"',
        '"\\0"',
        "a\x00b",
        "\ud800",
        "x: !!float",
        "\t- x",
        "9" * 5000,
        "1" + "0" * 30,
        "!!set {a}",
        "!!python/name:os.system",
    ],
)
def test_yaml_that_trips_its_reader_is_refused(text):
    promptly(lambda: read_yaml(text, "study.yaml"), "study.yaml")


# What a result depends on

TASK = (
    "name: mine\ndataset: table.parquet\nsplit: all\nkind: choice\ncolumns: [question, right]\nmetrics: [acc]\n"
    "licence: mine\ncontext: '{{question}}'\noptions: [w1, w2]\nanswer: right\n"
)
ASKED = (
    "subject: model\ncalibration: {text: text.txt, n: 2, length: 8}\n"
    "recipes: {RTN-4: [{method: RTN, bits: 4, group_size: 16}]}\n"
    "probes: [{probe: perplexity, text: text.txt, n: 4, context: 8}, {probe: task, task: task.yaml}]\n"
)


@pytest.fixture
def files(here):
    "A model with a tokenizer that merges, a text and a task."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from compress_lab.models.tiny import tiny as model

    letters = ["<unk>", "w", *"0123456789"]
    merges = [("w", digit) for digit in "0123456789"]
    tokenizer = Tokenizer(
        models.BPE(
            {part: number for number, part in enumerate([*letters, *("w" + digit for digit in "0123456789")])},
            merges,
            unk_token="<unk>",
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained("model")
    model("llama").save_pretrained("model")
    chance = random.Random(0)
    Path("text.txt").write_text(
        "\n\n".join(" ".join(f"w{chance.randrange(10)}" for _ in range(400)) for _ in range(30))
    )
    pd.DataFrame(
        {
            "question": [f"w{number} w{number % 7}" for number in range(10)],
            "right": [number % 2 for number in range(10)],
        }
    ).to_parquet("table.parquet")
    Path("task.yaml").write_text(TASK)
    Path("asked.yaml").write_text(ASKED)
    return here


def figures(root):
    "Perplexity and accuracy of the original, and whether something was measured for it just now."
    cells = [Store(root).get(key).result for key in Store(root).current()]
    return {
        name: value["value"]
        for cell in cells
        if cell["recipe"] == "original"
        for name, value in cell["values"].items()
        if name in ("perplexity", "mine.acc")
    }


def test_another_tokenizer_and_other_labels_are_measured_anew(files, capsys):
    def measured(root):
        assert main(["run", "asked.yaml", "--out", root]) == 0, capsys.readouterr()
        return capsys.readouterr().out.count("  stored\n"), figures(root)

    before = measured("run")[1]
    assert measured("run") == (4, before)
    table = pd.read_parquet("table.parquet")
    table.assign(right=1 - table["right"]).to_parquet("table.parquet")
    again, relabelled = measured("run")
    assert (
        again == 2
        and relabelled["mine.acc"] == pytest.approx(1 - before["mine.acc"])
        and relabelled["perplexity"] == before["perplexity"]
    )
    saved = json.loads(Path("model/tokenizer.json").read_text())
    saved["model"]["merges"] = []
    Path("model/tokenizer.json").write_text(json.dumps(saved))
    again, split = measured("run")
    assert again == 0 and split["perplexity"] != before["perplexity"] and split == measured("fresh")[1]


def test_a_subject_is_its_weights_its_tokenizer_and_how_it_writes(files):
    def named(change=None, path="model/tokenizer_config.json"):
        kept = Path(path).read_text() if Path(path).exists() else None
        if change:
            Path(path).write_text(json.dumps({**json.loads(kept or "{}"), **change}))
        found = identity(compress_lab.load("model"))
        Path(path).unlink() if kept is None else Path(path).write_text(kept)
        return found

    own = named()
    assert named() == own
    changed = [
        named({"chat_template": "{{ messages }}"}),
        named({"model_max_length": 77}),
        named({"eos_token_id": 3}, "model/generation_config.json"),
    ]
    assert len({own, *changed}) == 4 and all(each.startswith(own.split("-")[0]) for each in changed)


def test_files_behind_recipes_folders_and_the_mirror_are_in_the_key(files, monkeypatch):
    monkeypatch.setenv("COMPRESS_LAB_MIRROR", "hub")
    Path("hub/owner/name/default").mkdir(parents=True)
    Path("texts").mkdir()
    changing = {
        "table": (Path("hub/owner/name/default/test.parquet"), {"task": "owner/name"}),
        "text of the set": (Path("hub/owner/name/default/test.parquet"), {"text": "owner/name/default"}),
        "folder": (Path("texts/one.txt"), {"text": "texts"}),
        "jsonl": (Path("texts/two.jsonl"), {"path": "texts"}),
        "file": (Path("text.txt"), {"members": "text.txt"}),
    }
    for what, (path, settings) in changing.items():
        seen = set()
        for words in (b"one", b"two"):
            path.write_bytes(words)
            os.utime(path, ns=(len(seen) + 1, len(seen) + 1))
            seen.add(contents("key", settings))
        assert len(seen) == 2, what
    assert contents("key", {"text": "texts", "config": "x" * 300, "path": "a\0b"}).startswith("key-")


def test_a_changed_margin_judges_what_is_stored(here, model):
    def verdicts(margin):
        tiny.LOG, log = "log", Path("log")
        log.write_text("")
        study = Study("tiny llama", {"half": tiny.Shrink(0.5)}, [tiny.Zeros(), tiny.Distance()], margin=margin)
        try:
            dossier = study.run("run", subject=model)
        finally:
            tiny.LOG = None
        return log.read_text().count("measure"), next(
            each["verdict"]
            for cell in dossier.cells.values()
            for each in cell["differences"]
            if each["metric"] == "distance"
        )

    assert verdicts({"distance": 1e6})[1].endswith("within the margin of 1000000")
    assert (
        verdicts({"distance": 0}) == (0, verdicts({"distance": 0})[1])
        and "outside the margin" in verdicts({"distance": 0})[1]
    )


# Stored results

WRONG = {
    "values": ["x", [], {"zeros": 3}, {"zeros": {"value": "x"}}, {"zeros": {"value": 1.0, "interval": [1]}}],
    "status": ["done", 3, None],
    "differences": ["x", [3], [{"value": 1}], [{"metric": ["a"]}]],
    "recipe": [3, None, ["a"]],
    "probe": [{}],
    "history": ["x", [3], [{"modules": []}]],
    "seed": ["0", 10**30],
    "provenance": [[], {"subject": "x"}, {"data": [3]}],
    "records": ["x", {"meta": 3}],
    "settings": [[]],
    "simulated": ["no"],
    "reason": [3],
}


@pytest.mark.parametrize("name", WRONG)
def test_results_of_another_layout_are_named_and_measured_again(name, here, model, capsys):
    study = tiny.study(shares=(0.1,))
    study.run("run", subject=model)
    store, (key, *_) = (
        Store("run"),
        [key for key in Store("run").current() if Store("run").get(key).result["recipe"] != "original"],
    )
    sound = store.get(key)
    path = Path(store.at(key), "result.json")
    sums = json.loads(path.read_text())["files"]
    for wrong in WRONG[name]:
        result = {**sound.result, name: wrong}
        path.write_bytes(to_json({**result, "files": {**sums, "result.json": checksum(to_json(result))}}))
        dossier = Dossier.from_run("run")
        assert (
            list(dossier.damaged) == [key]
            and "not what a study writes" in dossier.damaged[key]
            and len(dossier.cells) == 4
            and not failures(store)
        )
    assert "is damaged" in dossier._render("page")
    capsys.readouterr()
    study.run("run", subject=model)
    assert f"{key} is damaged" in capsys.readouterr().out and store.get(key).result["values"] == sound.result["values"]


SPOIL = {
    "link": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("spoil", SPOIL)
def test_something_else_in_the_place_of_a_file(spoil, here, model):
    study = tiny.study(shares=(0.1,))
    study.run("run", subject=model)
    store, whole = Store("run"), Dossier.from_run("run").cells
    for name in ("result.json", "records.parquet", "environment.json"):
        path = Path(store.at(store.current()[-1]), name)
        path.unlink()
        SPOIL[spoil](path)
        assert len(Dossier.from_run("run").damaged) == 1
        study.run("run", subject=model)
        assert not Dossier.from_run("run").damaged and Dossier.from_run("run").cells.keys() == whole.keys()
    for name in ("study.yaml", "cells.json"):
        Path("run", name).unlink()
        SPOIL[spoil](Path("run", name))
        assert len(Dossier.from_run("run").cells) == len(whole)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_ends_neither_report_nor_run(number, here, model, monkeypatch):
    tiny.study(shares=(0.1,)).run("run", subject=model)
    store, read = Store("run"), store_module.read_bytes
    key = store.current()[-1]

    def refuse(path, limit):
        if key in str(path):
            raise CompressLabError(f"{Path(path).name} cannot be read: {os.strerror(number)}.", str(path))
        return read(path, limit)

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "read_bytes", refuse)
        dossier = Dossier.from_run("run")
    assert list(dossier.damaged) == [key] and os.strerror(number) in dossier.damaged[key] and len(dossier.cells) == 4


def test_a_frame_of_another_layout_is_measured_again(here, model):
    study = tiny.study(shares=(0.1,))
    study.run("run", subject=model)
    store = Store("run")
    for frame in (pd.DataFrame({"x": [1]}), pd.DataFrame({"item": [0], "zeros": ["many"], "weights": [3]}), None):
        key = next(key for key in store.current() if store.get(key).result["recipe"] == "original")
        sound = store.get(key)
        store.discard(key)
        store.put(key, sound.result, frame)
        study.run("run", subject=model)
        assert not failures(store)
        pd.testing.assert_frame_equal(store.get(key).frame, sound.frame)


# What belongs to the user


def test_a_study_of_the_users_is_never_replaced(files, capsys):
    own = f"# my study\n{ASKED}"
    Path("study.yaml").write_text(own)
    assert main(["run", "study.yaml", "--out", "."]) == 0 and Path("study.yaml").read_text() == own
    assert main(["run", "study.yaml", "--out", "."]) == 0 and capsys.readouterr().out.count("  stored\n") == 4
    Path("other.yaml").write_text(ASKED.replace("bits: 4", "bits: 8"))
    assert (
        main(["run", "other.yaml", "--out", "."]) == 2
        and "no run wrote" in capsys.readouterr().err
        and Path("study.yaml").read_text() == own
    )
    assert main(["run", "other.yaml", "--out", "run"]) == main(["run", "asked.yaml", "--out", "run"]) == 0
    kept = Path("run/study.yaml")
    assert Study.from_yaml(kept) == Study.from_yaml(Path("asked.yaml")) and unsigned(kept.read_text())
    kept.write_text(kept.read_text() + "# a note\n")
    assert main(["run", "other.yaml", "--out", "run"]) == 2 and kept.read_text().endswith("# a note\n")
    kept.write_text(Study.from_yaml(Path("asked.yaml")).to_yaml())  # as runs wrote it before they signed it
    assert main(["run", "other.yaml", "--out", "run"]) == 0 and unsigned(kept.read_text())


def test_a_page_replaces_nothing_but_a_page(here, capsys):
    run_of()
    Path("notes.html").write_text("<p>mine</p>")
    Path("table.csv").write_text("a,b")
    Path("link.html").symlink_to("notes.html")
    Path("there").mkdir()
    for place in (
        "notes.html",
        "table.csv",
        "link.html",
        "there",
        "run/cells",
        "a\0b",
        "x" * 300,
        "table.csv/page.html",
    ):
        assert main(["report", "run", "--out", place]) == 2, place
        assert "what to do" in capsys.readouterr().err
    assert Path("notes.html").read_text() == "<p>mine</p>" and Path("table.csv").read_text() == "a,b"
    Path("page-link.html").symlink_to("there/page.html")
    for _ in range(2):
        assert main(["report", "run", "--out", "page-link.html"]) == 0
    assert Path("page-link.html").is_symlink() and "compress_lab dossier" in Path("there/page.html").read_text()
    Path("run/dossier.html").write_text("mine")
    assert main(["report", "run"]) == 2 and Path("run/dossier.html").read_text() == "mine"


def test_apply_follows_a_link_and_leaves_folders_of_others_alone(files, capsys):
    Path("recipe.yaml").write_text("- {method: RTN, bits: 4, group_size: 16}\n")
    Path("disk").mkdir()
    Path("small").symlink_to("disk/small")
    apply = lambda out, *more: main(["apply", "recipe.yaml", "--model", "model", "--out", out, *more])
    assert (
        apply("small") == apply("small") == 0
        and Path("small").is_symlink()
        and Path("disk/small/compress_lab.json").is_file()
    )
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    for out in (".", "..", "/", "", "model", "recipe.yaml", "pipe", "loop", "a\0b", "x" * 300):
        assert apply(out) == 2, out
        assert "what to do" in capsys.readouterr().err
    for wrong in ("-1", str(2**32), "9" * 30):
        assert apply("new", "--seed", wrong) == 2 and "Expected a seed" in capsys.readouterr().err
    assert (
        Path("model/model.safetensors").is_file()
        and not Path("new").exists()
        and {path.name for path in Path().glob(".*")} == set()
    )


# Names, terminals, streams


@pytest.mark.parametrize("drawn", [True])
@pytest.mark.parametrize("name", ["a\\b", r"a\1b\g<0>", "50% {x} %s", "$\\frac{", "名前 🙂", "[bold]x[/bold]", "<b>"])
def test_any_name_of_a_recipe_reaches_the_page_and_its_drawings(name, here, capsys):
    run_of([name])
    assert main(["report", "run"]) == 0
    page = Path("run/dossier.html").read_text(encoding="utf-8")
    labels = [part.partition('">')[0] for part in page.split('aria-label="')[1:]]
    assert (
        page.count("<svg") == 3
        and any(escape(name) in label for label in labels)
        and escape(name) in page
        and name[:3] in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "redirected, environment, code",
    [
        ("", {"PYTHONIOENCODING": "cp1252"}, 0),
        ("<&- >&- 2>&-", {"LC_ALL": "C", "PYTHONUTF8": "0"}, 0),
        ("> /dev/full", {}, 2),
    ],
)
def test_the_page_is_written_whatever_becomes_of_the_output(redirected, environment, code, here):
    run_of(reason="≤ 名前 🙂")
    done = subprocess.run(
        f"'{sys.executable}' -c \"{REPORT}\" {redirected}",
        shell=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        timeout=120,
    )
    assert code is None or done.returncode == code, done
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done.stderr
    if code == 0:
        assert "compress_lab dossier" in Path("page.html").read_text(encoding="utf-8")


ESCAPE = "\x1b]0;owned\x07\x1b[2J"


def test_no_escape_sequence_reaches_the_terminal(here, model, capsys, monkeypatch):
    monkeypatch.setattr(tiny.Shrink, "run", lambda self, *_, **__: (_ for _ in ()).throw(ValueError(ESCAPE)))
    other = replace(model, provenance=replace(model.provenance, name=ESCAPE, licence=ESCAPE))
    Study("m", {"half": tiny.Shrink(0.5)}, [tiny.Zeros()]).run("run", subject=other)
    store = Store("run")
    for key in store.current():
        store.amend(key, recipe=f"r {ESCAPE}", probe=ESCAPE, values={ESCAPE: {"value": 1.0, "unit": ESCAPE}})
    Path(store.at(store.current()[0]), "records.parquet").write_bytes(ESCAPE.encode())
    assert main(["report", "run"]) == 0
    Study("m", {"half": tiny.Shrink(0.5)}, [tiny.Zeros()]).run("run", subject=other)
    for arguments in (
        ["report", ESCAPE],
        ["run", ESCAPE],
        ["apply", ESCAPE, "--model", ESCAPE, "--out", ESCAPE],
        ["run", "a", ESCAPE],
        [ESCAPE],
    ):
        try:
            main(arguments)
        except SystemExit:
            pass
    said = capsys.readouterr()
    assert (
        "\x1b" not in said.out + said.err
        and "\x07" not in said.out + said.err
        and "\\x1b" in said.out
        and "\\x1b" in said.err
    )
    assert "\x1b" not in Path("run/dossier.html").read_text()


def test_a_comparison_and_a_study_show_names_as_text(model):
    from compress_lab.evaluate.comparison import Comparison

    shown = Comparison((ESCAPE, "<b>" + "x" * 10_000))
    for text in (
        repr(shown),
        shown._repr_html_(),
        Study(f"m {ESCAPE}", {"half": tiny.Shrink(0.5)}, [tiny.Zeros()])._repr_html_(),
    ):
        assert "\x1b" not in text and "\\x1b" in text and len(text) < 6000
    assert "&lt;b&gt;x" in shown._repr_html_()


def test_nobody_learns_where_the_user_works(files, capsys):
    inside, outside = str(files / "text.txt"), str(files.parent / "elsewhere" / "text.txt")
    Path(outside).parent.mkdir(exist_ok=True)
    Path(outside).write_text(Path(inside).read_text())
    Path("absolute.yaml").write_text(
        f"subject: {files / 'model'}\n"
        "recipes: {RTN-4: [{method: RTN, bits: 4, group_size: 16}], broken: [{method: RTN, targets: [nothing]}]}\n"
        f"probes: [{{probe: perplexity, text: {inside}, n: 4, context: 8}}, "
        f"{{probe: perplexity, text: {outside}, n: 4, context: 8}}, "
        f"{{probe: perplexity, text: {files}/missing/x.txt, n: 4, context: 8}}]\n"
    )
    assert main(["run", "absolute.yaml", "--out", "run"]) == 1
    again = capsys.readouterr().out
    assert main(["run", "absolute.yaml", "--out", "run"]) == 1 and capsys.readouterr().out.count("  stored\n") == 4, (
        again
    )
    page = Path("run/dossier.html").read_text()
    assert "text.txt" in page and "missing/x.txt" in page
    for text in (page, *(path.read_text() for path in Path("run/cells").rglob("*.json"))):
        assert str(files) not in text and str(files.parent) not in text


def test_what_others_wrote_is_counted_and_cut(here):
    names = [f"model.layers.{number}.unknown" for number in range(40_000)]
    long = "L" * 1_000_000
    cells = synthetic(["RTN-4"])
    for cell in cells.values():
        cell["provenance"] = {"subject": {"name": long, "licence": f"{ESCAPE}{long}", "unknown": names}, "data": []}
        cell["records"] = {"meta": {"notes": [long]}}
        if cell["probe"] == "latency":
            cell["reason"] = f"<b>{long}"
    page = Dossier(cells, f"subject: {long}\n# {long}").to_html("page.html").read_text()
    assert (
        len(page) < 2_000_000
        and "and 39,900 more" in page
        and "layers.99.unknown" in page
        and "layers.101.unknown" not in page
        and "L" * 4001 not in page
        and "\x1b" not in page
        and "&lt;b&gt;" in page
    )
    with pytest.raises(CompressLabError) as caught:
        raise CompressLabError(long, long, long)
    assert len(str(caught.value)) < 5000


def test_forgotten_facts_are_listed_by_number(here):
    store = Store("run")
    told = {
        "original": ([1.0, 1.0, 0.0], ["Ada", "Grace", "Alan"]),
        "RTN-4": ([1.0, 0.0, 0.0], ["Ada", "Emmy", "Alan"]),
    }
    for recipe, (known, said) in told.items():
        values = {"facts_known": {"value": float(np.mean(known)), "unit": "share", "better": "higher"}}
        change = (
            [
                {
                    "metric": "facts_known",
                    "original": 2 / 3,
                    "compressed": 1 / 3,
                    "value": -1 / 3,
                    "interval": [-0.5, -0.1],
                    "unit": "share",
                    "better": "higher",
                }
            ]
            if recipe != "original"
            else []
        )
        store.put(
            recipe,
            {
                "recipe": recipe,
                "probe": "facts",
                "settings": {},
                "seed": 0,
                "values": values,
                "differences": change,
                "records": {"meta": {"axis": "factuality"}},
            },
            pd.DataFrame({"item": ["P19 7", "P19 8", "P19 9"], "cluster": "P19", "known": known, "said": said}),
        )
    page = Dossier.from_run("run").to_html("page.html").read_text()
    assert "RTN-4 forgot 1 of 2 facts" in page and "P19 8" in page and "Grace" not in page and "Emmy" not in page


@dataclass(frozen=True)
class Shares(Probe):
    "Shares over few clusters."

    name: ClassVar[str] = "tiny-shares"
    metrics: ClassVar[tuple] = (
        Metric("right", "share", "higher", "right"),
        Metric("same", "share", "higher", "same", "of", reference=1.0),
        Metric("gap", "share", None, "gap"),
    )

    def measure(self, subject, original=None, *, seed=0):
        raise NotImplementedError


def test_intervals_of_shares_stay_between_nothing_and_all():
    chance = np.random.default_rng(0)
    for clusters in (3, 4, 5, 24):
        for rate in (0.02, 0.5, 0.97):
            right, gap = chance.random((2, 24)) < rate, chance.choice([-1, 1], 24, p=[1 - rate, rate])
            frames = [
                pd.DataFrame(
                    {
                        "item": range(24),
                        "cluster": np.arange(24) % clusters,
                        "right": each.astype(float),
                        "same": each.astype(float),
                        "of": 1.0,
                        "gap": gap,
                    }
                )
                for each in right
            ]
            before, after = (Records(frame, Shares(), "f") for frame in frames)
            for name, low in (("right", 0), ("same", 0), ("gap", -1)):
                one = after.summary()[name]
                change = Shares().difference(before, after, name)
                if clusters < (20 if name == "gap" else 5):
                    assert one["interval"] is None and change.verdict in ("no interval", "no difference")
                    continue
                if one["interval"] is None or change.interval is None:  # all alike
                    assert (
                        name == "gap"
                        and before.frame["gap"].nunique() == 1
                        or (before.frame["gap"] == after.frame["gap"]).all()
                    )
                    continue
                assert low <= one["interval"][0] <= one["value"] <= one["interval"][1] <= 1
                assert (
                    (-1 if name == "right" else 2 * low - (name == "same"))
                    <= change.interval[0]
                    <= change.value
                    <= change.interval[1]
                    <= (0 if name == "same" else 1 - low)
                )


# What killed processes leave


def gone() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_processes_left_is_swept_and_what_runs_is_not(here, model):
    study = tiny.study(shares=(0.1,))
    study.run("run", subject=model)
    dead, alive = gone(), os.getppid()
    left = [Path("run", f".{name}.part-{dead}-0123abcd") for name in ("study.yaml", "cells.json", "dossier.html")] + [
        Path("run/cells/.tmp-dead"),
        Path("run/.locks/old.lock"),
    ]
    kept = [Path("run", f".{name}.part-{alive}-0123abcd") for name in ("study.yaml", "cells.json", "dossier.html")] + [
        Path("run/cells/.tmp-alive"),
        Path("run/.locks/new.lock"),
    ]
    for path in left + kept:
        path.mkdir() if ".tmp-" in path.name else path.write_text("half")
    os.utime("run/.locks/old.lock", (0, 0))
    with Store("run").lock(".tmp-alive"):
        study.run("run", subject=model)
        Dossier.from_run("run").to_html("run/dossier.html")
    assert [path for path in left if path.exists()] == [] and [path for path in kept if not path.exists()] == []


# Addresses


@pytest.mark.parametrize(
    "root",
    [
        "ftp://nowhere.invalid/x",
        "s3://bucket/run",
        "github://a:b@/c",
        "zip://x.zip",
        "nosuch://x",
        "a\0b",
        "x" * 300,
        "pipe",
        "loop",
        "file.txt",
        "file.txt/run",
        "http://[",
        "http://127.0.0.1:9/run",
        "gs://x/y",
    ],
)
def test_addresses_that_lead_nowhere_are_refused(root, here):
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    Path("file.txt").write_text("mine")
    with pytest.raises(CompressLabError):
        Store(root).put("key", {"a": 1})
    assert main(["report", root]) == 2 and Path("file.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["x" * 300, "a\0b", "pipe", "folder", "loop", "~nobody/x", "/dev/zero"])
def test_settings_that_name_no_text_are_an_error_of_the_cell(text, files):
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    Path("folder").mkdir()
    study = Study(
        "model",
        {"RTN-4": Recipe.from_yaml("- {method: RTN, bits: 4, group_size: 16}\n")},
        [{"probe": "perplexity", "text": text, "n": 2, "context": 8}, {"probe": "size"}],
    )
    dossier = study.run("run")
    assert {cell["status"] for cell in dossier.cells.values() if cell["probe"] == "size"} == {"measured"}
    assert all("what to do" in cell["reason"] for cell in dossier.cells.values() if cell["probe"] == "perplexity")
