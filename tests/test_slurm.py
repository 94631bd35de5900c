"""A real Slurm of one node, started for this test, runs a study as job arrays. Skipped where it is not installed."""

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from test_workers import RECIPES, run_in, study

from compress_lab.core.store import Store, different

PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)) or os.geteuid() != 0,
    reason="needs slurm-wlm and munge, and root, who may start them",
)

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={first}
SlurmdPort={second}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP
"""


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    "Starts the daemons in a folder and waits for the node; ends them afterwards."
    folder, running = tmp_path / "slurm", []
    (folder / "state").mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    ports = dict(first=free_port(), second=free_port())
    text = CONFIG.format(host=host, folder=folder, cores=os.cpu_count(), **ports)
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    for path in (folder, *folder.parents):
        path.chmod(0o755) if path.is_relative_to("/tmp/pytest-of-root") else None
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munged += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    for command in (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", host]):
        with open(folder / f"{command[0]}.out", "w") as output:
            running.append(subprocess.Popen(command, stdout=output, stderr=output))
        time.sleep(1)
    for _ in range(60):
        state = subprocess.run(["sinfo", "--noheader", "-o", "%t"], capture_output=True, text=True).stdout.strip()
        if state.startswith("idle"):
            break
        time.sleep(1)
    else:
        logs = "\n".join(path.read_text()[-2000:] for path in (*folder.glob("*.out"), *folder.glob("*.log")))
        pytest.fail(f"the node is {state!r}\n{logs}")
    yield
    for process in reversed(running):
        process.terminate()
        process.wait(20)


def test_an_array_gives_the_store_of_a_single_process(cluster, tmp_path):
    asked = study("squares", "size", recipes={name: RECIPES[name] for name in "ac"})
    (tmp_path / "study.yaml").write_text(json.dumps(asked))
    command = ["-m", "compress_lab.cli", "run", "study.yaml", "--out"]
    output = run_in(tmp_path, *command, "spread", "--executor", "slurm", "--workers", "2", "--threads", "1")
    assert "#SBATCH --requeue" in output and "--index" in output and "Job 2: ended" in output
    run_in(tmp_path, *command, "alone")
    spread, alone = Store(tmp_path / "spread"), Store(tmp_path / "alone")
    assert spread.keys() == alone.keys() and len(alone.keys()) == 6
    assert {key: different(spread.get(key), alone.get(key)) for key in alone.keys()} == dict.fromkeys(alone.keys(), "")
    logs = sorted(path.name for path in Path(tmp_path, "spread").glob("slurm-*.txt"))
    assert logs == ["slurm-1-0.txt", "slurm-2-1.txt", "slurm-2-2.txt"], "a log for each arm"
