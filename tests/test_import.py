"""`import compress_lab` is light, and the rooms import downwards only."""

import ast
import subprocess
import sys

import pytest
from notebook_files import LIB

import compress_lab

HEAVY = "torch transformers datasets pandas numpy scipy matplotlib nbdev".split()
FLOORS = [  # from the ground up: a room imports from the floors below its own, and from its own room
    {"core"},
    {"models"},
    {"data"},
    {"compress", "train"},
    {"quantize", "prune", "distill", "evaluate"},
    {"measure"},
    {"runtimes"},
    {"report", "deploy"},
]
BESIDE = {"distill": {"prune"}}  # rooms of the same floor that may be imported
ROOMS = {
    room: {below for lower in FLOORS[:height] for below in lower} | BESIDE.get(room, set())
    for height, floor in enumerate(FLOORS)
    for room in floor
}
FILES = [path for room in ROOMS for path in sorted((LIB / room).rglob("*.py"))]


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


@pytest.mark.parametrize("name", sorted(set(dir(compress_lab)) - {"__version__"}))
def test_every_public_name_exists(name):
    assert getattr(compress_lab, name).__name__ == name


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="did you mean"):
        _ = compress_lab.calibraton
    assert not hasattr(compress_lab, "__wrapped__")


def imported_rooms(path):
    "The rooms a module imports from, and `study`, `cli` and the like, as the code says."
    package = ["compress_lab", *path.relative_to(LIB).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            start = ".".join(part for part in (base, node.module) if part)
            names = [f"{start}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "compress_lab" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(LIB).as_posix() for path in FILES])
def test_rooms_import_downwards_only(path):
    room = path.relative_to(LIB).parts[0]
    assert set(imported_rooms(path)) <= ROOMS[room] | {room}
