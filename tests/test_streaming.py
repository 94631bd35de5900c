"""A model is compressed under a memory limit that does not hold it: in a control group, where one may be made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZE = dict(
    vocab_size=1000,
    hidden_size=1024,
    intermediate_size=2048,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=16,
)
PROGRAM = """
import os, sys
from pathlib import Path
import compress_lab as cl
from compress_lab.compress.streaming import stream
group, source, target, way = sys.argv[1:]
subject = cl.load(source)
Path(group, "cgroup.procs").write_text(str(os.getpid()))
recipe = cl.Recipe.of(cl.RTN(bits=4))
if way == "stream": stream(recipe, subject, target)
else: recipe.apply(subject, in_place=True).save(target)
"""


@pytest.fixture
def group():
    "A new control group with a file for its limit."
    controllers = (
        {
            line.split(":")[1]: line.split(":", 2)[2].lstrip("/")
            for line in Path("/proc/self/cgroup").read_text().splitlines()
        }
        if sys.platform == "linux"
        else {}
    )
    root, limit = (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        if "memory" in controllers
        else ("/sys/fs/cgroup", "memory.max")
    )
    folder = Path(root, controllers.get("memory", controllers.get("", "")), f"compress_lab-test-{os.getpid()}")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    if not (folder / limit).exists():
        folder.rmdir()
        pytest.skip("control groups here do not limit memory")
    yield folder, limit
    folder.rmdir()


def test_a_model_larger_than_memory(group, tmp_path):
    folder, limit = group
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SIZE))
    model.to_empty(device="cpu").apply(fill).save_pretrained(tmp_path / "large", max_shard_size="100MB")
    size = sum(path.stat().st_size for path in (tmp_path / "large").glob("*.safetensors"))
    (folder / limit).write_text(str(size // 2))
    found = {
        way: subprocess.run(
            [sys.executable, "-c", PROGRAM, folder, tmp_path / "large", tmp_path / way, way],
            capture_output=True,
            text=True,
        )
        for way in ("apply", "stream")
    }
    assert found["apply"].returncode == -9, "the limit holds"
    assert found["stream"].returncode == 0, found["stream"].stderr[-1000:]
    meta = json.loads((tmp_path / "stream" / "compress_lab.json").read_text())
    assert len(meta["packed"]) == 7 * SIZE["num_hidden_layers"] and {path.name for path in tmp_path.iterdir()} >= {
        "large",
        "stream",
    }
    assert not (tmp_path / "stream.blocks").exists()


def fill(module):
    "Weights that are cheap to make."
    for parameter in module.parameters(recurse=False):
        parameter.data.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
