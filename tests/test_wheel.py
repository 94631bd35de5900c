"What is installed from a wheel is the whole package, and finds its own files in a folder that is no clone."

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from notebook_files import LIB, ROOT

BUILD = "from setuptools import build_meta; build_meta.build_sdist('dist')"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
USE = """
import sys
from pathlib import Path
import compress_lab as cl
from compress_lab.cli import main
from compress_lab.core.files import own_data
from compress_lab.evaluate.perturbations import Behaviour, behaviour_cases
from compress_lab.evaluate.security import Attack, attacks
from compress_lab.study import contents, sources
here = Path(sys.argv[1])
assert here in Path(cl.__file__).parents and here in own_data().parents
tests = behaviour_cases(Behaviour().templates)
assert len(tests) > 100 and {"name", "number", "place"} < set(tests["test"])
cases, known = attacks(Attack().path, Attack().documents)
assert len(cases) > 100 and [each.name for each in known] == ["injections.yml"] and cases["item"].is_unique
assert [path.name for path in sources({"templates": ""})] == ["behaviour.yml", "injections.yml"]
assert "behaviour.yml" in contents("key", {"path": ""})
assert len(cl.task_files()) > 40 and all(here in path.parents for path in cl.task_files().values())
assert len(cl.rights([{"name": "m", "licence": "Apache-2.0", "role": "model"}], "commercial")) == 1
assert cl.Study.starter().subject == "smollm2-135m"
assert {kind.__module__.split(".")[0] for kind in (*cl.methods().values(), *cl.probes().values())} == {"compress_lab"}
assert cl.Dossier({})._render("page").endswith("</html>")
sys.exit(main(["probes"]))
"""


def run(*command, cwd, **environment):
    "What a command prints; its complaints where it fails."
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel that is built from the source distribution."
    folder = tmp_path_factory.mktemp("wheel")
    for name in "setup.py settings.ini MANIFEST.in constraints.txt README.md LICENSE".split():
        shutil.copy(ROOT / name, folder)
    shutil.copytree(LIB, folder / "compress_lab", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-c", BUILD, cwd=folder)
    [source] = (folder / "dist").glob("*.tar.gz")
    run(*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", str(source), cwd=folder)
    [made] = (folder / "wheels").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "A folder in which the wheel is installed by itself."
    folder = tmp_path_factory.mktemp("installed")
    run(*PIP, "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel), cwd=folder)
    return folder


def test_the_wheel_holds_every_file_of_the_package(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in LIB.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert inside == {path.relative_to(LIB.parent).as_posix() for path in files}
    named = (
        "data/behaviour.yml",
        "data/site.css",
        "data/new/method.md",
        "data/new/book/dot_github/workflows/test.yml",
        "evaluate/licences.yaml",
        "report/templates/page.html",
    )
    assert {f"compress_lab/{name}" for name in named} < inside


def test_it_finds_its_own_files_anywhere(installed, tmp_path):
    said = run(sys.executable, "-c", USE, str(installed), cwd=tmp_path, PYTHONPATH=str(installed))
    assert "behaviour" in said and "attack" in said
