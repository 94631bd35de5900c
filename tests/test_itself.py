"""A model against itself, in every probe: no difference. Against a model that merely answers alike: never certainty."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import compress_lab as cl
from compress_lab.evaluate.probe import Probe
from compress_lab.models.tiny import tiny
from compress_lab.train.trainer import learn

WORDS = "the cook nurse driver likes sees asked because he she was late kind and old red green blue".split()
READERS = {  # probes of a language model, with settings that read the tables below
    "answers": dict(text="text.txt", context=8, length=4, n=24),
    "attack": dict(n=24, length=3),
    "bbq": dict(task="people.jsonl", config=None),
    "calibration": dict(task="quiz.yaml"),
    "diversity": dict(text="text.txt", context=8, length=6, samples=2, n=24),
    "consistency": dict(task="questions.csv", config=None, samples=2, length=3),
    "facts": dict(path="facts.csv", others=3),
    "extraction": dict(path="members.csv", prefix=8, length=4),
    "fidelity": dict(text="text.txt", context=64, n=24),
    "forgetting": dict(before="before", forget="members.csv", retain="others.csv", length=32),
    "formats": dict(task="quiz.yaml", n=24),
    "groups": dict(task="quiz.yaml", by="label"),
    "cold_start": dict(tokens=4, blocks=2),
    "energy": dict(prefill_tokens=4, decode_tokens=1, blocks=3, burst_seconds=0.02),
    "latency": dict(blocks=3),
    "layer_speed": dict(length=8, rounds=1),
    "leaks": dict(path="prompts.csv", length=4),
    "memory": dict(tokens=16, runs=2),
    "throughput": dict(prefill_tokens=4, decode_tokens=1, blocks=3),
    "membership": dict(members="members.csv", others="others.csv", length=32),
    "passkey": dict(lengths="192", n=20),
    "perplexity": dict(text="text.txt", context=64, n=24),
    "refusals": dict(path="requests.csv", length=4),
    "size": {},
    "stereoset": dict(task="stereo.csv", config=None),
    "task": dict(task="quiz.yaml"),
    "winobias": dict(path="."),
}
CLASSIFIERS = {  # probes of a text classifier
    "adversarial": dict(task="labelled.csv", config=None, n=24),
    "behaviour": {},
    "equity": dict(path="groups.csv"),
    "robustness": dict(task="labelled.csv", config=None, kinds="keyboard"),
    "shift": dict(path="styles.csv"),
    "text_around": dict(task="labelled.csv", config=None, words="5"),
}


def sentences(random, count):
    return [" ".join(random.choice(WORDS, 12)) + f" {number}." for number in range(count)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    "A folder with a small table for each probe."
    folder, random = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)

    def write(name, **columns):
        pd.DataFrame(columns).to_csv(folder / f"{name}.csv", index=False)

    texts = sentences(random, 160)
    labels = list(range(2)) * 20
    (folder / "text.txt").write_text("\n\n".join(texts))
    write("members", text=texts[:30])
    write("others", text=texts[30:60])
    write("prompts", prompt=texts[:30])
    write("requests", prompt=texts[:40], expected=["refuse", "answer"] * 20)
    write("questions", question=texts[:30])
    write("labelled", sentence=texts[:40], label=labels)
    write(
        "facts",
        relation=["colour"] * 20 + ["age"] * 20,
        text=[f"{text} It is [MASK]." for text in texts[:40]],
        answer=["red", "green"] * 10 + ["old", "late"] * 10,
    )
    write(
        "styles",
        item=[*range(40)] * 2,
        kind=["base"] * 40 + ["loud"] * 40,
        text=texts[:40] + [text.upper() for text in texts[:40]],
        label=labels * 2,
    )
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    "Bytes as tokens."
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate([*alphabet, "<pad>", "<eos>"])}, merges=[])
    )
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")


@pytest.fixture(scope="module")
def people(tables):
    "The tables about people: questions, sentences and terms, with nobody real in them."

    def group(number):
        return {"ans0": ["a", f"old {number}"], "ans1": ["b", f"young {number}"], "ans2": ["unknown", "unknown"]}

    questions = [
        dict(
            question_index=number // 2,
            question_polarity="neg",
            context_condition=("ambig", "disambig")[number % 2],
            category="Age",
            answer_info=group(number),
            context=f"The cook and the nurse {number} were late.",
            question="Who was late?",
            ans0="The cook",
            ans1="The nurse",
            ans2="Nobody knows",
            label=2 if number % 2 == 0 else number // 2 % 2,
        )
        for number in range(48)
    ]
    pd.DataFrame(questions).to_json(tables / "people.jsonl", orient="records", lines=True)
    pd.DataFrame(
        [
            dict(
                target=f"job {number // 2}",
                bias_type="work",
                context=f"The cook {number} is here.",
                stereotype="She likes to cook.",
                unrelated="Blue is late.",
                **{"anti-stereotype": "She likes to drive."},
            )
            for number in range(48)
        ]
    ).to_csv(tables / "stereo.csv", index=False)
    rows = [
        (f"{who} feels {word} {pattern}.", f"<person> feels <word> {pattern}.", who, gender, race, word)
        for pattern in range(24)
        for word in ("glad", "sad")
        for who, gender, race in (
            ("Ann", "female", "x"),
            ("Bob", "male", "x"),
            ("Kia", "female", "y"),
            ("Dee", "male", "y"),
        )
    ]
    columns = ["Sentence", "Template", "Person", "Gender", "Race", "Emotion word"]
    pd.DataFrame(rows, columns=columns).to_csv(tables / "groups.csv", index=False)
    for kind in (1, 2):
        for side, (first, second) in {"pro": ("he", "she"), "anti": ("she", "he")}.items():
            lines = [
                f"{number + 1} [The {who}] likes the {other} because [{first if number % 2 else second}] is kind."
                for number, (who, other) in enumerate([("cook", "driver"), ("driver", "cook")] * 12)
            ]
            (tables / f"{side}_stereotyped_type{kind}.dev.txt").write_text("\n".join(lines))
    quiz = pd.DataFrame(
        {"question": [f"What colour is the cook {number}?" for number in range(24)], "label": [0, 1] * 12}
    )
    quiz.to_csv(tables / "quiz.csv", index=False)
    (tables / "quiz.yaml").write_text(
        "name: quiz\nabout: made up\ndataset: quiz.csv\nsplit: all\ncolumns: [question, label]\nlicence: "
        "Apache-2.0\nkind: choice\n"
        'context: "Question: {{question}}\\nAnswer:"\noptions: ["red", "green"]\neach: " {{option}}"\nanswer: '
        "label\nmetrics: [acc]\n"
    )
    return tables


@pytest.fixture(scope="module")
def models_of(tokenizer, tables):
    "A language model and a text classifier, with random weights; the language model that knew some texts is saved."
    sizes = dict(vocab_size=len(tokenizer), max_position_embeddings=512)
    knows, texts = tiny("llama", **sizes), pd.read_csv(tables / "members.csv")["text"]
    rows = torch.tensor([tokenizer(text)["input_ids"][:32] for text in texts])
    learn(knows, {"input_ids": rows, "labels": rows}, steps=20, batch=10, lr=3e-3, dtype="float32")
    cl.Subject(knows, tokenizer).save(tables / "before")
    classifier = tiny("bert", head="sequence_classification", num_labels=2, pad_token_id=256, **sizes)
    return cl.Subject(tiny("llama", **sizes), tokenizer), cl.Subject(classifier, tokenizer)


def test_every_probe_is_tried():
    kinds = {
        kind
        for name in dir(cl)
        if isinstance(kind := getattr(cl, name), type) and issubclass(kind, Probe) and kind is not Probe
    }
    assert {kind.name for kind in kinds} == {*READERS, *CLASSIFIERS}


# figures of the machine: never the same twice
MEASURED = {"cold_start", "energy", "latency", "layer_speed", "memory", "throughput"}


@pytest.mark.parametrize("name", sorted({*READERS, *CLASSIFIERS}))
def test_a_model_and_itself(name, people, models_of, monkeypatch, request):
    if name == "cold_start" and "slow" not in request.config.getoption("--flags").split():
        pytest.skip("starts a process for each load: asked for with --flags slow, its notebook loads some")
    monkeypatch.chdir(people)
    subject = models_of[name in CLASSIFIERS]
    probe = Probe.from_dict(dict(probe=name, **(READERS | CLASSIFIERS)[name]))
    records = probe.measure(subject, subject if probe.paired else None)
    changes = probe.differences(None if probe.paired else records, records)
    assert len(records.frame) and changes
    assert records.meta.get("axis", probe.axis) == probe.axis, (
        "a dossier reads it from the records, a plan from the class"
    )
    for change in changes:
        assert change.verdict.startswith(("no difference", "undefined", "no interval")), change
        if name not in MEASURED and math.isfinite(change.value):
            assert change.value == 0 and change.verdict == "no difference", change


@pytest.mark.parametrize("name", sorted({*READERS, *CLASSIFIERS} - MEASURED - {"size"}))
def test_a_model_that_answers_alike(name, people, models_of, monkeypatch):
    monkeypatch.chdir(people)
    subject = models_of[name in CLASSIFIERS]
    twin = cl.Subject(copy.deepcopy(subject.model), subject.tokenizer)
    with torch.no_grad():
        twin.model.get_input_embeddings().weight[256] += 1  # of a token that no text has
    probe = Probe.from_dict(dict(probe=name, **(READERS | CLASSIFIERS)[name]))
    before, after = (probe.measure(each, subject if probe.paired else None) for each in (subject, twin))
    assert before.fingerprint != after.fingerprint
    for change in probe.differences(None if probe.paired else before, after):
        assert not change.verdict.startswith(("better", "worse", "higher", "lower")), change
        assert change.verdict != "no difference" and change.interval != (0, 0), change


CANNOT = {  # what a graph cannot be asked, and why not
    "answers": "The model cannot write",
    "attack": "The model cannot write",
    "cold_start": "The files that a runtime would load are not those of this Subject",
    "consistency": "The model cannot write",
    "layer_speed": "Only layers that PyTorch computes",
    "diversity": "The model cannot write",
    "leaks": "The model cannot write",
    "refusals": "The model cannot write",
}


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_model_and_its_graph(form, people, models_of, tmp_path, monkeypatch):
    "Each probe measures a graph on disk as it measures the model it was made from, or says why it cannot."
    monkeypatch.chdir(people)
    graphs = []
    for number, subject in enumerate(models_of[: 2 if form == "onnx" else 1]):
        cl.export(subject, tmp_path / f"{number}", form, check=False)
        graphs.append(cl.load(tmp_path / f"{number}"))
    asked = READERS | (CLASSIFIERS if form == "onnx" else {})
    for name in asked.keys() - (MEASURED - {*CANNOT, "latency"}) - {"size"}:
        subject, graph = (pair[name in CLASSIFIERS] for pair in (models_of, graphs))
        probe = Probe.from_dict(dict(probe=name, **asked[name]))
        if name in CANNOT:
            with pytest.raises(cl.NotMeasured, match=CANNOT[name]):
                probe.measure(graph, subject)
            continue
        after = probe.measure(graph, subject)
        for change in probe.differences(None if probe.paired else probe.measure(subject, subject), after):
            if name not in MEASURED and math.isfinite(change.original):
                assert abs(change.value) <= 1e-4 * max(1, abs(change.original)), change
