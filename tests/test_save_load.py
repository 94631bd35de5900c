"""Every architecture, in every type, packed and not.

Saved, loaded in another process, and its outputs compared bit for bit.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sweeps import ALL, SAMPLE, built, swept
from test_architectures import NOT_BUILT

import compress_lab as cl
from compress_lab.core.errors import CompressLabError
from compress_lab.models.forward import inputs, logits

torch.set_num_threads(1)

READER = """
import json, sys, torch
torch.set_num_threads(1)
from compress_lab.models.loading import load
from compress_lab.models.forward import inputs
from compress_lab.models.forward import logits
for line in sys.stdin:
    folder, runs = json.loads(line)
    subject = load(folder)
    outputs = logits(subject.model, inputs(subject.model, length=12)) if runs else None
    torch.save({"logits": outputs, "fingerprint": subject.fingerprint}, folder + ".seen")
    print("read", flush=True)
"""


# transformers itself cannot run these in the types named: their weights are compared, and no outputs
NOT_RUN = {
    "deepseek_v4": {"float16"},
    "xlnet": {"bfloat16", "float16"},
    "deberta": {"bfloat16", "float16"},
    "fnet": {"bfloat16", "float16"},
    "mra": {"bfloat16", "float16"},
}


@pytest.fixture(scope="session")  # the cases of an architecture follow each other, across files
def elsewhere():
    "A function that says what another process makes of a saved Subject: its logits and its fingerprint."
    with subprocess.Popen(
        [sys.executable, "-P", "-c", READER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as reader:

        def read(folder: Path, runs: bool) -> dict:
            print(json.dumps([str(folder), runs]), file=reader.stdin, flush=True)
            if reader.stdout.readline() != "read\n":
                raise AssertionError(reader.stderr.read()[-2000:])
            return torch.load(f"{folder}.seen")

        yield read
        reader.stdin.close()


def compressed(subject, packed: bool):
    "A Subject with integers behind its weights, or one with zeros among them."
    return (cl.RTN(bits=8, group_size=16) if packed else cl.Magnitude(0.5)).apply(subject)


# Each type packed and not. A sample of the architectures tries all six; another two of the types, one of them packed,
# and the next in the list other two, unless all are asked for.
EACH = {"float32": (True, False), "bfloat16": (True, False), "float16": (True, False)}
TURNS = (
    {"float32": (False,), "bfloat16": (True,)},
    {"float16": (False,), "float32": (True,)},
    {"bfloat16": (False,), "float16": (True,)},
)


@swept("head, name", [pair for pair in ALL if pair[1] not in NOT_BUILT])
def test_comes_back(head, name, tmp_path, elsewhere, request):
    built(head, name).save_pretrained(tmp_path / "original")
    thorough = name in SAMPLE or "slow" in request.config.getoption("--flags").split()
    for dtype, ways in (EACH if thorough else TURNS[ALL.index((head, name)) % 3]).items():
        original, runs = cl.load(tmp_path / "original", dtype=dtype), dtype not in NOT_RUN.get(name, ())
        for packed in ways:
            try:
                subject = compressed(original, packed)
            except CompressLabError:
                subject = original  # an architecture that methods refuse is saved all the same
            found = elsewhere(subject.save(tmp_path / f"{dtype}-{packed}"), runs)
            assert found["fingerprint"] == subject.fingerprint, (dtype, packed)
            if not runs:
                continue
            wanted = logits(subject.model, inputs(subject.model, length=12))
            assert found["logits"].dtype == wanted.dtype and torch.equal(
                found["logits"].nan_to_num(), wanted.nan_to_num()
            ), (dtype, packed)
