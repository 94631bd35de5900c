"""Perturbed texts and the probes that read them, with classifiers of which everything is known."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_lab.core.errors import CompressLabError, NotMeasured
from compress_lab.core.files import own_data
from compress_lab.core.registry import PERTURBATIONS
from compress_lab.evaluate.classifiers import class_logprobs, losses
from compress_lab.evaluate.comparison import compare
from compress_lab.evaluate.perturbations import Behaviour, Robustness, behaviour_cases, perturb
from compress_lab.evaluate.probe import Probe
from compress_lab.models.subject import Subject
from compress_lab.models.tiny import tiny

KINDS = pytest.mark.parametrize("name", PERTURBATIONS)
WORDS = st.lists(
    st.sampled_from(
        "I do not like those colours because they are not red don't "
        "can't Paris B12 2,5 x naïve GOOD good-bye film's it’s".split()
    )
    | st.text(max_size=8),
    max_size=12,
).map(" ".join)


@KINDS
@settings(max_examples=60, deadline=None)
@given(text=WORDS, seed=st.integers(0, 5), rate=st.sampled_from([None, 0.0, 0.5, 1.0]))
def test_a_text_is_changed_as_promised(name, text, seed, rate):
    made = perturb(text, name, seed=seed, rate=rate)
    assert made == perturb(text, name, seed=seed, rate=rate)
    assert re.findall(r"\d", made) == re.findall(r"\d", text)
    if PERTURBATIONS[name].same_length:
        assert len(made) == len(text)
    every_word = tuple(re.findall(r"\w+", text))
    assert perturb(text, name, seed=seed, rate=rate, keep=every_word) == text


@pytest.mark.parametrize(
    "name",
    [name for name, kind in PERTURBATIONS.items() if kind.undo and name not in ("contract", "expand", "spelling")],
)
@settings(max_examples=60, deadline=None)
@given(text=st.text("abc XYZ,.12pqoOP\n", max_size=40), seed=st.integers(0, 5))
def test_what_can_be_undone_is(name, text, seed):
    assert PERTURBATIONS[name].undo(perturb(text, name, seed=seed, rate=1.0)) == text


@pytest.mark.parametrize(
    "name, text, expected",
    [
        (
            "contract",
            "I am sure we cannot. Do not go, THEY ARE NOT here",
            "I'm sure we can't. Don't go, THEY'RE NOT here",
        ),
        ("expand", "Don't, it's mine, they've won", "Do not, it's mine, they have won"),
        ("spelling", "The Color of the theatre", "The Colour of the theater"),
        ("spoken", "It is not going to be those", "It ain't gonna be them"),
        ("upper", "Straße 5b", "STRAßE 5b"),
        ("lower", "NATO And B12", "nato and B12"),
    ],
)
def test_known_results(name, text, expected):
    assert perturb(text, name, rate=1.0) == expected


def test_a_word_is_changed_the_same_whatever_stands_beside_the_text():
    texts = [f"some words about number {n} of them" for n in range(20)]
    assert [perturb(text, "typos") for text in texts] == [perturb(text, "typos") for text in reversed(texts)][::-1]
    assert len({perturb(texts[0], "typos", seed=seed) for seed in range(20)}) > 5


class Keyword:
    "Class 1 where the text has the word."

    def __init__(self, word, flags=0):
        self.word, self.fingerprint = re.compile(rf"\b{word}\b", flags), f"{word} {flags}"

    def predict(self, texts):
        return [[0.5, 1.0 if self.word.search(text) else 0.0] for text in texts]


ITEMS = pd.DataFrame(
    {
        "text": [f"A {'fine' if n % 4 else 'poor'} thing indeed" for n in range(80)],
        "label": [int(n % 4 > 0) for n in range(80)],
    }
)


def test_a_model_that_reads_case_is_found():
    probe = Robustness(kinds="upper lower")
    before, after = (probe.measure(Keyword("fine", flags), items=ITEMS) for flags in (re.I, 0))
    found = {difference.metric.name: difference for difference in probe.differences(before, after)}
    assert (
        found["lost_upper"].value == found["flips_upper"].value == 0.75
        and found["lost_upper"].verdict == "worse"
        and found["lost_upper"].n_items == 80
    )
    assert found["lost_lower"].verdict == found["clean_accuracy"].verdict == "no difference seen" and np.isclose(
        found["lost"].value, 0.75 / 2
    )


def test_what_the_original_loses_too_is_not_charged_to_the_compressed_model():
    probe = Robustness(kinds="upper")
    one, other = (probe.measure(Keyword(word), items=ITEMS) for word in ("fine", "(fine|none)"))
    assert (
        one.values["lost_upper"] == 0.75 and probe.difference(one, other, "lost_upper").verdict == "no difference seen"
    )


def test_items_whose_text_did_not_change_do_not_count():
    items = pd.concat(
        [ITEMS.assign(text=ITEMS["text"] + (" and I do not mind" if part else "")) for part in (0, 1)],
        ignore_index=True,
    )
    frame = Robustness(kinds="contract").measure(Keyword("fine"), items=items).frame
    assert frame["changed_contract"].sum() == 80 and (frame["lost_contract"] == 0).all()
    assert (
        Robustness(kinds="contract").measure(Keyword("do not"), items=items.assign(label=1)).values["lost_contract"]
        == 1
    )


def test_losses_take_records_of_any_task():
    clean = pd.DataFrame(
        {"item": ["a", "b", "c"], "prediction": [2, 1, 0], "correct": [1, 1, 0], "cluster": ["p", "p", "q"]}
    )
    other = pd.DataFrame({"item": ["c", "a", "b"], "prediction": [1, 2, 3], "correct": [0, 1, 0]})
    frame = losses(clean, {"typos": other}, {"typos": np.array([True, True, True])})
    assert (
        frame["lost_typos"].tolist() == [0, 1, 0]
        and frame["flip_typos"].tolist() == [0, 1, 1]
        and frame["cluster"].tolist() == ["p", "p", "q"]
    )
    named = [part.rename(columns={"correct": "acc"}) for part in (clean, other)]
    assert losses(named[0], {"typos": named[1]}, {"typos": np.array([True] * 3)}, column="acc").equals(frame)
    with pytest.raises(CompressLabError, match="typos"):
        losses(clean, {"typos": other[1:]}, {"typos": np.array([True] * 3)})


class Letters:
    "A tokenizer of letters, for tiny models."

    def __call__(self, text, truncation=False, max_length=None, **kwargs):
        return {"input_ids": [1 + ord(letter) % 100 for letter in text[: max_length if truncation else None]]}

    def pad(self, rows, return_tensors="pt"):
        from transformers import BatchEncoding

        length = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([row["input_ids"] + [0] * (length - len(row["input_ids"])) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids > 0).long()})


def test_a_classifier_of_transformers_is_measured_and_a_language_model_is_not(tmp_path):
    table = tmp_path / "reviews.csv"
    ITEMS.rename(columns={"text": "sentence"}).to_csv(table, index=False)
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(tiny("bert", head="base").config).eval()
    subject, texts = Subject(model, Letters()), ["abc", "a longer text", "b"]
    alone = np.vstack([class_logprobs(subject, [text]) for text in texts])
    assert np.allclose(class_logprobs(subject, texts, tokens=20), alone, atol=1e-5) and np.allclose(
        np.exp(alone).sum(1), 1
    )
    probe = Robustness(task=str(table), config=None, kinds="typos upper", n=20)
    found = compare(subject, subject.copy(), [probe, "behaviour"])
    assert not found.not_measured and all(difference.verdict == "no difference" for difference in found.differences)
    assert (
        found.records["robustness"][1].meta["data"][0]["name"] == "reviews"
        and len(found.records["robustness"][1].frame) == 20
    )
    refused = compare(Subject(tiny("llama"), Letters()), Subject(tiny("llama"), Letters()), [probe])
    assert "no classes" in refused.not_measured[0][1]
    with pytest.raises(NotMeasured, match="tokenizer"):
        class_logprobs(Subject(model), texts)


def test_templates_are_sound():
    cases = behaviour_cases()
    assert (
        cases["item"].is_unique
        and set(cases["expect"]) == {"same", "more", "less"}
        and not cases[["before", "after"]].duplicated().any()
    )
    assert "Apache-2.0" in own_data("behaviour.yml").read_text()
    assert cases.groupby("test")["cluster"].nunique().min() >= 2


@pytest.mark.parametrize(
    "text",
    ["[]", "invariance: 3", "{fillers: {}, opinions: {}, things: [], invariance: [{slot: name}], direction: []}"],
)
def test_templates_of_another_layout_are_refused(tmp_path, text):
    (tmp_path / "other.yml").write_text(text)
    with pytest.raises(CompressLabError, match="expected layout"):
        behaviour_cases(str(tmp_path / "other.yml"))


@pytest.mark.parametrize("probe", [Robustness(kinds="typos", n=None), Behaviour(tolerance=0.2)])
def test_probes_come_back_from_their_settings(probe):
    assert Probe.from_dict(probe.to_dict()) == probe
