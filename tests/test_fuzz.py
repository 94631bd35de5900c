"""A fuzzer of everything that comes from outside, mutated round by round.

Studies, recipes, tasks, arguments and stored files. Each round ends well or in a `CompressLabError`, within seconds.
500 rounds by default, 10,000 with `--flags slow`; a round that fails prints its number, and
`FUZZ_ROUND=<kind>:<number>` repeats it alone.
"""

import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import traceback
from pathlib import Path

import pandas as pd
import pytest
import study_tiny as tiny
import yaml
from test_dossier import STUDY as SYNTHETIC
from test_dossier import synthetic

from compress_lab.cli import main
from compress_lab.compress.recipe import Recipe
from compress_lab.core.errors import CompressLabError
from compress_lab.core.store import Store, checksum, to_json
from compress_lab.evaluate.results import stored
from compress_lab.evaluate.tasks import items, read_task
from compress_lab.report.dossier import Dossier
from compress_lab.study import Study, failures

COMPUTING, WAITING = 10, 60  # seconds of a round, at most: of the processor, and by the clock
PART = {"studies": 150, "recipes": 70, "tasks": 100, "arguments": 60, "files": 60}  # rounds of each kind
SLOW = 40  # times as many with --flags slow

RECIPE = [
    {"method": "Wanda", "sparsity": "2:4", "targets": ["*.mlp.*"]},
    {"method": "GPTQ", "bits": 4, "group_size": 64, "ignore": ["re:.*down_proj"]},
]
STUDY = {
    "subject": "smollm2-135m",
    "calibration": {"text": "wikipedia", "n": 32, "length": 256},
    "seeds": [0, 1],
    "margin": {"zeros": 0.05},
    "use": "research",
    "recipes": {"RTN-4": [{"method": "RTN", "bits": 4, "group_size": 64}], "both": RECIPE},
    "copies": {"theirs": "a-folder"},
    "native": {"RTN-4": "openvino"},
    "probes": [
        {"probe": "tiny-zeros", "variant": 3},
        "tiny-distance",
        {"probe": "task", "task": "mine.yaml"},
        {"probe": "perplexity", "text": "table.csv", "n": 2, "context": 8},
        "trust-small",
    ],
}
TASK = {
    "name": "mine",
    "dataset": "table.csv",
    "split": "all",
    "kind": "choice",
    "columns": ["q", "a", "right"],
    "metrics": ["acc"],
    "licence": "CC0",
    "context": "Q: {{q}}\nA:",
    "options": ["{{a}}", "no"],
    "answer": "right",
    "cluster": "q",
    "about": "made up",
}
SCALARS = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    -(10**400),
    1.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    " ",
    "x",
    "0",
    "2:4",
    "1e-3",
    "original",
    "wikipedia",
    "GPTQ",
    "size",
    "task",
    "..",
    "/",
    ".",
    "/dev/zero",
    "/dev/stdin",
    "pipe",
    "loop",
    "folder",
    "x" * 300,
    "x" * 100_000,
    "\x00",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202e",
    "\ud800",
    "\U0001f642",
    "a\\1b\\g<0>",
    "<script>",
    "{{ 7*7 }}",
    "{% for",
    "{% raw %}",
    "re:[",
    "re:(a+)+$",
    "ftp://x/y",
    "http://[",
    "s3://b",
    "zip://",
    "a::b",
    "file:///nowhere",
    "${HOME}",
    "~nobody/x",
    "*",
    "[]",
    "mine.yaml",
    "table.csv",
    "nyu-mll/glue",
    "\r\n\t",
]
PIECES = [
    "&a ",
    "*a",
    "<<: *a\n",
    "? ",
    "!!timestamp x",
    "!!float",
    "!!int ''",
    "!!set {a}",
    "!!python/object:os.system x",
    '"\\UFFFFFFFF"',
    '"\\ud800"',
    "[" * 400,
    "{a: " * 400,
    "- " * 400,
    "]",
    "}",
    "\t",
    "---\n",
    "...\n",
    "%YAML 9.9\n",
    "|",
    ">",
    "'",
    '"',
    "#",
    "\ufeff",
    "\x00",
    "\x85",
    "\u2028",
    "9" * 5000,
    "0x10",
    "1:30",
    "2026-99-99",
    "=",
    "~",
    ": ",
    ",",
    "\n",
    "  ",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d "
    "[*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
]


def places(value, path=()):
    "Paths of all parts of a value."
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def anything(chance, levels=3):
    "A value of any kind."
    if levels == 0 or chance.random() < 0.7:
        return chance.choice(SCALARS)
    inner = [anything(chance, levels - 1) for _ in range(chance.randrange(4))]
    return inner if chance.random() < 0.5 else {str(chance.choice(SCALARS)): each for each in inner}


def mutated(chance, value):
    "The value with one part dropped, doubled, replaced, renamed, moved or wrapped."
    value = copy.deepcopy(value)
    path = chance.choice([*places(value)])
    if not path:
        return anything(chance) if chance.random() < 0.3 else value
    parent, others = value, [part for part in places(value) if part]
    for key in path[:-1]:
        parent = parent[key]
    other = value
    for key in chance.choice(others):
        other = other[key]
    deed = chance.randrange(8)
    if deed == 0:
        del parent[path[-1]]
    elif deed == 1 and isinstance(parent, dict):
        parent[str(chance.choice(SCALARS))] = parent.pop(path[-1])
    elif deed == 1:
        parent.append(copy.deepcopy(parent[path[-1]]))
    elif deed == 2:
        parent[path[-1]] = copy.deepcopy(other)
    elif deed == 3:
        parent[path[-1]] = [parent[path[-1]]]
    elif deed == 4:
        parent[path[-1]] = {"x": parent[path[-1]]}
    elif deed == 5:
        parent[path[-1]] = str(parent[path[-1]])
    else:
        parent[path[-1]] = anything(chance)
    return value


def written(chance, value) -> str:
    "The value as text, sometimes with damage."
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        value = mutated(chance, value)
    text = json.dumps(value) if chance.random() < 0.6 else yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
    for _ in range(chance.choice([0, 0, 0, 1, 1, 3])):
        text = damaged(chance, text)
    return text


def damaged(chance, text: str) -> str:
    "The text cut, with something put in, a character changed, or lines doubled."
    at, deed = chance.randrange(len(text) + 1), chance.randrange(5)
    if deed == 0:
        return text[:at]
    if deed == 1:
        return text[:at] + chance.choice(PIECES) + text[at:]
    if deed == 2 and text:
        return text[: at - 1] + chr(ord(text[at - 1]) ^ (1 << chance.randrange(8))) + text[at:]
    if deed == 3:
        return text[:at] + text
    lines = text.split("\n")
    return "\n".join([*lines, chance.choice(lines)])


def spoiled(chance, path: Path):
    "The file damaged, or something else in its place."
    data, deed = path.read_bytes(), chance.randrange(9)
    at = chance.randrange(len(data) + 1)
    if deed == 0:
        path.write_bytes(data[:at])
    elif deed == 1 and data:
        path.write_bytes(data[: at - 1] + bytes([data[at - 1] ^ (1 << chance.randrange(8))]) + data[at:])
    elif deed == 2:
        path.write_bytes(b"")
    elif deed == 3:
        path.write_bytes(chance.choice(PIECES).encode("utf-8", "surrogatepass"))
    elif deed == 4:
        path.write_bytes(chance.randbytes(chance.randrange(200)))
    else:
        path.unlink()
        if deed == 5:
            path.mkdir()
        elif deed == 6:
            os.mkfifo(path)
        elif deed == 7:
            path.symlink_to(chance.choice([path.name, "nowhere", "..", "/dev/zero"]))


def studies(chance, here):
    "A study's text is parsed, planned, shown and written down."
    study = Study.from_yaml(written(chance, STUDY) + "\n")
    assert Study.from_yaml(study.to_yaml()) == study or "nan" in study.to_yaml()
    study.arms("fingerprint", lambda seed: "calibration", lambda place: "copy")
    study._repr_html_()


def recipes(chance, here):
    "A recipe's file is read, hashed and written down."
    path = here / "recipe.yaml"
    path.write_bytes(written(chance, RECIPE).encode("utf-8", "surrogatepass"))
    if chance.random() < 0.15:
        spoiled(chance, path)
    recipe = Recipe.from_yaml(path)
    assert Recipe.from_yaml(recipe.to_yaml() + "\n").hash == recipe.hash and str(recipe)


def tasks(chance, here):
    "A task's file is read, and its items are made."
    path = here / "task.yaml"
    path.write_bytes(written(chance, TASK).encode("utf-8", "surrogatepass"))
    if chance.random() < 0.15:
        spoiled(chance, path)
    found = items(read_task(path), chance.choice([None, 2]), chance.choice([0, 1]))
    assert len(found) and found.key


def arguments(chance, here):
    "The command line, on files that are there and files that are not."
    (here / "study.yaml").write_text(
        written(chance, {**STUDY, "subject": "no/such"}), encoding="utf-8", errors="replace"
    )
    words = [str(chance.choice(SCALARS)) for _ in range(3)]
    command = chance.choice(
        [
            ["report", words[0]],
            ["report", "run", "--out", words[0]],
            ["run", words[0], "--out", words[1]],
            ["run", "study.yaml", "--out", words[0]],
            ["run", "study.yaml", "--out", "run"],
            ["apply", words[0], "--model", words[1], "--out", words[2]],
            ["apply", "good.yaml", "--model", "no/such", "--out", words[0], "--seed", words[1]],
            [*words],
            ["methods"],
            ["report", "run"],
        ]
    )
    if command[0] == "run" and command[1] in ("starter", "trust"):
        return
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as wrong:
        try:
            code = main(command)
        except SystemExit as ended:
            code = ended.code
    assert (
        code in (0, 1, 2) and "\x1b" not in said.getvalue() + wrong.getvalue() and "Traceback" not in wrong.getvalue()
    ), (command, code, wrong.getvalue())
    assert (here / "good.yaml").read_text() == GOOD and (here / "run" / "study.yaml").exists()


GOOD = "- {method: RTN, bits: 4}\n"


def files(chance, here):
    "A run folder with damaged files, and with results of another layout, is reported and gone on from."
    root = here / "stored"
    shutil.copytree(here / "run", root)
    for _ in range(chance.choice([1, 1, 2, 5])):
        path = chance.choice(sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()))
        if path.name != "result.json" or chance.random() < 0.25:
            spoiled(chance, path)
        else:
            relaid(chance, path)
    dossier = Dossier.from_run(root)
    pictures = contextlib.nullcontext() if chance.random() < 0.05 else pytest.MonkeyPatch.context()
    with pictures as patch:
        if patch:
            patch.setattr(Dossier, "pictures", lambda self: [])
        page = dossier._render("page")
    assert "<script" not in page and "\x1b" not in page
    dossier.table(text=True), failures(Store(root))
    for key in Store(root).keys():
        with contextlib.suppress(CompressLabError):
            stored(Store(root), key, tiny.Zeros())


def relaid(chance, path: Path):
    "The result as somebody else's program might have written it, its hashes right."
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        result = json.loads(path.read_text())
        sums = result.pop("files")
        for _ in range(chance.choice([1, 2, 4])):
            result = mutated(chance, result)
        path.write_bytes(to_json({**result, "files": {**sums, "result.json": checksum(to_json(result))}}))


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A folder with a table, a pipe, a loop of links and a run of four recipes' results."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("COMPRESS_LAB_MIRROR", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pd.DataFrame({"q": ["one", "two", "three"], "a": ["x", "y", "z"], "right": [0, 1, 0]}).to_csv(
        "table.csv", index=False
    )
    Path("mine.yaml").write_text(json.dumps(TASK))
    Path("good.yaml").write_text(GOOD)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    store = Store("run")
    for key, cell in synthetic(["RTN-4", "Wanda 50%"], blocks=2).items():
        store.put(key, cell, FACTS if cell["probe"] == "size" else None)
    for recipe in ("original", "RTN-4"):
        store.put(
            f"facts-{recipe}",
            {**next(iter(synthetic([]).values())), "recipe": recipe, "probe": "facts", "values": {}},
            FACTS,
        )
    store.write_text("study.yaml", SYNTHETIC)
    store.expect_cells(store.keys())
    return tmp_path


FACTS = pd.DataFrame({"item": ["P1 0", "P1 1"], "cluster": "P1", "known": [1.0, 0.0], "said": ["x", "y"]})


class Late(BaseException):
    "A round that took too long; no `except Exception` catches it."


def rounds(kind, count):
    asked = os.environ.get("FUZZ_ROUND", "").partition(":")
    return range(count) if not asked[0] else [int(asked[2])] if asked[0] == kind.__name__ else []


@pytest.mark.parametrize("kind", [studies, recipes, tasks, arguments, files], ids=lambda kind: kind.__name__)
def test_any_input_works_or_says_why_not(kind, here, request):
    count = PART[kind.__name__] * (SLOW if "slow" in request.config.getoption("--flags") else 1)

    def late(*_):
        raise Late

    before, failed, refused = [signal.signal(each, late) for each in (signal.SIGALRM, signal.SIGPROF)], [], 0
    try:
        for number in rounds(kind, count):
            signal.alarm(WAITING), signal.setitimer(signal.ITIMER_PROF, COMPUTING)
            try:
                kind(random.Random(f"{kind.__name__} {number}"), here)
            except CompressLabError as error:
                refused += 1
                if not str(error) or len(str(error)) > 4000 or "\x1b" in str(error):
                    failed.append(f"{kind.__name__}:{number} said {str(error)[:300]!r}")
            except (Exception, Late):
                failed.append(
                    f"{kind.__name__}:{number}\n{''.join(traceback.format_exc().splitlines(keepends=True)[-14:])}"
                )
            finally:
                signal.alarm(0), signal.setitimer(signal.ITIMER_PROF, 0)
                shutil.rmtree("stored", ignore_errors=True)
            for path in (here / "recipe.yaml", here / "task.yaml"):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink(
                    missing_ok=True
                )
    finally:
        for each, handler in zip((signal.SIGALRM, signal.SIGPROF), before):
            signal.signal(each, handler)
    assert not failed, f"{len(failed)} of {count} rounds\n" + "\n".join(failed[:8])
    assert not refused or len(rounds(kind, count)) > refused or kind is arguments, (
        "nothing but refusals: the valid example is none"
    )
