"""Two processes learn what one does, divided and in shards, and go on after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import several

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",  # so far as `accelerate launch --use_fsdp --fsdp_version 2` says to a script
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_ACTIVATION_CHECKPOINTING": "true",
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_LAB_CACHE", str(folder / "cache"))
        return several.learned(folder / "checkpoints")


def start(folder: Path, what: str, settings: dict) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        several.__file__,
        folder,
        what,
    ]
    return subprocess.run(
        command,
        env=os.environ | settings | {"COMPRESS_LAB_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("settings", [{}, FSDP], ids=["divided", "shards"])
def test_same_as_one_process(settings, alone, tmp_path):
    killed = start(tmp_path, "die", settings)
    assert killed.returncode != 0 and list(tmp_path.glob("checkpoint-6")), killed.stderr
    done = start(tmp_path, "learn", settings)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second and set(alone) - set(first) == ({"average"} if settings else set())
    for name, values in first.items():
        assert values == pytest.approx(alone[name], rel=1e-3, abs=1e-4), name
    assert alone["zeros 3"][1] > 10 * alone["zeros 1000"][1] > 0
