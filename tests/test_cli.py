"The command line from end to end, on a tiny random model and a text written here: no network and no starters."
import os, random, signal, subprocess, sys, time
from pathlib import Path
import pytest
import compress_lab
from compress_lab.cli import main
from compress_lab.core.store import Store

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
    from compress_lab.core.tiny import tiny
    folder, chance = tmp_path_factory.mktemp("cli"), random.Random(0)
    words = [f"w{number}" for number in range(100)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
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
    return subprocess.Popen([COMMAND, *arguments], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def test_a_run_stopped_by_ctrl_c_goes_on_by_the_command_it_prints(here, capsys):
    process, seen = start(here, "run", "study.yaml", "--out", "runs/my run"), []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("RTN-4"): break
    process.send_signal(signal.SIGINT)
    seen += process.communicate(timeout=120)[0].splitlines(keepends=True)
    said, stored = "".join(seen), len(Store("runs/my run").keys())
    assert process.returncode == 130 and "Traceback" not in said, said
    assert 3 <= stored < 11 and f"{stored} of 11 cells are stored" in said
    assert "To go on: compress-lab run study.yaml --out 'runs/my run'" in said
    assert main(["run", "study.yaml", "--out", "runs/my run"]) == 0
    said = capsys.readouterr().out
    assert said.count("  stored\n") == stored and len(Store("runs/my run").keys()) == 11
    for words in ("recipe", "perplexity", "RTN-4", "half", "2:4 >> GPTQ-4", "runs/my run/dossier.html"): assert words in said
    page = Path("runs/my run/dossier.html").read_text()
    assert "RTN-4" in page and "<html" in page

def test_report_shows_the_same_run_elsewhere(here, capsys):
    if not Path("runs/my run").exists(): main(["run", "study.yaml", "--out", "runs/my run"])
    assert main(["report", "runs/my run", "--out", "page.html"]) == 0
    assert "page.html" in capsys.readouterr().out and "GPTQ-4" in Path("page.html").read_text()

def test_apply_saves_a_subject_that_loads(here, capsys):
    assert main(["apply", "recipe.yaml", "--model", "model", "--out", "small", "--calibration", "text.txt", "--n", "4", "--length", "16"]) == 0
    assert "weights touched" in capsys.readouterr().out
    small = compress_lab.load("small")
    assert [entry["method"] for entry in small.history] == ["Wanda", "GPTQ"] and small.simulated
    assert (small.model.model.layers[0].mlp.up_proj.weight == 0).float().mean() >= 0.5
    assert not list(Path(".").glob(".small*"))

def test_a_failing_recipe_gives_exit_code_1_and_the_rest(here, capsys):
    Path("failing.yaml").write_text(STUDY.replace("group_size: 16}]\n  half", "group_size: 16, targets: [\"*.no_such\"]}]\n  half"))
    assert main(["run", "failing.yaml", "--out", "runs/my run"]) == 1
    said = capsys.readouterr().out
    assert "RTN-4" in said and "matches no linear" in said and "what to do" in said and "runs/my run/dossier.html" in said

@pytest.mark.parametrize("arguments, words", [
    (["run", "nowhere.yaml"], ["nowhere.yaml", "what to do"]),
    (["run", "recipe.yaml"], ["what to do"]),
    (["run", "study.yaml", "--out", "nosuch://place"], ["nosuch", "what to do"]),
    (["run", "study.yaml", "--out", "text.txt"], ["text.txt", "what to do"]),
    (["report", "nowhere"], ["nowhere", "what to do"]),
    (["apply", "nowhere.yaml", "--model", "model", "--out", "x"], ["nowhere.yaml", "what to do"]),
    (["apply", "recipe.yaml", "--model", "modle", "--out", "x"], ["modle", "what to do"]),
    (["apply", "recipe.yaml", "--model", "model", "--out", "model"], ["choose another name"]),
    (["apply", "recipe.yaml", "--model", "model", "--out", "x", "--calibration", "wikipeda", "--length", "16"], ["wikipedia", "what to do"]),
    (["apply", "recipe.yaml", "--model", "model", "--out", "x", "--calibration", "text.txt", "--n", "0"], ["what to do"]),
])
def test_errors_say_what_to_do_and_show_no_traceback(here, capsys, arguments, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said and all(word in said for word in words), said
    assert not Path("x").exists()

def test_debug_shows_the_traceback(here):
    with pytest.raises(compress_lab.CompressLabError): main(["run", "nowhere.yaml", "--debug"])

@pytest.mark.parametrize("arguments", [[], ["rnu"], ["run", "a", "b"], ["apply"], ["apply", "r.yaml", "--model", "m", "--out", "o", "--n", "many"]])
def test_wrong_arguments_show_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended: main(arguments)
    assert ended.value.code == 2 and "usage" in capsys.readouterr().err

def test_lists(capsys):
    assert main(["methods"]) == main(["probes"]) == main(["doctor"]) == 0
    said = capsys.readouterr().out
    for words in ("GPTQ", "group_size=", "calibration", "Frantar", "perplexity", "context=512", "torch", "avx" if os.uname().machine == "x86_64" else "processor", "cache", "pip install"):
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
    with pytest.raises(SystemExit): main(["rum"])
    assert "did you mean run?" in capsys.readouterr().err
    assert main([]) == 0 and "doctor" in capsys.readouterr().out
    for arguments, words in {("run", "smal-study.yaml"): "did you mean small-study.yaml?", ("report", "runs/startr"): "did you mean starter?",
                             ("run", "small-study.yaml"): "no subject and no probes"}.items():
        assert main(arguments) == 2 and words in (told := capsys.readouterr().err)
        assert arguments[1] in told


def test_every_message_about_a_study_names_its_file(tmp_path, capsys):
    from compress_lab.cli import main
    file = tmp_path / "odd.yaml"
    for text in ("subject: x\nrecipes: {}\nprobes: []", "subject: x\nrecipes: {a: [{method: GPTK}]}\nprobes: [size]",
                 "subject: ''\nrecipes: {}\nprobes: [size]", "subject: x\nrecipes: {}\nprobes: [perplexety]"):
        file.write_text(text)
        assert main(["run", str(file)]) == 2 and str(file) in capsys.readouterr().err
