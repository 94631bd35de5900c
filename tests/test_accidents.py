"Accidents of disks, memory and clocks: what was stored stays, and what failed is measured later, alone."

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import study_tiny as tiny
from test_attacks_machine import cache  # noqa: F401

from compress_lab.core import leases as leasing
from compress_lab.core.errors import CompressLabError
from compress_lab.core.leases import EXPIRY, Leases
from compress_lab.core.store import Store, different
from compress_lab.models import starters
from compress_lab.study import failures


@pytest.fixture(scope="module")
def model():
    return tiny.subject()


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    "The store of an undisturbed study."
    root = tmp_path_factory.mktemp("whole") / "run"
    tiny.study((0.1,)).run(root, subject=model)
    return Store(root)


def check_same(root, whole):
    store = Store(root)
    assert store.keys() == whole.keys() and not failures(store)
    assert not [key for key in whole.keys() if different(store.get(key), whole.get(key))]
    assert not list(Path(root, "cells").glob(".tmp-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="the size of a file is limited on POSIX")
@pytest.mark.parametrize("most", [150, 2000])
def test_a_file_that_cannot_be_written_whole_is_not_there(most, whole, model, tmp_path, capsys):
    import resource

    root, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(CompressLabError, match="[Ww]rit"):
            tiny.study((0.1,)).run(root, subject=model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finished = Store(root).keys() if root.exists() else []
    assert len(finished) < len(whole.keys()) and all(Store(root).get(key) for key in finished)
    tiny.study((0.1,)).run(root, subject=model)
    check_same(root, whole)


@pytest.fixture
def disk(tmp_path):
    "A small disk, and a function that mounts it with options, such as its size, or read-only."
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options, first=False):
        kind = ["-t", "tmpfs", "tmpfs"] if first else []
        done = subprocess.run(["mount", "-o", options, *kind, str(place)], capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stderr

    if shutil.which("mount") is None or mount("size=24k", first=True):
        pytest.skip("no disk can be mounted here")
    yield place, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_the_study_and_room_resumes_it(disk, whole, model):
    place, mount = disk
    with pytest.raises(CompressLabError, match="The disk is full"):
        tiny.study((0.1,)).run(place / "run", subject=model)
    finished = Store(place / "run").keys()
    assert len(finished) < len(whole.keys()) and all(Store(place / "run").get(key) for key in finished)
    mount("size=10m")
    tiny.study((0.1,)).run(place / "run", subject=model)
    check_same(place / "run", whole)


def test_a_read_only_cache_gives_what_it_has(disk, cache, monkeypatch):  # noqa: F811
    place, mount = disk
    monkeypatch.setenv("COMPRESS_LAB_CACHE", str(place))
    mount("ro")
    with pytest.raises(CompressLabError, match="COMPRESS_LAB_CACHE"):
        starters.fetch("some")
    mount("rw,size=10m")
    starters.fetch("some")
    mount("ro")
    assert (starters.fetch("some") / "data.txt").read_text() == "data"


def test_a_read_only_run_folder_is_named_and_still_read(disk, whole, model):
    place, mount = disk
    mount("size=10m")
    tiny.study((0.1,)).run(place / "run", subject=model)
    mount("ro")
    with pytest.raises(CompressLabError, match="Read-only file system"):
        tiny.study((0.1, 0.3)).run(place / "run", subject=model)
    check_same(place / "run", whole)


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400, 3600])
def test_a_clock_that_jumps_neither_ends_nor_prolongs_a_lease(jump, tmp_path, monkeypatch):
    store, real, steady = Store(tmp_path), time.time, [0.0]
    monkeypatch.setattr(leasing.time, "monotonic", lambda: steady[0])
    mine, others = Leases(store).claim("arm"), Leases(store)
    mine.write(node="elsewhere")  # so that its process cannot be asked
    assert others.claim("arm") is None
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    store.sweep()
    steady[0] = EXPIRY - 1
    assert others.claim("arm") is None, "only the time since this process first looked counts"
    mine.write(beat=1)
    steady[0] = 2 * EXPIRY - 2
    assert others.claim("arm") is None, "a heartbeat begins the time anew"
    steady[0] += EXPIRY + 1
    assert others.claim("arm").state["deaths"] == {"": 1}


@dataclass(frozen=True)
class Greedy(tiny.Zeros):
    "Cannot have the memory that it asks for."

    name: ClassVar[str] = "tiny-greedy"

    def measure(self, subject, original=None, *, seed=0):
        if subject.history:
            raise MemoryError("Unable to allocate 3.2 TiB")
        return super().measure(subject, original, seed=seed)


def test_a_cell_without_enough_memory_fails_alone_and_says_what_to_change(model, tmp_path):
    root = tmp_path / "run"
    tiny.study((0.1,), probes=(Greedy(), tiny.Zeros())).run(root, subject=model)
    store = Store(root)
    results = [store.get(key).result for key in store.keys()]
    failed = [result for result in results if result["status"] != "measured"]
    assert len(results) == 4 and [result["probe"] for result in failed] == ["tiny-greedy"]
    for result in failed:
        for part in ("3.2 TiB", "the original takes", "GiB are free", "bfloat16", "the next run tries again"):
            assert part in result["reason"], result["reason"]
    assert json.dumps(failed).count(str(tmp_path)) == 0
