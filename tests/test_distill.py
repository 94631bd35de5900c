"""A distillation that is killed goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys

import pytest

import compress_lab as cl
from compress_lab.models.forward import inputs
from compress_lab.models.tiny import tiny
from compress_lab.train import trainer

sample = cl.calibration(inputs(tiny("llama"), batch=20, length=12)["input_ids"])


def distilled(folder):
    "A student of half the width after ten steps with projections and two micro-batches, and the losses of all steps."
    losses, learn = [], trainer.learn
    trainer.learn = lambda *given, **more: losses.extend(learn(*given, **more))
    try:
        taught = cl.Distill(
            alpha=0.2, features="hidden", steps=10, micro=2, lr=1e-2, calibration_dtype="float32"
        ).apply(
            cl.Subject(tiny("llama", hidden_size=32, head_dim=8)),
            sample,
            original=cl.Subject(tiny("llama")),
            checkpoint=folder,
        )
    finally:
        trainer.learn = learn
    return losses, taught.fingerprint


PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_distill import distilled, trainer
step = trainer.StudentTrainer.training_step
def killed(self, *given, **more):
    if self.state.global_step == 7: os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *given, **more)
trainer.StudentTrainer.training_step = killed
distilled(sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no signal 9")
def test_a_killed_run_goes_on_with_the_same_losses(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, os.path.dirname(__file__), str(tmp_path / "killed")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    [last] = (tmp_path / "killed").glob("*/checkpoint-*")
    assert json.loads((last / "trainer_state.json").read_text())["global_step"] == 6
    resumed, straight = distilled(tmp_path / "killed"), distilled(tmp_path / "straight")
    assert len(resumed[0]) == 10 and resumed == straight
