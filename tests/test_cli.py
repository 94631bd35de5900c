"The command line from end to end, on a tiny random model and a text written here: no network and no starters."

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

import compress_lab
from compress_lab.cli import EXTRAS, main
from compress_lab.compress.recipe import Method
from compress_lab.core.store import Store
from compress_lab.report.dossier import Dossier

COMMAND = str(Path(sys.executable).with_name("compress-lab"))
STUDY = """
subject: model
calibration: {text: text.txt, n: 4, length: 16}
recipes:
  RTN-4: [{method: RTN, bits: 4, group_size: 16}]
  half: [{method: Wanda, sparsity: 0.5}]
  2:4 >> GPTQ-4: [{method: Wanda, sparsity: 2:4}, {method: GPTQ, bits: 4, group_size: 16}]
probes:
- {probe: perplexity, text: text.txt, n: 6, context: 16}
- {probe: fidelity, text: text.txt, n: 3, context: 16}
- size
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder with a tiny model, its tokenizer, a text, a study and a recipe."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from compress_lab.models.tiny import tiny

    folder, chance = tmp_path_factory.mktemp("cli"), random.Random(0)
    words = [f"w{number}" for number in range(100)]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(["<unk>", *words])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder / "model")
    tiny("llama", num_hidden_layers=2).save_pretrained(folder / "model")
    (folder / "text.txt").write_text("\n\n".join(" ".join(chance.choices(words, k=40)) for _ in range(400)))
    (folder / "study.yaml").write_text(STUDY)
    (folder / "recipe.yaml").write_text("- {method: Wanda, sparsity: 0.5}\n- {method: GPTQ, bits: 4, group_size: 16}\n")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COMPRESS_LAB_PROGRESS", "0")
    return folder


def start(here, *arguments):
    return subprocess.Popen(
        [COMMAND, *arguments], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_run_stopped_by_ctrl_c_goes_on_by_the_command_it_prints(here, capsys):
    process, seen = start(here, "run", "study.yaml", "--out", "runs/my run"), []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("RTN-4"):
            break
    process.send_signal(signal.SIGINT)
    seen += process.communicate(timeout=120)[0].splitlines(keepends=True)
    said, stored = "".join(seen), len(Store("runs/my run").keys())
    assert process.returncode == 130 and "Traceback" not in said, said
    assert 3 <= stored < 11 and f"{stored} of 11 cells are stored" in said
    assert "To resume: compress-lab run study.yaml --out 'runs/my run'" in said
    assert main(["run", "study.yaml", "--out", "runs/my run"]) == 0
    said = capsys.readouterr().out
    assert said.count("  stored\n") == stored and len(Store("runs/my run").keys()) == 11
    for words in ("perplexity", "RTN-4", "half", "2:4 >> GPTQ-4", "seed 0", "runs/my run/dossier.html"):
        assert words in said
    page = Path("runs/my run/dossier.html").read_text()
    assert "RTN-4" in page and "<html" in page


def test_report_shows_the_same_run_elsewhere(here, capsys):
    if not Path("runs/my run").exists():
        main(["run", "study.yaml", "--out", "runs/my run"])
    assert main(["report", "runs/my run", "--out", "page.html", "--pictures", "pictures"]) == 0
    assert "page.html" in capsys.readouterr().out and "GPTQ-4" in Path("page.html").read_text()
    names = {"quality-and-size", "differences", "layers"}
    assert {path.name for path in Path("pictures").iterdir()} == {
        f"{name}.{suffix}" for name in names for suffix in ("csv", "svg", "png")
    }
    keys = Store("runs/my run").keys()
    Store("earlier").adopt(keys[0], Store("runs/my run"))
    Store("earlier").expect_cells(keys)
    capsys.readouterr()
    assert main(["report", "runs/my run", "--out", "page.html", "--since", "earlier"]) == 0
    said, page = capsys.readouterr().out, Path("page.html").read_text()
    assert "what changed since earlier: " in said and "new" in said
    assert page.count('data-label="what changed">new') == len(
        Dossier.from_run("runs/my run").changes(Dossier.from_run("earlier"))
    )
    assert main(["report", "runs/my run", "--out", "page.html", "--since", "runs/my run"]) == 0
    assert "what changed since runs/my run: 0" in capsys.readouterr().out


def test_apply_saves_a_subject_that_loads(here, capsys):
    assert (
        main(
            [
                "apply",
                "recipe.yaml",
                "--model",
                "model",
                "--out",
                "small",
                "--calibration",
                "text.txt",
                "--n",
                "4",
                "--length",
                "16",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "weights touched" in said and "seed 0" in said
    small = compress_lab.load("small")
    assert [entry["method"] for entry in small.history] == ["Wanda", "GPTQ"] and small.simulated
    assert (small.model.model.layers[0].mlp.up_proj.weight == 0).float().mean() >= 0.5
    assert not list(Path(".").glob(".small*"))


CALIBRATED = ["--model", "model", "--calibration", "text.txt", "--n", "4", "--length", "16"]


@pytest.mark.parametrize(
    "words, made",
    [
        ("GPTQ --bits 3 --group-size 16 --no-act_order", {"bits": 3, "group_size": 16, "act_order": False}),
        (
            "Wanda --sparsity 2:4 --targets *.mlp.* --ignore *.down_proj",
            {"sparsity": "2:4", "targets": ["*.mlp.*"], "ignore": ["*.down_proj"]},
        ),
        ("Random --sparsity=0.25 --seed 7", {"sparsity": 0.25, "seed": 7}),
        ("RTN --symmetric --group_size 16", {"symmetric": True}),
        ("RTN(4,group_size=16)", {"bits": 4, "group_size": 16}),
    ],
)
def test_apply_takes_a_method_with_its_settings(here, capsys, words, made):
    assert main(["apply", *words.split(), *CALIBRATED, "--out", "by-options"]) == 0
    assert f"seed {made.get('seed', 0)}" in capsys.readouterr().out
    (entry,) = compress_lab.load("by-options").history
    assert {name: entry[name] for name in made} == made


def test_a_file_goes_before_a_method_only_by_its_ending(here, capsys):
    for name in ("RTN", "RTN.yaml"):
        Path(name).write_text("{method: Magnitude, sparsity: 0.5}")
    for name, method in {"RTN": "RTN", "RTN.yaml": "Magnitude"}.items():
        assert main(["apply", name, "--model", "model", "--out", "by-name"]) == 0
        assert [entry["method"] for entry in compress_lab.load("by-name").history] == [method]


@pytest.mark.parametrize(
    "words, told",
    [
        ("GPTQ --bit 4", ["no setting 'bit'", "did you mean --bits?"]),
        ("GPTQ --calibraton text.txt", ["did you mean --calibration"]),
        ("GPTQ --bits 9", ["bits=9 is not between 1 and 8"]),
        ("GPTQ --bits many", ["must be a whole number"]),
        ("GPTQ 4", ["'4' belongs to no option"]),
        ("--bits 4 GPTQ", ["comes first", "did you mean GPTQ?"]),
        ("GPTK", ["no method and no file", "GPTQ"]),
        ("recpe.yaml", ["did you mean recipe.yaml"]),
        ("recipe.yaml --bits 4", ["no option --bits", "into the recipe"]),
        ("GPTQ(bits=os.getcwd())", ["is not a recipe"]),
    ],
)
def test_a_wrong_recipe_is_answered_with_near_names(here, capsys, words, told):
    assert main(["apply", *words.split(), "--model", "model", "--out", "x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and all(each in said for each in [*told, "what to do"]), said
    assert not Path("x").exists()


def test_probe_measures_one_model_or_the_difference_of_two(here, capsys):
    main(["apply", "RTN", "--bits", "2", "--group-size", "16", "--model", "model", "--out", "two-bits"])
    rows = Path("text.txt").read_text().split("\n\n")
    Path("rows.csv").write_text("text\n" + "\n".join(rows))
    asked = [
        "probe",
        "Perplexity",
        "--text",
        "rows.csv",
        "--context",
        "16",
        "--n",
        "200",
        "--model",
        "two-bits",
        "--seed",
        "3",
    ]
    capsys.readouterr()
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "95% interval" in said and "seed 3" in said and "[" in said
    value = compress_lab.probe(
        compress_lab.load("two-bits"), "perplexity", text="rows.csv", context=16, n=200, seed=3
    ).value
    assert f"{value:.4g}" in said
    assert main([*asked, "--against", "model"]) == 0
    said = capsys.readouterr().out
    assert "ratio" in said and "verdict" in said and f"{value:.4g}" in said
    for words, told in {
        "perplexty": "did you mean perplexity",
        "fidelity": "--against",
        "size --n 3": "no setting 'n'",
    }.items():
        assert main(["probe", *words.split(), "--model", "model"]) == 2 and told in capsys.readouterr().err


def test_export_writes_a_format(here, capsys):
    main(["apply", "RTN", "--group-size", "16", "--symmetric", "--model", "model", "--out", "to-export"])
    capsys.readouterr()
    assert main(["export", "to-export", "--format", "compressed-tensors", "--out", "exported"]) == 0
    assert "exported" in capsys.readouterr().out and Path("exported/config.json").exists()
    assert main(["export", "to-export", "--format", "ggfu", "--out", "x"]) == 2 and "gguf" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "gguf" in capsys.readouterr().out


def test_compare_says_what_a_copy_of_another_tool_lost(here, capsys):
    main(["apply", "RTN", "--group-size", "16", "--symmetric", "--model", "model", "--out", "to-compare"])
    main(["export", "to-compare", "--format", "gptq", "--out", "theirs"])
    capsys.readouterr()
    assert main(["compare", "model", "theirs", "--suite", "size"]) == 0
    said = capsys.readouterr().out
    assert "theirs" in said and "simulated" in said and Path("runs/theirs/dossier.html").exists()
    assert main(["compare", "model", "theirs", "--suite", "size"]) == 0  # everything is stored
    assert main(["compare", "model", "nothing-here", "--suite", "size", "--out", "runs/none"]) == 2


def test_init_writes_a_study_that_loads(here, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0 and "compress-lab run study.yaml" in capsys.readouterr().out
    study = compress_lab.Study.from_yaml("study.yaml")
    assert len(study.recipes) == 3 and study.seeds == (0,)
    before = Path("study.yaml").read_text()
    assert main(["init"]) == 2 and "exists" in capsys.readouterr().err and Path("study.yaml").read_text() == before
    assert main(["init", "nowhere/first.yaml"]) == 2 and "cannot be written" in capsys.readouterr().err


def test_the_study_of_init_runs(here, capsys):
    assert main(["init", "first.yaml"]) == 0
    text = Path("first.yaml").read_text().replace("smollm2-135m", "model").replace("text: wikipedia", "text: text.txt")
    for count in ("length: 256", "context: 256", "context: 128", "group_size: 64"):
        text = text.replace(count, f"{count.split(':')[0]}: 16")
    Path("first.yaml").write_text(text)
    assert main(["run", "first.yaml"]) == 0 and "GPTQ-4" in capsys.readouterr().out


COMMANDS = "init run report card risk apply probe export methods probes tasks suites texts doctor".split()


def test_each_output_fits_eighty_columns(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def lines(*words):
        with suppress(SystemExit):
            main([*words])
        said = capsys.readouterr().out.splitlines()
        assert max(map(len, said)) <= 80 and not any("\u2026" in line for line in said), words
        return said

    helped = lines("--help")
    for name in COMMANDS:
        assert any(line.split()[:1] == [name] for line in helped)
        lines(name, "--help")
    for name in COMMANDS[COMMANDS.index("methods") :]:
        lines(name)
    for words in (["methods", "QAT"], ["probes", "robustness"], ["probe", "task", "--help"]):
        lines(*words)
    assert any(line.startswith("group_size") for line in lines("apply", "GPTQ", "--help"))
    main(["run", "study.yaml", "--out", "runs/my run"])
    capsys.readouterr()
    said = lines("report", "runs/my run")
    for name in ("original", "RTN-4", "half", "2:4 >> GPTQ-4"):
        assert any(line.rstrip() == name for line in said)


def test_a_failing_recipe_gives_exit_code_1_and_the_rest(here, capsys):
    Path("failing.yaml").write_text(
        STUDY.replace("group_size: 16}]\n  half", 'group_size: 16, targets: ["*.no_such"]}]\n  half')
    )
    assert main(["run", "failing.yaml", "--out", "runs/my run"]) == 1
    said = capsys.readouterr().out
    assert (
        "RTN-4" in said and "matches no linear" in said and "what to do" in said and "runs/my run/dossier.html" in said
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "nowhere.yaml"], ["nowhere.yaml", "what to do"]),
        (["run", "recipe.yaml"], ["what to do"]),
        (["run", "study.yaml", "--out", "nosuch://place"], ["nosuch", "what to do"]),
        (["run", "study.yaml", "--out", "text.txt"], ["text.txt", "what to do"]),
        (["report", "nowhere"], ["nowhere", "what to do"]),
        (["apply", "nowhere.yaml", "--model", "model", "--out", "x"], ["nowhere.yaml", "what to do"]),
        (["apply", "recipe.yaml", "--model", "modle", "--out", "x"], ["modle", "what to do"]),
        (["apply", "recipe.yaml", "--model", "model", "--out", "model"], ["choose another name"]),
        (
            ["apply", "recipe.yaml", "--model", "model", "--out", "x", "--calibration", "wikipeda", "--length", "16"],
            ["wikipedia", "what to do"],
        ),
        (
            ["apply", "recipe.yaml", "--model", "model", "--out", "x", "--calibration", "text.txt", "--n", "0"],
            ["what to do"],
        ),
    ],
)
def test_errors_say_what_to_do_and_show_no_traceback(here, capsys, arguments, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said and all(word in said for word in words), said
    assert not Path("x").exists()


def test_debug_shows_the_traceback(here):
    with pytest.raises(compress_lab.CompressLabError):
        main(["run", "nowhere.yaml", "--debug"])


@pytest.mark.parametrize(
    "arguments",
    [["rnu"], ["run", "a", "b"], ["apply"], ["apply", "r.yaml", "--model", "m", "--out", "o", "--n", "many"]],
)
def test_wrong_arguments_show_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage" in capsys.readouterr().err


def test_lists(capsys):
    for name in ("methods", "probes", "tasks", "suites", "texts", "doctor"):
        assert main([name]) == 0
    said = capsys.readouterr().out
    for words in (
        "GPTQ",
        "group_size=",
        "calibration",
        "Frantar",
        "perplexity",
        "context=512",
        "torch",
        "avx" if os.uname().machine == "x86_64" else "processor",
        "cache",
        "trust-small",
        "arc_easy",
        "CC-BY-SA",
    ):
        assert words in said, words
    for module, (package, _) in EXTRAS.items():
        assert (f"pip install {package}:" in said) == (find_spec(module) is None), module


def test_one_method_and_one_probe(capsys):
    assert main(["methods", "GPTQ"]) == main(["probes", "Perplexity"]) == 0
    said = capsys.readouterr().out
    for words in (
        "group_size",
        "consecutive inputs that share a scale",
        "Frantar",
        "https://arxiv.org",
        "context",
        "512",
        "maximum tokens in a window",
    ):
        assert words in said, words


def test_help_comes_at_once():
    times = []
    for _ in range(3):
        began = time.perf_counter()
        said = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
        times.append(time.perf_counter() - began)
    assert "doctor" in said and min(times) < 1


def test_version():
    said = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"compress-lab {compress_lab.__version__}\n"


def test_a_mistyped_name_is_answered_with_the_nearest(tmp_path, monkeypatch, capsys):
    from compress_lab.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "small-study.yaml").write_text("recipes: {}")
    (tmp_path / "runs" / "starter").mkdir(parents=True)
    with pytest.raises(SystemExit):
        main(["doctr"])
    assert "did you mean doctor?" in capsys.readouterr().err
    assert main([]) == 0 and "doctor" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["run", "--oot", "x"])
    assert "did you mean --out" in capsys.readouterr().err
    for kind, name, meant in (("methods", "GPTK", "GPTQ"), ("probes", "Perplexty", "perplexity")):
        assert main([kind, name]) == 2
        assert f"did you mean {meant}" in capsys.readouterr().err
    for arguments, words in {
        ("run", "smal-study.yaml"): "did you mean small-study.yaml?",
        ("report", "runs/startr"): "did you mean starter?",
        ("run", "small-study.yaml"): "no subject and no probes",
    }.items():
        assert main(arguments) == 2 and words in (told := capsys.readouterr().err)
        assert arguments[1] in told


def test_every_message_about_a_study_names_its_file(tmp_path, capsys):
    from compress_lab.cli import main

    file = tmp_path / "odd.yaml"
    for text in (
        "subject: x\nrecipes: {}\nprobes: []",
        "subject: x\nrecipes: {a: [{method: GPTK}]}\nprobes: [size]",
        "subject: ''\nrecipes: {}\nprobes: [size]",
        "subject: x\nrecipes: {}\nprobes: [perplexety]",
    ):
        file.write_text(text)
        assert main(["run", str(file)]) == 2 and str(file) in capsys.readouterr().err


SIGNS = """
from dataclasses import dataclass
import compress_lab as cl
import pandas as pd
from compress_lab.models.layers import linears

@dataclass(frozen=True)
class Signs(cl.LayerMethod):
    "Signs, times the mean magnitude of the row."
    def compress(self, weight, statistic): return cl.Compressed(weight.sign() * weight.abs().mean(1, keepdim=True))

@dataclass(frozen=True)
class Magnitudes(cl.Probe):
    "How many magnitudes a row has."
    name = "magnitudes"
    metrics = (cl.Metric("magnitudes", "", None, "count"),)
    sampled = None

    def measure(self, subject, original=None, *, seed=0):
        rows = [row for each in linears(subject.model) if each.block is not None for row in each.weight]
        counts = [len(row.detach().abs().unique()) for row in rows]
        return cl.Records(pd.DataFrame({"item": range(len(rows)), "count": counts}), self, subject.fingerprint)
"""
OWN = """
imports: [{imports}]
subject: model
calibration: {{text: text.txt, n: 4, length: 16}}
recipes:
  signs: [{{method: Signs}}]
  RTN-4: [{{method: RTN, bits: 4, group_size: 16}}]
probes: [{{probe: magnitudes}}]
"""


@pytest.fixture
def own(here):
    "A folder with a file of a method and a probe, and studies of them."
    folder = here / "own"
    folder.mkdir(exist_ok=True)
    (folder / "my_methods.py").write_text(SIGNS)
    (folder / "told.yaml").write_text(OWN.format(imports=""))
    (folder / "study.yaml").write_text(OWN.format(imports="my_methods.py"))
    return folder


def test_a_study_of_own_methods_imports_their_file(own, here, capsys):
    process = start(here, "run", "own/study.yaml", "--out", "runs/own")
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    store = Store("runs/own")
    results = [store.get(key).result for key in store.current()]
    values = {result["recipe"]: result["values"]["magnitudes"]["value"] for result in results}
    assert values["signs"] == 1 and values["original"] > values["RTN-4"] > 1  # in a row of signs there is one magnitude
    assert main(["run", "runs/own/study.yaml", "--out", "runs/own"]) == 0  # what is kept finds the file from there
    assert capsys.readouterr().out.count("  stored\n") == 3
    (own / "my_methods.py").write_text(SIGNS.replace("weight.sign() *", "0.5 * weight.sign() *"))
    assert main(["run", "own/study.yaml", "--out", "runs/own"]) == 0
    assert capsys.readouterr().out.count("  stored\n") == 0  # the probe is in that file too


def test_a_file_of_ones_own_for_any_command(own, capsys, monkeypatch):
    Path("signs.yaml").write_text("- {method: Signs}\n")
    assert main(["apply", "signs.yaml", "--model", "model", "--out", "signs", "--import", "own/my_methods.py"]) == 0
    assert "Signs" in capsys.readouterr().out
    weight = compress_lab.load("signs").model.model.layers[0].mlp.up_proj.weight
    before = compress_lab.load("model").model.model.layers[0].mlp.up_proj.weight
    assert (weight - before.sign() * before.abs().mean(1, keepdim=True)).abs().max() < 1e-6
    assert main(["run", "own/told.yaml", "--out", "runs/told", "--import", "own/my_methods.py"]) == 0
    assert "imports:\n- ../../own/my_methods.py" in Path("runs/told/study.yaml").read_text()
    monkeypatch.delitem(Method.registry, "Signs")
    assert main(["run", "own/told.yaml", "--out", "runs/untold"]) == 2
    said = capsys.readouterr().err
    assert "There is no method 'Signs'" in said and "--import" in said


@pytest.mark.parametrize(
    "text, words",
    [
        (None, ["There is no file my_methods.py", "own/study.yaml", "relative to its file"]),
        ("import os\nos.nothing\n", ["raises AttributeError", "my_methods.py, line 2", "what to do"]),
        ("x = 1\n", ["no Method and no Probe", "cl.LayerMethod"]),
        (SIGNS.replace("class Signs", "class GPTQ"), ["already a 'GPTQ'", "another name"]),
        (
            SIGNS.replace("def compress", "def squeeze"),
            ["Signs does not say how to compress", "define compress(self, weight"],
        ),
    ],
)
def test_what_cannot_be_imported_is_said(own, capsys, text, words):
    if text is None:
        (own / "my_methods.py").unlink()
    else:
        (own / "my_methods.py").write_text(text)
    assert main(["run", "own/study.yaml", "--out", "runs/wrong"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said and all(word in said for word in words), said
    assert not Path("runs/wrong").exists()


def test_nothing_is_imported_where_nobody_runs_the_study(own, here):
    (own / "my_methods.py").write_text("raise SystemExit('it ran')")
    Study, told = compress_lab.Study, "asks to import"
    with pytest.raises(compress_lab.CompressLabError, match=told):
        Study.from_yaml("own/study.yaml")
    with pytest.raises(compress_lab.CompressLabError, match=told):
        Study.from_dict({"imports": ["own/my_methods.py"]})
