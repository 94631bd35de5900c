"""A study that takes a second: a tiny random model, probes and methods that say when they were called.

Run as a program it is one process of a study.
"""

import os
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch

from compress_lab.compress.recipe import Method
from compress_lab.core.errors import NotMeasured
from compress_lab.evaluate.metrics import Metric
from compress_lab.evaluate.probe import Probe
from compress_lab.evaluate.records import Records
from compress_lab.models.layers import linears
from compress_lab.models.subject import Provenance, Subject
from compress_lab.models.tiny import tiny
from compress_lab.study import Study

LOG = os.environ.get("STUDY_TINY_LOG")
PAUSE = float(os.environ.get("STUDY_TINY_PAUSE", 0))


def say(*words):
    if LOG:
        with open(LOG, "a") as log:
            log.write(" ".join(map(str, words)) + "\n")


def weights(subject):
    return [each.weight.detach() for each in linears(subject.model) if each.block is not None]


@dataclass(frozen=True)
class Zeros(Probe):
    "Share of zeros."

    variant: int = 0
    name: ClassVar[str] = "tiny-zeros"
    metrics: ClassVar[tuple] = (Metric("zeros", "share", None, "zeros", "weights"),)
    sampled: ClassVar = None

    def measure(self, subject, original=None, *, seed=0):
        say("measure", self.name, self.variant, len(subject.history) and subject.history[-1]["sparsity"], seed)
        time.sleep(PAUSE)
        return Records(
            pd.DataFrame(
                [dict(item=i, zeros=int((w == 0).sum()), weights=w.numel()) for i, w in enumerate(weights(subject))]
            ),
            self,
            subject.fingerprint,
        )


@dataclass(frozen=True)
class Distance(Probe):
    "Squared distance to the original, per layer."

    name: ClassVar[str] = "tiny-distance"
    paired: ClassVar[bool] = True
    metrics: ClassVar[tuple] = (Metric("distance", "", "lower", "squared", "weights", reference=0.0),)
    sampled: ClassVar = ("layer", "layer")
    fewest: ClassVar = 2

    def measure(self, subject, original=None, *, seed=0):
        say("measure", self.name, 0, subject.history[-1]["sparsity"], seed)
        time.sleep(PAUSE)
        rows = [
            dict(item=i, cluster=i, squared=float(((a - b) ** 2).sum()), weights=a.numel())
            for i, (a, b) in enumerate(zip(weights(subject), weights(original)))
        ]
        return Records(pd.DataFrame(rows), self, subject.fingerprint)


@dataclass(frozen=True)
class Never(Probe):
    "Refuses compressed models."

    name: ClassVar[str] = "tiny-never"
    metrics: ClassVar[tuple] = (Metric("never"),)
    sampled: ClassVar = None

    def measure(self, subject, original=None, *, seed=0):
        say("measure", self.name, 0, 0, seed)
        raise NotMeasured("there is nothing to see")


@dataclass(frozen=True)
class Shrink(Method):
    "Sets a share of every weight to zero, slowly and with a checkpoint."

    sparsity: float = 0.5

    def run(self, subject, layers, calibration=None, checkpoint=None, seed=0):
        say("apply", self.sparsity, seed)
        checkpoint.mkdir(parents=True, exist_ok=True)
        for number, layer in enumerate(layers):
            if not (checkpoint / str(number)).exists():
                say("block", self.sparsity, number)
                time.sleep(PAUSE / 10)
            (checkpoint / str(number)).touch()
            for matrix in layer.matrices:
                matrix.view(-1)[: int(self.sparsity * matrix.numel())] = 0
        return {}


def subject():
    return Subject(tiny("llama", num_hidden_layers=2), provenance=Provenance(name="tiny llama"))


def study(shares=(0.1, 0.2, 0.3, 0.4), seeds=(0,), probes=(Zeros(), Zeros(1), Distance())):
    return Study("tiny llama", {f"share {share}": Shrink(share) for share in shares}, list(probes), seeds=seeds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = subject()
    print("ready", flush=True)
    study().run(sys.argv[1], subject=model)
