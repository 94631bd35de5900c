"""What `test_workers` starts: workers as forks of one process, which is quicker than a Python for each, killed or not.

Usage: forked_workers.py SCENARIOS, a JSON file: name -> {study, kills, alone}. Prints what became of each as JSON.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from compress_lab.core.store import Store, untimed
from compress_lab.study import Run, Study, failures, forget_failures, keep_study
from compress_lab.workers import work

torch.set_num_threads(1)  # no threads that a fork would miss
WORKERS = 2


def forked(function, *arguments) -> int:
    "The process id of a child that calls the function."
    if pid := os.fork():
        return pid
    sys.stdout = open(os.devnull, "w")
    code = 1
    try:
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> "int | None":
    "The exit status of a child, negative for a signal; None while it runs."
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def worked(root, kills: int, chance: random.Random) -> tuple[int, int]:
    "Runs workers until the study is done, killing so many. Returns the kills, and the deaths by their own hand."
    killed, died, running = 0, 0, {}
    while True:
        while len(running) < WORKERS:
            running[forked(work, root)] = time.monotonic() + chance.uniform(0.02, 0.6)
        time.sleep(0.005)
        for pid, deadline in [*running.items()]:
            if killed < kills and time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                del running[pid]
                killed += 1
            elif (code := ended(pid)) is not None:
                del running[pid]
                died += code == -signal.SIGKILL
                assert code in (0, -signal.SIGKILL), f"a worker ended with {code}"
                if code == 0:
                    for other in running:  # it finds nothing left
                        os.waitpid(other, 0)
                    return killed, died


def files(root) -> dict[str, object]:
    "The content of every file of every cell; results without their timings, and without the hash of what has them."
    found = {}
    for path in sorted(Path(root, "cells").rglob("*")):
        if path.name == "result.json":
            result = untimed(json.loads(path.read_text()))
            del result["files"]["result.json"]
            found[f"{path.parent.name}/{path.name}"] = json.dumps(result)
        elif path.is_file():
            found[f"{path.parent.name}/{path.name}"] = path.read_bytes()
    return found


def rounds(study: Study, folder: Path, kills: int, alone: bool) -> list[dict]:
    "Runs a study by workers, in new folders until there were so many kills; `alone`: compared with a single process."
    Run(study, folder / "warm") if not alone else study.run(folder / "alone")  # the forks have imported everything
    expected, chance, told = files(folder / "alone"), random.Random(0), []
    while not told or sum(each["killed"] for each in told) < kills:
        root = folder / f"round-{len(told)}"
        keep_study(Store(root), study, None)
        killed, died = worked(root, kills - sum(each["killed"] for each in told), chance)
        failed = failures(Store(root))
        if failed and kills:  # the same part of the work was hit three times: the next run tries again
            forget_failures(Store(root), Store(root).keys())
            work(root)
        found = files(root)
        unlike = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        left = [path.name for path in Path(root, "cells").glob(".tmp-*")]
        told.append(
            dict(killed=killed, died=died, cells=len(Store(root).keys()), unlike=unlike, failed=failed, left=left)
        )
    return told


if __name__ == "__main__":
    found = {}
    for name, (study, kills, alone) in json.loads(Path(sys.argv[1]).read_text()).items():
        Path(f"{name}.yaml").write_text(json.dumps(study))
        with contextlib.redirect_stdout(io.StringIO()):
            found[name] = rounds(Study.from_yaml(f"{name}.yaml", imports=True), Path(name), kills, alone)
    print(json.dumps(found))
