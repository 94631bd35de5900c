"What a notebook cell cannot show of the store: killed writers, races, damage of every kind, full disks."

import errno
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_lab.core import store as module
from compress_lab.core.errors import CompressLabError
from compress_lab.core.store import DamagedCell, Store

FRAME = pd.DataFrame({"nll": [1.5, 2.5], "tokens": [3, 4], "title": ["a", "b"]})


def script(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def leftovers(store):
    return [path.name for path in Path(store.cells).glob(".tmp-*")]


WRITER = """
    import sys, pandas as pd
    from compress_lab.core.store import Store
    store, start = Store(sys.argv[1]), int(sys.argv[2])
    frame = pd.DataFrame({"x": range(2000)})
    for number in range(start, start + 10_000):
        store.put(f"cell-{number}", {"number": number}, frame)
        print(number, flush=True)
"""


def test_killed_writers_lose_nothing_and_leave_no_half_cell(tmp_path):
    store, chance = Store(tmp_path), random.Random(0)
    for attempt in range(4):
        writer = script(WRITER, tmp_path, attempt * 10_000)
        told = [int(writer.stdout.readline())]
        time.sleep(chance.uniform(0.02, 0.3))
        writer.kill()
        writer.wait()
        told += [int(line) for line in writer.stdout.read().split()]
        for number in told:
            assert store.get(f"cell-{number}").result == {"number": number}
    for key in store.keys():
        assert len(store.get(key).frame) == 2000
    store.sweep()
    assert not leftovers(store)
    store.put("after", {})
    assert store.has("after")


def test_two_processes_write_the_same_cells(tmp_path):
    code = """
        import sys
        from compress_lab.core.store import Store
        store, me = Store(sys.argv[1]), sys.argv[2]
        print("ready", flush=True)
        for number in range(60):
            seen = store.put(f"cell-{number}", {"by": me}).result["by"]
            print(number, seen, flush=True)
    """
    both = [script(code, tmp_path, name) for name in ("one", "two")]
    lines = [process.communicate(timeout=60)[0].split("\n")[1:-1] for process in both]
    assert all(process.returncode == 0 for process in both)
    store = Store(tmp_path)
    stored = [f"{number} {store.get(f'cell-{number}').result['by']}" for number in range(60)]
    assert lines[0] == lines[1] == stored and not leftovers(store)


def test_a_lock_dies_with_its_process_and_waiting_ends(tmp_path):
    holder = script(
        """
        import sys, time
        from compress_lab.core.store import Store
        with Store(sys.argv[1]).lock("arm") as mine:
            print(mine, flush=True); time.sleep(60)
    """,
        tmp_path,
    )
    assert holder.stdout.readline() == "True\n"
    store = Store(tmp_path)
    with store.lock("arm") as mine:
        assert not mine
    holder.kill()
    holder.wait()
    with store.lock("arm", wait=True) as mine:
        assert mine


@pytest.mark.parametrize("name", ["records.parquet", "environment.json", "result.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
def test_damage_is_named_or_the_cell_counts_as_missing(tmp_path, name, damage):
    store = Store(tmp_path)
    store.put("cell", {"value": 1}, FRAME)
    path = Path(store.at("cell"), name)
    data = path.read_bytes()
    middle = len(data) // 2
    match damage:
        case "truncate":
            path.write_bytes(data[:middle])
        case "flip":
            path.write_bytes(data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :])
        case "empty":
            path.write_bytes(b"")
        case "remove":
            path.unlink()
    if (name, damage) == ("result.json", "remove"):
        assert store.get("cell") is None and not store.has("cell")
    else:
        with pytest.raises(DamagedCell, match="cell") as caught:
            store.get("cell")
        assert name in str(caught.value) and "what to do" in str(caught.value)
    store.discard("cell")
    assert store.put("cell", {"value": 2}, FRAME).result == {"value": 2}


def test_a_changed_figure_is_noticed(tmp_path):
    store = Store(tmp_path)
    store.put("cell", {"value": 27.37}, FRAME)
    path = Path(store.at("cell"), "result.json")
    path.write_text(path.read_text().replace("27.37", "26.37"))
    with pytest.raises(DamagedCell):
        store.get("cell")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "3",
        '{"files": 3}',
        '{"files": {"../../x": {}}}',
        '{"value": 1}',
        '{"files": {"records.parquet": 1}}',
        "[" * 9999,
        "\xff",
    ],
)
def test_other_json_in_the_place_of_a_result(tmp_path, text):
    store = Store(tmp_path)
    store.put("cell", {}, FRAME)
    Path(store.at("cell"), "result.json").write_text(text, encoding="latin-1")
    with pytest.raises(DamagedCell):
        store.get("cell")


def test_a_killed_discard_does_not_block_the_next_put(tmp_path):
    store = Store(tmp_path)
    store.put("cell", {"value": 1}, FRAME)
    Path(store.at("cell"), "result.json").unlink()
    assert store.put("cell", {"value": 2}).result == {"value": 2} and store.get("cell").frame is None


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses(tmp_path, monkeypatch, call, number):
    store = Store(tmp_path)
    store.put("before", {}, FRAME)

    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(CompressLabError) as caught:
            store.put("cell", {}, FRAME)
    assert ("disk is full" in str(caught.value)) == (number == errno.ENOSPC) and "what to do" in str(caught.value)
    assert store.keys() == ["before"] and not leftovers(store)
    assert store.put("cell", {"value": 2}).result == {"value": 2}


def test_a_full_disk_at_each_file(tmp_path, monkeypatch):
    for spared in range(3):
        store, left = Store(tmp_path / str(spared)), [spared]

        def fill(path, data, left=left):
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            left[0] -= 1
            path.write_bytes(data)

        with monkeypatch.context() as patched:
            patched.setattr(module, "write_file", fill)
            with pytest.raises(CompressLabError, match="full"):
                store.put("cell", {}, FRAME)
            with pytest.raises(CompressLabError, match="full"):
                store.write_text("study.yaml", "a")
        assert store.keys() == [] and not leftovers(store) and store.read_text("study.yaml") is None


INTERRUPTED = """
import signal, sys
from compress_lab.core import store
signal.signal(signal.SIGINT, signal.default_int_handler)
write = store.write_file
def interrupted(path, data):
    signal.raise_signal(signal.SIGINT)
    write(path, data)
store.write_file = interrupted
try: store.Store(sys.argv[1]).put("cell", {"value": 1})
except KeyboardInterrupt: print("interrupted")
"""


def test_ctrl_c_while_writing_keeps_the_cell(tmp_path):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "interrupted\n", done.stderr
    assert Store(tmp_path).get("cell").result == {"value": 1}


def test_an_object_store_counts_a_cell_only_with_its_result(monkeypatch):
    store = Store("memory://object-store")
    write = store.fs.pipe_file

    def dies(path, data):
        if path.endswith("result.json"):
            raise OSError(errno.EIO, "gone")
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(type(store.fs), "pipe_file", staticmethod(dies))
        with pytest.raises(CompressLabError):
            store.put("cell", {}, FRAME)
    assert store.fs.exists(f"{store.at('cell')}/records.parquet") and store.get("cell") is None and store.keys() == []
    assert store.put("cell", {"value": 1}).frame is None and store.keys() == ["cell"]
    store.discard("cell")
    assert store.keys() == []


@pytest.mark.parametrize("name", ["plain", "with space", "ünï", "a[1]*?"])
def test_roots(tmp_path, name):
    for root in (tmp_path / name, str(tmp_path / name), f"file://{tmp_path / name}"):
        store = Store(root)
        store.put("cell", {"value": 1}, FRAME)
        assert store.keys() == ["cell"] and store.local
    assert Store(tmp_path / "nowhere").keys() == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text().filter(lambda key: key != "files"), json_values))
def test_any_json_comes_back(result):
    store = Store("memory://round-trip")
    store.discard("cell")
    try:
        cell = store.put("cell", result)
    except CompressLabError as error:
        assert "surrogates" in str(error)
    else:
        assert cell.result == json.loads(json.dumps(result))


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_no_key_leaves_the_folder(key):
    store = Store("memory://keys")
    try:
        path = store.at(key)
    except CompressLabError:
        return
    assert path == f"{store.cells}/{key}" and "/" not in key and key not in (".", "..")
