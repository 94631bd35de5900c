"""`import compress_lab` is light, the rooms import downwards only, and their notebooks are numbered in that order."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from notebook_files import LIB, PATHS, code, read

import compress_lab

ROOMS = {path.parent.name for path in LIB.glob("*/__init__.py")}
HEAVY = "torch transformers datasets pandas numpy scipy matplotlib nbdev".split()


def fresh(script):
    "What a new interpreter prints."
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_import_is_light():
    found = fresh(f"import sys, compress_lab; dir(compress_lab); print(*sorted(set({HEAVY}) & set(sys.modules)))")
    assert not found.strip()


def test_import_takes_less_than_a_second():
    script = "import time; start = time.perf_counter(); import compress_lab; print(time.perf_counter() - start)"
    assert min(float(fresh(script)) for _ in range(3)) < 1


def test_errors_come_without_torch():
    assert not fresh(
        "import sys, compress_lab; compress_lab.CompressLabError; print('torch' in sys.modules or '')"
    ).strip()


def test_a_listing_of_runs_comes_without_torch():
    "Thousands of cells are listed before torch would be imported."
    modules = "compress_lab.cli, compress_lab.study, compress_lab.core.run_index"
    assert not fresh(f"import sys, {modules}; print('torch' in sys.modules or '')").strip()


@pytest.mark.parametrize("name", sorted(set(dir(compress_lab)) - {"__version__"}))
def test_every_public_name_exists(name):
    assert getattr(compress_lab, name).__name__ == name


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="did you mean"):
        _ = compress_lab.calibraton
    assert not hasattr(compress_lab, "__wrapped__")


def test_rooms_import_downwards_only_and_in_no_circle():
    "The contracts in `.importlinter`, imports inside functions included."
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def imported_by(path):
    "The modules of its own room that the code of a notebook imports."
    room = path.parent.name
    for _, source in code(read(path)):
        for names in re.findall(
            rf"from compress_lab\.{room}\.(\w+) import|from compress_lab\.{room} import (\w+)", source
        ):
            yield "".join(names)


ROOM_NOTEBOOKS = [path for path in PATHS if path.parent.name in ROOMS and path.name != "index.ipynb"]


def test_numbers_of_a_room_are_unique():
    numbers = [(path.parent.name, path.name[:2]) for path in ROOM_NOTEBOOKS]
    assert all(number.isdecimal() for _, number in numbers) and len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("path", ROOM_NOTEBOOKS, ids=str)
def test_a_notebook_imports_no_later_one_of_its_room(path):
    number = {other.stem[3:]: other.stem[:2] for other in ROOM_NOTEBOOKS if other.parent == path.parent}
    assert all(number[name] < path.stem[:2] for name in imported_by(path) if name in number and name != path.stem[3:])
