"""Probes that a study of `test_workers` imports: they write down when they were called, and take their time."""

import os
import time
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

import compress_lab as cl
from compress_lab.evaluate.metrics import Metric
from compress_lab.evaluate.records import Records
from compress_lab.models.layers import linears

PAUSE = float(os.environ.get("STUDY_WORKERS_PAUSE", 0))


def say(word):
    with open("log", "a") as log:
        log.write(f"{word} {os.getpid()} {time.monotonic()}\n")


def weights(subject):
    return [each.weight.detach() for each in linears(subject.model) if each.block is not None]


@dataclass(frozen=True)
class Squares(cl.Probe):
    "Mean square of the weights, per layer, after a pause."

    variant: int = 0
    name: ClassVar[str] = "squares"
    metrics: ClassVar[tuple] = (Metric("squares", "", None, "squares", "weights"),)
    sampled: ClassVar = ("layer", "layer")
    fewest: ClassVar = 2

    def measure(self, subject, original=None, *, seed=0):
        say("measure")
        time.sleep(PAUSE)
        rows = [
            dict(item=i, cluster=i, squares=float((w**2).sum()), weights=w.numel())
            for i, w in enumerate(weights(subject))
        ]
        return Records(pd.DataFrame(rows), self, subject.fingerprint)


@dataclass(frozen=True)
class Clock(Squares):
    "A time, which nobody else may disturb."

    name: ClassVar[str] = "clock"
    of_machine: ClassVar[bool] = True

    def measure(self, subject, original=None, *, seed=0):
        say("begin")
        records = super().measure(subject, original, seed=seed)
        say("end")
        return records


@dataclass(frozen=True)
class Hungry(cl.Probe):
    "Is killed by the operating system, as for want of memory."

    name: ClassVar[str] = "hungry"
    metrics: ClassVar[tuple] = (Metric("hungry"),)
    sampled: ClassVar = None

    def measure(self, subject, original=None, *, seed=0):
        say("hungry")
        os.kill(os.getpid(), 9)
