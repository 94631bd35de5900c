"""What `test_processes` runs in one process and in two: prints as JSON what is learned."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

import compress_lab as cl
from compress_lab.models.tiny import tiny
from compress_lab.train.trainer import learn

torch.set_num_threads(1)
tokens = torch.randint(0, 100, (40, 16), generator=torch.Generator().manual_seed(5))
mask = (torch.arange(16) < 4 + torch.arange(40)[:, None] * 7 % 12).long()


def shard_on_cpus():
    """Accelerate shards on accelerators alone.

    What it does there is done by gloo as well, once it takes the processes for such.
    """
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    own = AcceleratorState.__init__

    def begin(self, *args, **more):
        if not AcceleratorState._shared_state:
            PartialState(cpu=True)
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        own(self, *args, **more)

    AcceleratorState.__init__ = begin


def moved(zeros: int = 0):
    "A copy of the teacher with noise, and zeros at every so many weights."
    model = tiny("llama")
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
        if zeros and parameter.dim() > 1:
            parameter.data.flatten()[::zeros] = 0
    return model


def told(model) -> list[float]:
    "Sums over the weights that tell models apart, and the number of zeros."
    parameters = [parameter.detach().double().flatten() for parameter in model.parameters()]
    return [
        float(sum((each * torch.arange(len(each)).double().cos()).sum() for each in parameters)),
        float(sum((each == 0).sum() for each in parameters)),
    ]


def learned(folder: Path) -> dict[str, list[float]]:
    "What comes of each way to learn. A run that goes on from a checkpoint in the folder is among them."
    settings = {"steps": 10, "batch": 8, "micro": 2, "lr": 1e-2}
    distill = {
        "features": {"features": "hidden"},
        "top": {"top_k": 5},
        "held": {"held": 0.2, "patience": 1, "steps": 30},
        "average": {"average": 0.9},
    }
    if "ACCELERATE_USE_FSDP" in os.environ:
        del distill["average"]  # refused: nbs/train/02_trainer
        try:
            cl.GKD(own=1.0, prompt=8, **settings).apply(
                cl.Subject(moved()), cl.Sentences({"input_ids": tokens}), original=cl.Subject(tiny("llama"))
            )
        except cl.CompressLabError as refusal:
            assert "sharded model cannot generate" in str(refusal)
        else:
            raise AssertionError("a model in shards wrote")
    found = {}
    for name, more in distill.items():
        method = cl.Distill(calibration_dtype="float32", **(settings | more))
        found[name] = told(
            method.apply(
                cl.Subject(moved()),
                cl.Sentences({"input_ids": tokens, "attention_mask": mask}),
                original=cl.Subject(tiny("llama")),
            ).model
        )
    for zeros in (3, 1000):
        model = moved(zeros)
        for _ in range(2):
            learn(model, tokens, teacher=tiny("llama"), dtype="float32", **settings)
        found[f"zeros {zeros}"] = told(model)

    sample = cl.calibration(tokens)

    found["recovered"] = told(
        cl.Recover(steps=6, batch=8, calibration_dtype="float32")
        .apply(cl.Subject(moved()), sample, original=cl.Subject(tiny("llama")))
        .model
    )
    found["resumed"] = [
        *learn(model := moved(), tokens, teacher=tiny("llama"), dtype="float32", folder=folder, **settings),
        *told(model),
    ]
    return found


class Die(TrainerCallback):
    def on_step_end(self, args, state, control, **more):
        if state.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if "ACCELERATE_USE_FSDP" in os.environ:
        shard_on_cpus()
    folder, what = Path(sys.argv[1]), sys.argv[2]
    if what == "die":
        learn(
            moved(),
            tokens,
            teacher=tiny("llama"),
            steps=10,
            batch=8,
            micro=2,
            lr=1e-2,
            dtype="float32",
            folder=folder,
            callbacks=[Die()],
        )
    else:
        (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(learned(folder)))
