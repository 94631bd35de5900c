"What a hostile folder, a hostile supplier of files and a failing machine can do below the level of models."
import os, re, subprocess, sys, zipfile
from pathlib import Path

import pytest
from compress_lab.core import starters
from compress_lab.core.children import child_environment, python_command
from compress_lab.core.errors import CompressLabError
from compress_lab.core.starters import Starter
from compress_lab.core.subjects import Subject
from compress_lab.core.tiny import tiny
from compress_lab.measure import memory

MODULES = ("random", "json", "torch", "pip", "sitecustomize", "usercustomize", "compress_lab", "numpy", "platformdirs")
START_PROCESSES = {"core/starters.py", "measure/memory.py", "core/store.py"}   # the store asks git and sysctl, which are not Python


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    "A current folder whose modules leave a mark when they are imported; gives the marks."
    here = tmp_path/"hostile"
    for name in MODULES:
        (here/name).mkdir(parents=True)
        code = f"open({str(tmp_path)!r} + '/ran-{name}', 'w').close()\n"
        (here/name/"__init__.py").write_text(code)
        (here/name/"__main__.py").write_text(code)
        if name in ("random", "json", "torch", "sitecustomize", "usercustomize"): (here/f"{name}.py").write_text(code)
    monkeypatch.chdir(here)
    for name in ("PYTHONPATH", "PYTHONUSERBASE"): monkeypatch.setenv(name, os.pathsep.join(filter(None, ("", ".", os.environ.get(name)))) or ".")
    monkeypatch.setenv("PYTHONSTARTUP", "random.py")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return lambda: sorted(path.name for path in tmp_path.glob("ran-*"))


def wheel(folder: Path, package: str, files: dict) -> Path:
    "A small wheel that pip accepts."
    name, version = package.split("==")
    info, path = f"{name}-{version}.dist-info", folder/f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items(): archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_the_current_folder_does_run_in_a_plain_process(hostile):
    subprocess.run([sys.executable, "-c", "import random"], check=True)
    assert "ran-random" in hostile()


def test_a_child_imports_nothing_from_the_current_folder(hostile):
    program = "import random, json, torch, pip, numpy, compress_lab; print(random.randint(1, 1), json.dumps([]), compress_lab.__file__)"
    said = subprocess.run(python_command("-c", program), env=child_environment(), capture_output=True, text=True, check=True).stdout.split()
    assert said[:2] == ["1", "[]"] and not hostile()


def test_a_grandchild_imports_nothing_from_it_either(hostile):
    program = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'random'], check=True)"
    subprocess.run(python_command("-c", program), env=child_environment(), check=True)
    assert not hostile()


def test_the_process_that_measures_memory_is_safe(hostile, tmp_path):
    saved = Subject(tiny("llama", num_hidden_layers=1)).save(tmp_path/"saved")
    found = memory.run(saved, 4, 1)
    assert 0 < found["baseline_bytes"] <= found["loaded_bytes"] <= found["peak_bytes"] and not hostile()


def test_the_process_that_fetches_starters_is_safe(hostile, tmp_path, monkeypatch):
    wheel(tmp_path/"wheels", "some_starter==1.0", {"some/data.txt": "data"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path/"wheels"))
    starter = Starter("some", "text", "some-starter==1.0", {"some/data.txt": "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"}, 1, "")
    monkeypatch.setitem(starters.STARTERS, "some", starter)
    monkeypatch.setenv("COMPRESS_LAB_CACHE", str(tmp_path/"cache"))
    assert (starters.fetch("some")/"data.txt").read_text() == "data" and not hostile()


def test_every_module_that_starts_a_process_is_tested_here(root):
    "Python is started by `python_command` alone; other programs only where the store asks for the machine and the commit."
    texts = {path.relative_to(root/"compress_lab").as_posix(): path.read_text(encoding="utf-8") for path in (root/"compress_lab").rglob("*.py")}
    starts = {name for name, text in texts.items() if re.search(r"\b(subprocess|multiprocessing|os\.spawn|os\.exec|os\.system|os\.popen|pty)\b", text)}
    assert starts == START_PROCESSES, "a new child needs python_command, child_environment and a test here"
    assert [name for name, text in texts.items() if re.search(r"\[\s*(str\()?sys\.executable", text)] == []


@pytest.mark.parametrize("named", ["bin/python", "./python"])
def test_a_relative_interpreter_becomes_absolute(named, monkeypatch):
    monkeypatch.setattr(sys, "executable", named)
    assert python_command("-V")[:2] == [os.path.abspath(named), "-P"]


def test_an_interpreter_without_a_folder_is_not_taken_from_the_current_one(tmp_path, monkeypatch):
    (tmp_path/"python9").write_text("#!/bin/sh\n")
    (tmp_path/"python9").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join(["", ".", "/usr/bin"]))
    monkeypatch.setattr(sys, "executable", "python9")
    with pytest.raises(CompressLabError, match="not known"): python_command()


def test_the_link_of_a_virtual_environment_is_kept(tmp_path, monkeypatch):
    (tmp_path/"python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path/"python"))
    assert python_command()[0] == str(tmp_path/"python")
