"One of each: a Method, a Probe, an export Format, a Backend, a text and a perturbation."

import re
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from compress_lab.compress.recipe import Method
from compress_lab.core.registry import BACKENDS
from compress_lab.data.texts import DataProvenance, Document, text_source
from compress_lab.deploy.export import Format
from compress_lab.evaluate.metrics import Column, Metric
from compress_lab.evaluate.perturbations import register
from compress_lab.evaluate.probe import Probe
from compress_lab.evaluate.records import Records
from compress_lab.models.forward import logits
from compress_lab.models.layers import linears
from compress_lab.runtimes.graph import Backend


@dataclass(frozen=True)
class Damp(Method):
    "Makes every weight smaller by a share."

    share: float = 0.1

    def run(self, subject, layers, calibration=None, checkpoint=None, seed=0):
        for layer in layers:
            for matrix in layer.matrices:
                matrix.mul_(1 - self.share)
        return {}


@dataclass(frozen=True)
class Loudness(Probe):
    "Mean square of the weights of each linear."

    name: ClassVar[str] = "loudness"
    axis: ClassVar[str] = "volume"
    metrics: ClassVar[tuple] = (
        Metric("square", "", "lower", "squares", "weights", shown_as=(Column("mean square", "ratio", "×"),)),
    )
    sampled: ClassVar[tuple] = ("linear", "linear")
    fewest: ClassVar[int] = 2

    def measure(self, subject, original=None, *, seed=0):
        weights = [linear.weight.detach() for linear in linears(subject.model)]
        rows = [
            {"item": place, "cluster": place, "squares": float(weight.square().sum()), "weights": weight.numel()}
            for place, weight in enumerate(weights)
        ]
        return Records(pd.DataFrame(rows), self, subject.fingerprint)


class Plain(Format):
    "The folder that transformers itself writes and reads."

    name, how, bits, floats = "plain", 'AutoModelForCausalLM.from_pretrained("{folder}")', range(1, 9), True

    def write(self, subject, layers, folder):
        subject.model.save_pretrained(folder)

    def run(self, folder, tokens):
        from transformers import AutoModelForCausalLM

        return logits(AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), {"input_ids": tokens})


BACKENDS["outside-eager"] = Backend(lambda job: job.model, "PyTorch, called by another package", cost=2)


@text_source(DataProvenance("counting", "the package outside", "1.0", "CC0-1.0"), "numbers in order")
def counting():
    rows = [" ".join(f"w{(place * 7 + step) % 100}" for step in range(40)) for place in range(300)]
    return [Document(f"row {place}", f"row {place}", row) for place, row in enumerate(rows)]


register("shout", "an exclamation mark behind every word", re.compile(r"\b\w+\b"), lambda word, random: f"{word}!")
