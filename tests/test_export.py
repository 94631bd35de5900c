"""The package and the README are what the notebooks say, no more and no less."""

import shutil
import subprocess
import sys

import pytest
from notebook_files import LIB, MODULES, NBS, PATHS, ROOT, module_path, read

from compress_lab.site.notebooks import page_name
from compress_lab.site.readme import readme_text


def sources(folder):
    "Each Python file below a folder with its text."
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*.py")
        if "__pycache__" not in path.parts
    }


def test_exporting_reproduces_the_package(tmp_path):
    shutil.copytree(NBS, tmp_path / "nbs", ignore=shutil.ignore_patterns(".*", "_static"))
    shutil.copy(ROOT / "settings.ini", tmp_path)
    (tmp_path / "compress_lab").mkdir()
    shutil.copy(LIB / "__init__.py", tmp_path / "compress_lab")
    subprocess.run(
        [sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp_path, check=True
    )
    fresh, committed = sources(tmp_path / "compress_lab"), sources(LIB)
    assert set(fresh) == set(committed), "a module without a notebook, or a notebook not exported: run nbdev_export"
    differ = [name for name in fresh if fresh[name] != committed[name]]
    assert not differ, f"not what the notebooks export: {differ}; run nbdev_export"


def test_every_module_has_a_notebook():
    modules = {path.relative_to(LIB).as_posix() for path in LIB.rglob("*.py")}
    expected = {module_path(module).relative_to(LIB).as_posix() for module in MODULES.values()}
    assert {name for name in modules - expected if not name.endswith("__init__.py")} == {"_modidx.py"}
    assert not expected - modules


@pytest.mark.parametrize("path", MODULES, ids=[path.as_posix() for path in MODULES])
def test_notebook_and_module_have_the_same_address(path):
    assert page_name(path) == MODULES[path].replace(".", "/")


def test_no_two_notebooks_make_one_page():
    names = [page_name(path) for path in PATHS]
    assert len(names) == len(set(names))


def test_readme_is_in_step():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme_text(read("index.ipynb")), (
        "run python -m compress_lab.site readme"
    )


def test_readme_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert -1 < text.index("make demo") < text.index("make test") < 400


def test_only_the_version_and_the_lazy_names_are_written_by_hand():
    assert len((LIB / "__init__.py").read_text(encoding="utf-8").strip().splitlines()) <= 3
    for path in LIB.rglob("__init__.py"):
        assert path.parent == LIB or not path.read_text(encoding="utf-8").strip(), path
