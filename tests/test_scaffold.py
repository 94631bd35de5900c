"What `compress-lab new` writes is a notebook of its project at once: exported, registered, run, tested, on the site."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from notebook_files import ROOT

from compress_lab.cli import main
from compress_lab.core.errors import CompressLabError
from compress_lab.core.files import own_data
from compress_lab.scaffold import KINDS, new_book, new_notebook
from compress_lab.site.project import Project

NAMES = {"method": "MeanWanda", "probe": "undecided", "task": "plurals", "paper": "smith-2024", "tutorial": "few bits"}
EXPORT = "from nbdev.doclinks import nbdev_export; nbdev_export()"


def run(folder, *words, path=ROOT):
    "What a command of Python prints in a folder, whose package and that of this repository are found."
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(path)]), "COLUMNS": "100"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
    return done.stdout


def install(folder):
    "Exports the notebooks of a project, and writes its entry points as pip does."
    run(folder, "-c", EXPORT)
    run(folder, "setup.py", "-q", "egg_info")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    "A book with a notebook of each kind, exported."
    files = new_book("small-models", tmp_path_factory.mktemp("book"))
    folder = next(path.parent for path in files if path.name == "settings.ini")
    for kind, name in NAMES.items():
        new_notebook(kind, name, start=folder)
    install(folder)
    return Project.read(folder)


def test_there_is_a_case_for_each_kind_and_template():
    used = {f"{kind}.md" for kind in KINDS} | {name for kind in KINDS.values() for name in kind.beside}
    assert set(NAMES) == set(KINDS) and used == {path.name for path in own_data("new").iterdir() if path.is_file()}


def test_a_book_lists_its_methods_and_probes(book):
    asked = "from compress_lab.cli import main; main(['methods', 'MeanWanda']); main(['probes', 'undecided'])"
    said = run(book.folder, "-c", asked)
    assert "sparsity" in said and "mean absolute input" in said and "entropy" in said
    module = (book.package_folder / "methods/mean_wanda.py").read_text()
    assert (
        "class MeanWanda(CalibratedLayerMethod)" in module and (book.package_folder / "probes/undecided.py").is_file()
    )


def test_a_book_has_no_name_of_this_project_where_its_own_belongs(book):
    for name in ("settings.ini", "pytest.ini", "setup.py", ".github/workflows/test.yml"):
        text = (book.folder / name).read_text()
        assert "compress_lab" not in text.replace("compress-lab/compress_lab", "").replace(
            "compress_lab@git", ""
        ).replace("compress_lab[docs,test]@git", "").replace('f"compress_lab.{group}"', ""), name
    assert "small_models" in (book.folder / "settings.ini").read_text()


def test_the_command_says_what_is_written_and_what_is_in_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "tutorial", "first"]) == 2 and "compress-lab new book NAME" in capsys.readouterr().err
    assert main(["new", "book", "birds"]) == 0 and "birds/nbs/index.ipynb" in capsys.readouterr().out
    monkeypatch.chdir("birds/nbs")
    for _ in range(2):
        code, said = main(["new", "probe", "Loudness", "--folder", "ears"]), capsys.readouterr()
    assert code == 2 and "There is a page ears/loudness already" in said.err
    assert (
        Path("ears/01_loudness.ipynb").is_file()
        and "Loudness=birds.ears.loudness" in Path("../settings.ini").read_text()
    )
    for words, part in (
        (["chapter", "one"], "There is no kind"),
        (["method", "Wanda"], "is taken"),
        (["paper", "gptq"], "smith-2024"),
        (["task", "naïve"], "cannot be the name"),
        (["task", "up", "--folder", "../.."], "not a folder"),
        (["book", "numpy"], "a module numpy"),
    ):
        assert main(["new", *words]) == 2 and part in capsys.readouterr().err


def test_a_project_that_reads_no_groups_is_told_what_to_add(tmp_path, monkeypatch, capsys):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = birds\nuser = ada\n")
    (tmp_path / "setup.py").write_text("from setuptools import setup; setup()\n")
    monkeypatch.chdir(tmp_path)
    assert main(["new", "method", "Damped"]) == 0
    assert 'entry_points={"compress_lab.methods"' in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs/tasks").write_text("a file where a folder should be")
    settings = "[DEFAULT]\nlib_name = birds\nuser = ada\n"
    (tmp_path / "settings.ini").write_text(settings)
    with pytest.raises(CompressLabError, match="cannot be written"):
        new_notebook("task", "plurals", start=tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["nbs", "settings.ini", "tasks"]


def test_the_tests_of_a_book_pass(book):
    said = run(book.folder, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "passed" in said and "failed" not in said
    for kind, name in NAMES.items():
        assert list(book.notebooks.glob(f"{KINDS[kind].folder}/01_*.ipynb")), (kind, name)


def test_the_site_of_a_book_has_all_its_pages(book):
    run(book.folder, "-m", "compress_lab.site", "build")
    pages = {path.relative_to(book.site).as_posix() for path in book.site.rglob("*.html")}
    names = "methods/mean_wanda probes/undecided tasks/plurals papers/smith_2024 tutorials/few_bits index"
    assert {f"{name}.html" for name in names.split()} <= pages and "methods/index.html" in pages
    first = (book.site / "index.html").read_text()
    assert "Mean wanda" in first and "Tutorials" in first and "_static/house.css" in first
    page = (book.site / "methods/mean_wanda.html").read_text()
    assert "<math" in page and 'id="meanwanda"' in page and "share of each row, 0 to 1" in page


def test_each_kind_is_a_notebook_of_this_repository_at_once(tmp_path):
    clone = tmp_path / "clone"
    unneeded = shutil.ignore_patterns(".git", ".venv", "_docs", "build", "dist", "runs", "__pycache__", ".hypothesis")
    shutil.copytree(ROOT, clone, ignore=unneeded)
    made = [new_notebook(kind, name, start=clone)[0].relative_to(clone / "nbs") for kind, name in NAMES.items()]
    assert [path.parent.as_posix() for path in made] == ["prune", "evaluate", "tasks", "papers", "tutorials"]
    run(clone, "-c", EXPORT, path=clone)
    run(clone, "setup.py", "-q", "egg_info", path=clone)
    tests = [f"tests/test_{name}.py" for name in ("clean", "export", "notebooks", "project", "paper_claims")]
    others = ["test_ruff", "test_every_paper", "test_planned", "(entry_points and (methods or probes))"]
    chosen = " or ".join([*(path.stem for path in made), *others])
    plain = ("-q", "-n", "0", "-p", "no:cacheprovider", "--flags", "sweep")
    said = run(clone, "-m", "pytest", *plain, *tests, "-k", chosen, path=clone)
    assert "passed" in said and "failed" not in said
