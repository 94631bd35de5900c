"""Tokens are those of the text, and rows those of the model.

Tokenizers that begin, end and merge, and every tiny architecture.
"""

import os
import time

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sweeps import ALL, built, swept
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    ByT5Tokenizer,
    CanineTokenizer,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from compress_lab.core.errors import CompressLabError, NotMeasured
from compress_lab.data import texts, wiki
from compress_lab.data.texts import DataProvenance, Document, Text, calibration, images, task, text, windows
from compress_lab.evaluate.comparison import compare, probe
from compress_lab.evaluate.perplexity import Perplexity
from compress_lab.evaluate.scoring import Request, encode, packs, score
from compress_lab.evaluate.task_probe import head_logits
from compress_lab.evaluate.tasks import items
from compress_lab.evaluate.writing import answers_to, encoded, rendered
from compress_lab.models.inputs import around, check_rows, limits, opened, tokenizer_key
from compress_lab.models.subject import Subject
from compress_lab.models.tiny import causal_lms, tiny
from compress_lab.prune.wanda import Wanda

torch.set_num_threads(1)

WORDS = (
    "the result is unbelievable and the river bends near New York where a naïve café stands by 北京 in the rain".split()
)
SPECIAL = ["<pad>", "<s>", "</s>"]
TEMPLATES = {
    "plain": None,
    "begins": "<s> $A",
    "begins twice": "<s> <s> $A",
    "begins and ends": "<s> $A </s>",
    "ends": "$A </s>",
}
BEGIN = {"plain": [], "begins": [1], "begins twice": [1, 1], "begins and ends": [1], "ends": []}
KINDS = ("letters", "merges", "metaspace", "lower case")


def fast(kind="letters", template=None, **more):
    """A small fast tokenizer: bytes, bytes with merges, pieces behind blanks, or bytes of small letters in one form of
    Unicode.
    """
    backend = Tokenizer(models.BPE(unk_token=None))
    blanks = kind == "metaspace"
    backend.pre_tokenizer = (
        pre_tokenizers.Metaspace(prepend_scheme="always")
        if blanks
        else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always") if blanks else decoders.ByteLevel()
    if kind == "lower case":
        backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    alphabet = (
        sorted({*"abcdefghijklmnopqrstuvwxyzABNQXY :.,?'0123456789é北京東", "▁"})
        if blanks
        else pre_tokenizers.ByteLevel.alphabet()
    )
    trainer = trainers.BpeTrainer(
        vocab_size=0 if kind == "letters" else 420,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    if template:
        special = [(token, number) for number, token in enumerate(SPECIAL)]
        backend.post_processor = processors.TemplateProcessing(
            single=template, pair=f"{template} {template.replace('$A', '$B')}", special_tokens=special
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | more
    )


class Slow(PreTrainedTokenizer):
    "Written in Python: the longest piece first, no offsets, and an end behind every text."

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, **more):
        letters = sorted({letter for word in WORDS for letter in word} | set(" :?ABhk1"))
        pieces = ["<pad>", "<s>", "</s>", "<unk>", *letters, "un", "unbelievable", " York", " New", "ea"]
        self.ids = {piece: number for number, piece in enumerate(pieces)}
        super().__init__(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **more)

    @property
    def vocab_size(self):
        return len(self.ids)

    def get_vocab(self):
        return dict(self.ids)

    def _tokenize(self, text, **more):
        found = []
        while text:
            piece = next(
                (text[:length] for length in range(min(12, len(text)), 1, -1) if text[:length] in self.ids), text[0]
            )
            found.append(piece)
            text = text[len(piece) :]
        return found

    def _convert_token_to_id(self, token):
        return self.ids.get(token, 3)

    def _convert_id_to_token(self, index):
        return list(self.ids)[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def build_inputs_with_special_tokens(self, one, two=None):
        return [1, *one, 2]


def by_hand(model, tokens, count):
    "The log-likelihood of the last `count` tokens."
    with torch.inference_mode():
        logp = model(torch.tensor([tokens[:-1]])).logits[0].double().log_softmax(-1)
    return sum(logp[place - 1, tokens[place]].item() for place in range(len(tokens) - count, len(tokens)))


def near(found, expected, within=1e-4):
    return np.abs(np.asarray(found) - np.asarray(expected)).max() < within


PAIRS = [
    ("the river is", " near"),
    ("the result is un", "believable"),
    ("New Yor", "k"),
    ("New", " York"),
    ("a naïve caf", "é"),
    ("by 北", "京"),
    ("by ", "北京"),
    ("A: ", "x"),
    ("A:", " x"),
    ("the rain\n", "the river"),
    ("a b", "c d e "),
]


@pytest.fixture(scope="module")
def reader():
    return tiny("llama", vocab_size=450)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_option_is_scored_as_the_text_says_it(reader, kind, template):
    tokenizer = fast(kind, TEMPLATES[template])
    requests = encode(tokenizer, PAIRS)
    scores = score(reader, requests).logp
    for (context, option), request, found in zip(PAIRS, requests, scores):
        bare = tokenizer(context + option, add_special_tokens=False)["input_ids"]
        pieces = [tokenizer.decode(bare[:length]) for length in range(len(bare) + 1)]
        said = context.rstrip()
        shown = said.lower() if kind == "lower case" else said
        kept = max(
            length for length, piece in enumerate(pieces) if shown.startswith(piece) and "\ufffd" not in piece
        )  # whole letters of the context alone
        first = min(length for length in range(kept + 1) if pieces[length] == pieces[kept])
        begin = BEGIN[template] or ([] if first else [1])
        assert request.tokens.tolist() == [*begin, *bare], (context, option)
        assert request.option == len(bare) - first and 2 not in request.tokens
        assert abs(found - by_hand(reader, [*begin, *bare], request.option)) < 1e-4


def test_a_tokenizer_without_offsets_divides_by_what_is_spelled(reader):
    tokenizer = Slow()
    assert not tokenizer.is_fast and tokenizer("the")["input_ids"][-1] == 2
    for (context, option), expected in (
        (("is un", "believable"), ["unbelievable"]),
        (("New Yor", "k"), [" York"]),
        (("the riv", "er"), ["e", "r"]),
        (("is", " un"), [" ", "un"]),
        (("n", "ear"), ["ea", "r"]),
    ):
        (request,) = encode(tokenizer, [(context, option)])
        assert tokenizer.convert_ids_to_tokens(request.tokens[-request.option :].tolist()) == expected
        assert (
            request.tokens[0] == 1
            and 2 not in request.tokens
            and tokenizer.decode(request.tokens[1:]) == context + option
        )
    for (context, option), size in ((("caf", "é"), 2), (("by 北", "京 x"), 5), (("", "é"), 2)):
        (request,) = encode(ByT5Tokenizer(), [(context, option)])
        assert (
            request.option == size
            and 1 not in request.tokens[1:]
            and bytes(token - 3 for token in request.tokens[-size:]).decode() == option
        )


def test_what_is_no_option_is_said():
    tokenizer = fast()
    for pair, message in (
        (("a", ""), "option is empty"),
        (("a ", ""), "option is empty"),
        ((None, "a"), "must be texts"),
        (("a", 3), "must be texts"),
    ):
        with pytest.raises(CompressLabError, match=message):
            encode(tokenizer, [pair])
    with pytest.raises(CompressLabError, match="row 7"):
        encode(tokenizer, [("a", "")], names=["row 7"])
    nothing = fast(bos_token=None, eos_token=None)
    with pytest.raises(CompressLabError, match="no token of its own"):
        encode(nothing, [("", "a")])
    assert encode(nothing, [("", "ab")])[0].option == 1
    (blank,) = encode(tokenizer, [("a", " ")])
    assert blank.option == 1
    twice = encode(tokenizer, [("a", "b"), ("a", "b")])
    assert (twice[0].tokens == twice[1].tokens).all()


def test_a_long_context_keeps_what_begins_it():
    for template in TEMPLATES:
        tokenizer = fast("letters", TEMPLATES[template])
        begin, bare = BEGIN[template], tokenizer("abcdefgh", add_special_tokens=False)["input_ids"]
        (request,) = encode(tokenizer, [("abcdef", "gh")], longest=5)
        kept = 5 + 1 - 2 - len(begin)
        assert (
            request.tokens.tolist() == [*begin, *bare[6 - kept :]] and request.cut == 6 - kept and request.option == 2
        )
    with pytest.raises(CompressLabError, match="the model takes at most 5"):
        encode(fast("letters", "<s> <s> $A"), [("a", "bcdef")], longest=5)


@pytest.fixture(scope="module")
def words():
    draw = np.random.default_rng(0)
    return Text(
        tuple(Document(str(number), f"text {number}", " ".join(draw.choice(WORDS, 120))) for number in range(24)),
        DataProvenance("words", "this test"),
    )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_begin_as_texts_do_and_do_not_end(words, kind, template):
    tokenizer, plain, begin = fast(kind, TEMPLATES[template]), fast(kind), BEGIN[template]
    assert around(tokenizer) == (begin, [2] * ("ends" in template)) and opened(tokenizer, ["the rain"]) == [
        [*begin, *plain("the rain")["input_ids"]]
    ]
    size = 40 - len(begin)
    for make, more in ((calibration, {"length": 40}), (windows, {"context": 40})):
        rows = make(words, tokenizer, n=6, **more).tokens
        bare = make(words, plain, n=6, **{name: size for name in more}).tokens
        assert torch.equal(rows, torch.cat([torch.tensor([begin] * 6, dtype=torch.long).view(6, -1), bare], 1))
    assert windows(words, tokenizer, n=6, context=40).begin == len(begin)
    half = "".join(document.text.rstrip() + "\n\n" for document in words.half("calibration"))
    read = [
        tokenizer.decode(row[len(begin) :]).strip("\ufffd")
        for row in calibration(words, tokenizer, n=6, length=40).tokens
    ]  # a row may begin inside a letter
    if kind == "letters":
        assert all(len(each) > 25 and each in half for each in read)


def test_rows_of_encoders_end_and_those_of_models_that_go_on_do_not(words):
    tokenizer = fast("letters", "<s> $A </s>", cls_token="<s>", sep_token="</s>")
    encoder, decoder = (
        Subject(tiny("roberta", head="masked_lm", vocab_size=450), tokenizer),
        Subject(tiny("roberta", vocab_size=450), tokenizer),
    )
    for subject, ended in ((tokenizer, True), (encoder, True), (decoder, False)):
        for rows in (
            calibration(words, subject, n=3, length=30).tokens,
            windows(words, subject, n=3, context=30).tokens,
        ):
            assert (
                (rows[:, 0] == 1).all() and bool((rows[:, -1] == 2).all()) == ended and not (rows[:, 1:-1] == 2).any()
            )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("context, stride", [(24, None), (24, 24), (24, 7)])
def test_the_perplexity_is_that_of_the_text_behind_what_begins_it(words, reader, template, context, stride):
    subject, begin = Subject(reader, fast("letters", TEMPLATES[template])), BEGIN[template]
    given = windows(words, subject, context=context, n=2, stretch=1 if stride in (None, context) else 4)
    measured, rows = Perplexity(context=context, stride=stride).measure(subject, rows=given), given.tokens
    step, total, count = min(stride or context, context - len(begin)), 0.0, 0
    for row in rows.tolist():
        body, done = row[len(begin) :], 0
        for start in range(0, len(body), step):
            end = min(start + context - len(begin), len(body))
            read = [*begin, *body[start:end]]
            fresh = end - max(done, start if begin else start + 1)
            if fresh > 0:
                total, count = total - by_hand(reader, read, fresh), count + fresh
            done = end
            if end == len(body):
                break
    assert measured.frame["tokens"].sum() == count == len(rows) * (rows.shape[1] - max(1, len(begin)))
    assert abs(np.log(measured.value) - total / count) < 1e-5
    assert bool(measured.meta.get("notes")) == bool(begin)


def test_token_streams_are_those_of_the_tokenizer_that_is_asked(words):
    tokenizers = ByT5Tokenizer, CanineTokenizer
    for turn in range(6):  # each is gone when the next is made, and may get its number
        kind = tokenizers[turn % 2]
        row = calibration(words, kind(), n=1, length=24).tokens[0].tolist()
        said = (
            bytes(token - 3 for token in row).decode(errors="ignore")
            if kind is ByT5Tokenizer
            else "".join(map(chr, row[1:-1]))
        )
        assert any(said in document.text.rstrip() + "\n\n" for document in words.half("calibration")), kind
    texts.STREAMS.clear()
    first, same, other = fast("merges"), fast("merges"), fast("merges")
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    calibration(words, first, n=1, length=24)
    calibration(words, same, n=1, length=24)
    assert len(texts.STREAMS) == 1
    rows = calibration(words, other, n=4, length=24).tokens
    assert len(texts.STREAMS) == 2 and other.decode(rows.flatten()).islower()
    assert len({tokenizer_key(fast("merges", template)) for template in TEMPLATES.values()}) == len(TEMPLATES)
    assert tokenizer_key(Slow()) is None and len(texts.STREAMS) == 2


def classifiers():
    for kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        try:
            yield kind, tiny(kind, head="sequence_classification", num_labels=3)
        except CompressLabError:
            pass  # transformers cannot build it


def test_each_row_of_a_classifier_is_answered_as_alone():
    rows, seen = [("the rain",), ("a b",), ("where the river bends",), ("a pit",), ("ab",)], 0
    letters = Tokenizer(
        models.WordLevel(
            {token: number for number, token in enumerate([*SPECIAL, "?", *" abcdefghijklmnopqrstuvwxyz"])},
            unk_token="?",
        )
    )
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters,
        pad_token="<pad>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    for kind, model in classifiers():
        encoded = [{name: torch.tensor([tokens]) for name, tokens in tokenizer(*row).items()} for row in rows]
        for padding in (None, 5):
            try:
                for config in (model.config, model.config.get_text_config()):
                    config.pad_token_id = padding
                with torch.inference_mode():
                    expected = torch.cat([model(**each).logits for each in encoded]).double().numpy()
            except Exception:
                continue  # it cannot be without one, or cannot read such a row at all
            assert near(head_logits(Subject(model, tokenizer), rows)[0], expected, 1e-4), (kind, padding)
            seen += 1
    assert seen > 150


def requests_of(seed, places):
    draw = np.random.default_rng(seed)
    stems = [draw.integers(8, 90, size) for size in draw.integers(2, min(places, 40) - 6, 4)]
    return [Request(np.array([*stem, *draw.integers(8, 90, size)]), size) for stem in stems for size in (1, 4, 2)]


@swept("kind", causal_lms())
def test_a_likelihood_does_not_depend_on_what_else_is_asked(kind):
    try:
        model = built("causal_lm", kind)
    except CompressLabError:
        return  # transformers cannot build it
    requests = requests_of(0, limits(model).places or 64)
    try:
        expected = [by_hand(model, request.tokens.tolist(), request.option) for request in requests]
    except Exception:
        return  # it does not read such rows
    try:
        found = [score(model, requests, budget=budget).logp for budget in (30, 1000)]
    except NotMeasured:
        return  # it is not causal
    for each in found:
        assert near(each, expected), np.abs(each - expected).max()


class Windowed(torch.nn.Module):
    "A model that attends to the last 20 tokens of the row, whatever their positions."

    def __init__(self):
        super().__init__()
        self.inner = tiny("llama")

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        place = torch.arange(input_ids.shape[1])
        seen = (place[:, None] >= place) & (place[:, None] - place < 20)
        mask = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        return self.inner(
            input_ids,
            attention_mask=mask if attention_mask is None else mask.minimum(attention_mask),
            position_ids=position_ids,
        )


def test_distances_in_a_row_of_several_questions_are_found_out():
    draw, stem = np.random.default_rng(0), list(range(60, 70))
    displaced = [Request(np.array([*stem, 70 + number, *draw.integers(8, 50, 8)]), 8) for number in range(3)]
    many = [Request(np.array([*range(20, 37), number]), 1) for number in range(40, 45)]
    longest = Request(draw.integers(100, 110, 20), 3)
    model, requests = Windowed().eval(), [*displaced, *many, longest]
    assert [len(pack) for pack in packs(requests, 34)] == [5, 3, 1], (
        "the pack that matters is neither the largest nor that of the longest"
    )
    assert near(
        score(model, requests, budget=34).logp,
        [by_hand(model, request.tokens.tolist(), request.option) for request in requests],
    )


@pytest.mark.parametrize("seed", [0, 2])
def test_what_follows_in_a_row_is_found_out(seed):
    draw = np.random.default_rng(seed)
    start = draw.integers(3, 128, 4)
    stems = [
        np.concatenate([start[: draw.integers(0, 5)], draw.integers(3, 128, draw.integers(1, 30))]) for _ in range(6)
    ]
    requests = [
        Request(np.concatenate([stem, draw.integers(3, 128, size)]), size)
        for stem in stems
        for size in draw.integers(1, 6, 4)
    ]
    model = tiny("prophetnet")  # says something else where the row is longer
    assert near(
        score(model, requests, budget=1).logp,
        [by_hand(model, request.tokens.tolist(), request.option) for request in requests],
    )


def test_the_slower_way_is_kept_for_those_that_need_it():
    assert (
        score(tiny("llama"), requests_of(0, 64)).way == "packed"
        and score(tiny("bloom"), requests_of(0, 64)).way == "padded"
    )
    model = tiny("llama").bfloat16()
    requests = requests_of(1, 64)
    expected = [by_hand(model, request.tokens.tolist(), request.option) for request in requests]
    assert near(score(model, requests).logp, expected, 0.1)


def runs(model, tokens):
    try:
        with torch.inference_mode():
            model(torch.tensor([tokens]))
    except Exception:
        return False
    return True


NOT_SO_SIMPLE = {
    "prophetnet": "its second stream looks one place further",
    "tapas": "its places begin anew with each cell",
}


OTHER = {"vision_tower", "vision_model", "image_encoder", "audio_tower", "entity_embeddings"}  # parts that read no text


@swept("head, kind", ALL)
def test_a_model_reads_as_much_as_is_said(head, kind):
    try:
        model = built(head, kind)
    except CompressLabError:
        return
    known = limits(model)
    if kind in NOT_SO_SIMPLE or not runs(model, [9] * 40):
        return
    if known.places is not None:
        assert runs(model, [9] * known.places)
    assert runs(model, [9] * 39 + [known.vocabulary - 1]) and not runs(model, [9] * 39 + [known.vocabulary])
    tables = [
        module
        for name, module in model.named_modules()
        if "position" in name.rpartition(".")[2]
        and isinstance(module, torch.nn.Embedding)
        and not {*name.split(".")} & OTHER
    ]
    if any(len(table.weight) <= 66 for table in tables):
        assert not runs(model, [9] * (known.places + 1))


def subject(kind="llama", **more):
    return Subject(tiny(kind, **{"vocab_size": 450} | more), fast("letters"))


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "roberta"])
def test_rows_of_another_model_are_refused_before_anything_begins(words, kind):
    small, short = subject(kind, vocab_size=64), subject(kind)
    most = limits(short.model).places
    other, long, fitting = (calibration(words, fast("letters"), n=2, length=length) for length in (16, most + 1, most))
    method = Wanda(sparsity=0.5)
    for model, rows, message in (
        (small, other, "lies outside the model's vocabulary"),
        (short, long, f"longer than the {most} positions"),
    ):
        with pytest.raises(CompressLabError, match=message):
            method.apply(model, rows)
        with pytest.raises(CompressLabError, match=message):
            probe(model, "perplexity", rows=rows.tokens, context=most + 1)
        with pytest.raises(CompressLabError, match=message):
            probe(model, "fidelity", original=model, rows=rows.tokens)
        with pytest.raises(CompressLabError, match=message):
            score(model.model, [Request(np.append(rows.tokens[0].numpy(), 9), 1)])
    with pytest.raises(CompressLabError, match=f"{most} positions"):
        calibration(words, short, n=2, length=most + 1)
    assert (
        method.apply(short, fitting).history and probe(short, "perplexity", rows=fitting.tokens, context=most).value > 1
    )


def test_a_tokenizer_with_more_tokens_than_embeddings_reads_what_there_is():
    few = subject(vocab_size=200)
    assert len(few.tokenizer) > 200
    known = few.tokenizer.convert_tokens_to_ids("a")
    rows = torch.full((2, 12), known)
    assert (
        known < 200
        and probe(few, "perplexity", rows=rows, context=12).value > 1
        and np.isfinite(score(few.model, encode(few.tokenizer, [("a", "b")])).logp).all()
    )
    with pytest.raises(CompressLabError, match="embeddings for 200 tokens"):
        probe(few, "perplexity", rows=rows + 200, context=12)
    with pytest.raises(CompressLabError, match="embeddings for 200 tokens"):
        score(few.model, encode(few.tokenizer, [("a", "é北")]))


def test_what_reads_two_texts_is_refused_by_methods_and_probes(words):
    sizes = dict(d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=450)
    both = Subject(T5ForConditionalGeneration(T5Config(**sizes)), fast("letters", "$A </s>"))
    rows = calibration(words, both, n=2, length=16)
    for call in (
        lambda: Wanda(sparsity=0.5).apply(both, rows),
        lambda: probe(both, "perplexity", rows=rows.tokens, context=16),
        lambda: probe(both, "fidelity", original=both, rows=rows.tokens),
        lambda: score(both.model, encode(both.tokenizer, [("a", " b")])),
        lambda: answers_to(both, ["a"], 3),
    ):
        with pytest.raises(CompressLabError, match="one text and writes another|transforms one text"):
            call()
    check_rows(tiny("bart", head="masked_lm"), rows.tokens % 100)


def test_the_part_that_reads_text_decides(words):
    config = AutoConfig.for_model("gemma3")
    model = Subject(tiny("gemma3"), fast("letters"))
    assert type(config) is type(model.model.config) and limits(model.model) == (128, 64)
    long = calibration(words, model.tokenizer, n=1, length=65)
    with pytest.raises(CompressLabError, match="outside the model's vocabulary"):
        Wanda(sparsity=0.5).apply(model, long)
    with pytest.raises(CompressLabError, match="64 positions"):
        check_rows(model.model, long.tokens % 100)
    with pytest.raises(CompressLabError, match="64 positions"):
        calibration(words, model, n=1, length=65)


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_are_begun_and_not_ended(reader, template):
    asked = Subject(reader, fast("letters", TEMPLATES[template]))
    bare = fast("letters")("the rain")["input_ids"]
    assert encoded(asked, ["the rain"], 4) == [[*BEGIN[template], *bare]]
    asked.tokenizer.chat_template = (
        "<s>{% for message in messages %}{{ message.content }}:{% endfor %}"  # a template that begins the text itself
    )
    assert encoded(asked, ["the rain"], 4) == [[1, *bare, asked.tokenizer.convert_tokens_to_ids(":")]]
    assert encoded(asked, ["the rain"], 4, chat=False) == [[*BEGIN[template], *bare]]


ATTACKS = {
    "{% for": "TemplateSyntaxError",
    "{{ raise_exception('no\x1b[31m') }}": r"TemplateError: no\\x1b",
    "{{ messages.__class__.__mro__ }}": "SecurityError",
    "{{ 'a' * 10**11 }}": "MemoryError",
    "{% for a in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' * 99 }}"
    "{% endfor %}": "MemoryError|characters",
    "{{ messages[7].content }}": "UndefinedError",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}": "more than 4 seconds",
    "{{ " + "(" * 4000 + ")" * 4000 + " }}": ".",
}


@pytest.mark.parametrize(
    "template", ATTACKS, ids=["syntax", "raises", "forbidden", "memory", "letters", "undefined", "loop", "deep"]
)
def test_a_chat_template_is_a_program_under_limits(tmp_path, monkeypatch, template):
    for name in ("random", "json", "jinja2", "transformers"):
        (tmp_path / f"{name}.py").write_text("open('owned', 'w'); raise SystemExit('imported from here')")
    monkeypatch.chdir(tmp_path)
    asked, began = fast("letters", chat_template=template), time.monotonic()
    with pytest.raises(CompressLabError, match=f"(?s)chat template cannot be rendered.*({ATTACKS[template]})"):
        rendered(asked, ["the rain"], **({"seconds": 4} if "4 seconds" in ATTACKS[template] else {}))
    assert time.monotonic() - began < 60 and not (tmp_path / "owned").exists()


def own_task(folder, rows, **more):
    pd.DataFrame(rows).to_json(folder / "rows.jsonl", orient="records", lines=True)
    file = {
        "name": "own",
        "dataset": str(folder / "rows.jsonl"),
        "split": "train",
        "kind": "choice",
        "columns": ["q", "o", "a"],
        "metrics": ["acc"],
        "licence": "none",
        "context": "{{q}}",
        "options": "o",
        "answer": "a",
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(file | more))
    return str(folder / "own.yaml")


def test_equal_options_are_equally_right_and_a_null_is_no_text(tmp_path, reader):
    asked = Subject(reader, fast("letters"))
    rows = [{"q": "the rain", "o": ["b", "b", "b"], "a": 2}, {"q": "the river", "o": ["near", "near"], "a": 1}]
    assert probe(asked, "task", task=own_task(tmp_path, rows)).frame["correct"].all()
    assert [item.answer for item in items(own_task(tmp_path, [{"q": "x", "o": ["a", "b", "a"], "a": [0, 0, 1]}]))] == [
        (1, 0, 1)
    ]
    for row, message in (
        ({"q": "x", "o": ["a", "b"], "a": 2}, "2 options are numbered"),
        ({"q": "x", "o": ["a", None], "a": 0}, "must be two texts"),
        ({"q": "x", "o": ["a", "  "], "a": 0}, "must be two texts"),
        ({"q": "x", "o": [], "a": 0}, "must be two texts"),
        ({"q": {"text": None}, "o": ["a", "b"], "a": 0}, "a cell is empty"),
    ):
        with pytest.raises(CompressLabError, match=message):
            items(own_task(tmp_path, [row], context="{{q.text}}" if isinstance(row["q"], dict) else "{{q}}"))


def test_the_answers_of_one_tokenizer_are_not_those_of_another(tmp_path, reader):
    rows = [{"q": "the rain ", "o": ["near", "a b", "New York"], "a": 0}] * 4
    path = own_task(tmp_path, rows)
    first, second = (
        probe(Subject(reader, fast("letters", template)), "task", task=path).frame["logprobs"][0]
        for template in (None, "<s> $A")
    )
    assert not near(first, second, 1e-3)


@pytest.mark.parametrize("seed", [-1, "0", True, 2**64, 0.5, None])
def test_a_seed_is_a_whole_number(words, reader, seed):
    asked = Subject(reader, fast("letters"))
    for call in (
        lambda: calibration(words, asked, n=1, length=16, seed=seed),
        lambda: windows(words, asked, context=16, seed=seed),
        lambda: images("digits", seed=seed),
        lambda: probe(asked, "perplexity", seed=seed),
        lambda: compare(asked, asked, "perplexity", seed=seed),
        lambda: answers_to(asked, ["a"], 2, seed=seed),
        lambda: (
            Perplexity(context=16).measure(asked, seed=seed) if seed is not None else probe(asked, "size", seed=seed)
        ),
    ):
        with pytest.raises(CompressLabError, match="where: seed"):
            call()


def test_a_kept_text_that_changed_is_made_again(tmp_path, capsys):
    kept, made = tmp_path / "converted" / "kept.json", []

    def make():
        made.append(1)
        return [["1", "Title", "Prose of some length."]]

    def damage(change):
        kept.write_bytes(change(kept.read_bytes()))

    assert texts._kept(kept, make) == texts._kept(kept, make) == make() and len(made) == 2
    for change in (
        lambda found: found.replace(b"Prose", b"Prosa"),
        lambda found: found[:9],
        lambda found: b"",
        lambda found: bytes(len(found)),
    ):
        made.clear()
        damage(change)
        assert texts._kept(kept, make) == [["1", "Title", "Prose of some length."]] and len(made) == 1
        assert (
            capsys.readouterr().err + capsys.readouterr().out or (tmp_path / "converted" / "damaged-kept.json").exists()
        )
    kept.unlink()
    kept.mkdir()
    assert texts._kept(kept, make) == [["1", "Title", "Prose of some length."]]


def test_only_regular_files_of_text_are_read(tmp_path):
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    os.mkfifo(tmp_path / "pipe.txt")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "latin.txt").write_bytes("Café".encode("latin-1"))
    (tmp_path / "latin.csv").write_bytes("text\nCafé\n".encode("latin-1"))
    for name in ("loop.txt", "gone.csv", "pipe.txt", "pipe.csv", "latin.txt", "latin.csv"):
        with pytest.raises(CompressLabError, match="latin" if "latin" in name else "cannot be read|no file|is a"):
            text(tmp_path / name)
        with pytest.raises(CompressLabError):
            task(tmp_path / name)
    with pytest.raises(CompressLabError, match="is a folder"):
        task(tmp_path / "folder.csv")
    with pytest.raises(CompressLabError, match="named pipe|cannot be read|is a folder"):
        text(tmp_path)
    for name in (
        "a" * 300,
        "a" * 300 + "/b",
        "a/" + "b" * 5000,
        "a\0b",
        "owner/na\0me",
        "ftp://a/b.txt",
        "s3://a/b.csv",
        "hf://datasets/a/b",
        "file:///etc/passwd",
        "~nobody/words",
        "\ud800",
    ):
        for ask in (text, task):
            with pytest.raises(CompressLabError):
                ask(name)


def test_no_expression_takes_longer_than_the_text_is_long():
    began, many = time.monotonic(), 30_000
    for line in (" = " + "a = " * many, " = a" + " " * many + "= b", " = " * many):
        texts.TITLE.match(line)
        texts._pieces("\n" + line + " " * many + "x", "text")
    for markup in (
        "{{" * many + "}}" * many,
        "<!--" * many,
        "(" + " " * many,
        "(" * many,
        "[[a" * many,
        "<ref>" * many,
        "[[file:" * many,
        "{|" * many,
    ):
        wiki._tidy(markup)
    assert time.monotonic() - began < 20
