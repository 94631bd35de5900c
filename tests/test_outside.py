"A package that was never part of this one adds one thing of each kind, and everything shows it."

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

STUDY = """
subject: model
calibration: {text: counting, n: 4, length: 16}
recipes:
  damped: [{method: Damp, share: 0.2}]
  GPTQ-4: [{method: GPTQ, bits: 4, group_size: 16}]
probes:
- loudness
- {probe: perplexity, text: counting, n: 6, context: 16}
native: {damped: outside-eager}
"""
MODEL = """
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from compress_lab.models.tiny import tiny

words = {word: number for number, word in enumerate(["<unk>", *(f"w{number}" for number in range(95))])}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained("model")
tiny("llama", num_hidden_layers=2).save_pretrained("model")
"""
SCRIPT = """
import json, sys
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import pandas as pd

import compress_lab as cl
from compress_lab.cli import main
from compress_lab.runtimes.graph import backends


def said(*words):
    with redirect_stdout(StringIO()) as out, suppress(SystemExit):
        code = main([*words])
        assert code == 0, (words, code, out.getvalue())
    return " ".join(out.getvalue().split())


class Calm:
    "Classifies by the number of exclamation marks."
    fingerprint = "calm"

    def predict(self, texts):
        return [[0.0, 1.0 - 2.0 * (text.count("!") > 1)] for text in texts]


helped = said("export", "--help")
imported = "outside" in sys.modules
items = pd.DataFrame({"text": ["all is well here", "nothing is lost"], "label": [1, 1]})
found = {
    "help": helped,
    "imported": imported,
    "text": cl.text("counting").provenance.source,
    "perturbed": cl.perturb("all is well", "shout"),
    "lost": cl.Robustness(kinds="shout").measure(Calm(), items=items).values["lost_shout"],
    "public": [name for name in ("Damp", "Loudness") if getattr(cl, name).__module__ == "outside" and name in dir(cl)],
    "methods": [*cl.methods()],
    "probes": [*cl.probes()],
    "formats": [*cl.export_formats().index],
    "backends": [*backends()],
    "said": {name: said(*words) for name, words in {
        "methods": ["methods"],
        "method": ["methods", "Damp"],
        "probes": ["probes"],
        "probe": ["probes", "loudness"],
        "texts": ["texts"],
        "apply": ["apply", "Damp", "--share", "0.5", "--model", "model", "--out", "small"],
        "export": ["export", "small", "--format", "plain", "--out", "exported"],
        "run": ["run", "study.yaml", "--out", "runs/study"],
    }.items()},
}
dossier = cl.Dossier.from_run("runs/study")
found["axes"] = dossier.axes()[["recipe", "axis", "figure"]].values.tolist()
found["recipes"] = list(dossier.recipes)
found["columns"] = dossier.table()["mean square"].to_dict()
found["page"] = Path("runs/study/dossier.html").read_text()
print(json.dumps(found))
"""

FILES = {
    "format": "from compress_lab.deploy.export import Format\nclass Mine(Format):\n    name = 'mine'\n",
    "backend": """
from compress_lab.core.registry import BACKENDS
from compress_lab.runtimes.graph import Backend
BACKENDS["mine"] = Backend(lambda job: job.model, "as it is")
""",
    "text": """
from compress_lab.data.texts import DataProvenance, Document, text_source
@text_source(DataProvenance("mine", "a file"), "one line")
def mine():
    return [Document("a", "a", "a")]
""",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "What one fresh process sees where the package is installed."
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(ROOT / "tests" / "outside", folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *quiet, "--target", folder / "site", folder / "source"], check=True
    )
    (folder / "study.yaml").write_text(STUDY)
    path = os.pathsep.join([str(folder / "site"), *filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", MODEL + SCRIPT],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "COMPRESS_LAB_PROGRESS": "0", "COLUMNS": "80"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_help_names_the_format_without_importing_it(found):
    assert "plain" in found["help"] and "gguf" in found["help"] and not found["imported"]


def test_a_method(found):
    assert "Damp" in found["methods"] and "GPTQ" in found["methods"]
    assert found["public"] == ["Damp", "Loudness"]
    assert "smaller by a share" in found["said"]["methods"] and "share" in found["said"]["method"]
    assert "Damp" in found["said"]["apply"] and "damped" in found["recipes"]


def test_a_probe_and_its_axis_in_the_dossier(found):
    assert "loudness" in found["probes"] and "loudness" in found["said"]["probes"]
    assert "square" in found["said"]["probe"]
    assert ["damped", "volume", "loudness: square"] in found["axes"]
    assert "volume" in found["page"] and "loudness: square" in found["page"]
    assert 0.64 < found["columns"]["damped"] < 0.75  # weights 0.8 times as large, and a head that is left alone


def test_an_export_format(found):
    assert "plain" in found["formats"] and "gguf" in found["formats"]
    assert "plain" in found["said"]["export"] and "read back" in found["said"]["export"]


def test_a_backend_in_its_place_and_in_a_study(found):
    names = found["backends"]
    assert names.index("eager-bf16") < names.index("outside-eager") < names.index("openvino")
    assert "damped on outside-eager" in found["recipes"] and "damped on outside-eager" in found["page"]


def test_a_text(found):
    assert found["text"] == "the package outside"
    assert "counting" in found["said"]["texts"] and "CC0-1.0" in found["said"]["texts"]
    assert "wikipedia" in found["said"]["texts"]


def test_a_perturbation(found):
    assert found["perturbed"] == "all! is! well!" and found["lost"] == 1


@pytest.mark.parametrize("kind", ["format", "backend", "text"])
def test_a_file_with_nothing_else_is_taken(kind, tmp_path):
    from compress_lab.core.registry import REGISTRIES
    from compress_lab.study import import_own

    (registry,) = [registry for registry in REGISTRIES if registry.kind == kind]
    file = tmp_path / f"my_{kind}.py"
    file.write_text(FILES[kind])
    import_own(str(file))
    file.write_text(FILES[kind].replace("mine", "other"))
    import_own(str(file))
    assert "other" in registry and "mine" not in registry
    del registry["other"]
