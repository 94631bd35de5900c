"""Students of every architecture.

Copied blocks are the teacher's to the last bit; fresh ones, of every sixth, have the shape that was asked for and
read back; or they are refused by name.
"""

import torch
from sweeps import ALL, built, swept
from test_architectures import NOT_BUILT
from test_structure import REFUSED

import compress_lab as cl
from compress_lab.core.errors import CompressLabError
from compress_lab.models.forward import inputs, logits
from compress_lab.models.layers import blocks, size_of, tied
from compress_lab.models.units import field

torch.set_num_threads(1)

# With the last block gone they are what they were, with another one they are not, or kinds of blocks come in turns.
ALSO_REFUSED = "beam diffllama flint recurrent_gemma"
NONE_FRESH = "blt flaubert jamba mllama xlm zamba2"  # neither fewer blocks nor fewer channels

BUILT = [(head, name) for head, name in ALL if name not in NOT_BUILT]


def reads_back(small, folder):
    "Whether plain transformers makes the same model of what is saved."
    small.model.save_pretrained(folder)
    plain, batch = type(small.model).from_pretrained(folder), inputs(small.model)
    torch.testing.assert_close(logits(plain, batch), logits(small.model, batch), atol=1e-5, rtol=1e-5)


@swept("head, name", BUILT)
def test_copied(head, name, tmp_path):
    teacher = cl.Subject(built(head, name))
    stack = blocks(teacher.model)
    kept = [index for index in range(len(stack)) if index != 1]
    try:
        small = cl.student(teacher, blocks=kept)
    except CompressLabError as refusal:
        assert refusal.where and refusal.fix
        assert name in REFUSED["Blocks", head].split() + ALSO_REFUSED.split()
        return
    assert name not in ALSO_REFUSED.split()
    for index, block in zip(kept, blocks(small.model)):
        before = dict(stack[index].module.named_parameters())
        assert set(before) == {key for key, _ in block.module.named_parameters()}
        assert all(torch.equal(parameter, before[key]) for key, parameter in block.module.named_parameters())
    place, rest = stack[0].name.rpartition(".")[0], dict(teacher.model.named_parameters())
    for key, parameter in small.model.named_parameters():
        if not key.startswith(f"{place}."):
            assert torch.equal(parameter, rest[key]), key
    assert [len(group) for group in tied(small.model)] == [len(group) for group in tied(teacher.model)]
    reads_back(small, tmp_path / "student")


SOME = [
    each for number, each in enumerate(BUILT) if number % 6 == 0 or each[1] in NONE_FRESH.split()
]  # each takes seconds


@swept("head, name", SOME)
def test_fresh(head, name, tmp_path):
    teacher = cl.Subject(built(head, name))
    made = 0
    for sizes in ({"blocks": len(blocks(teacher.model)) - 1}, {"width": 32}):
        try:
            small = cl.student(teacher, **sizes, weights="fresh")
        except CompressLabError as refusal:
            assert refusal.where and refusal.fix
            continue
        made += 1
        assert len(blocks(small.model)) == sizes.get("blocks", len(blocks(teacher.model))) and field(
            small.model, "hidden_size"
        ) == sizes.get("width", field(teacher.model, "hidden_size"))
        assert size_of(small.model) < size_of(teacher.model)
        assert [len(group) for group in tied(small.model)] == [len(group) for group in tied(teacher.model)]
        reads_back(small, tmp_path / "-".join(sizes))
    assert bool(made) == (name not in NONE_FRESH.split())
