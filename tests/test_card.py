"""Model cards under what a notebook cell does not show.

Texts of people in any bytes, hostile names, odd figures, the schema that others check with.
"""

import hashlib
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, parse_eval_result_entries
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dossier import HOSTILE

from compress_lab.cli import main
from compress_lab.core.errors import CompressLabError
from compress_lab.core.settings import read_yaml
from compress_lab.core.store import Store
from compress_lab.report.card import ASKED, BEGIN, END, Card, own_texts, weave
from compress_lab.report.evidence import Evidence
from compress_lab.report.example import CARD_STUDY, card_cells
from compress_lab.report.exchange import check_record, hub_entries, record

OFFICIAL = "every-eval-ever==0.3.0", "c9c6195aec8a9dfa0b2aba4924ac1aa8a184c9d8ca97cee778cb531088e39b48"
CELLS = card_cells()
CARD = Card(Evidence(CELLS, CARD_STUDY), "RTN-4")
FIRST = CARD.text().encode()
BODY = "".join(f"## {place}\n\n\0{place}\0\n\n" for place in ASKED)
OTHER = BODY.replace("##", "Now in other words\n\n\n\n###")  # what a second study might find
own_bytes = st.binary(max_size=200).filter(lambda text: b"<!-- " not in text)


def between(card: bytes, place: str) -> bytes:
    begin = BEGIN.format(place).encode()
    return card[card.index(begin) + len(begin) : card.index(END.encode(), card.index(begin))]


@pytest.fixture
def run(tmp_path, monkeypatch):
    "A stored run folder, from within whose parent the test runs."
    monkeypatch.chdir(tmp_path)
    store = Store("run")
    store.write_text("study.yaml", CARD_STUDY)
    for key, cell in CELLS.items():
        store.put(key, cell)
    return store


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({place: own_bytes for place in ASKED}))
def test_what_a_person_wrote_stays_byte_for_byte(texts):
    card = weave(ModelCardData(license="mit"), BODY).encode()
    for place, text in texts.items():
        begin = BEGIN.format(place).encode()
        card = card.replace(begin + between(card, place) + END.encode(), begin + text + END.encode())
    for body in (OTHER, BODY, BODY):
        card = weave(ModelCardData(license="mit"), body, card.decode("utf-8", "surrogateescape"))
        card = card.encode("utf-8", "surrogateescape")
        assert {place: between(card, place) for place in ASKED} == texts


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_card_that_lost_a_mark_is_refused(data):
    marks = [BEGIN.format(place) for place in ASKED] + [END]
    gone = data.draw(st.sampled_from(marks))
    where = data.draw(st.integers(0, FIRST.decode().count(gone) - 1))
    parts = FIRST.decode().split(gone)
    damaged = gone.join(parts[: where + 1]) + gone.join(["", *parts[where + 1 :]])[len(gone) :]
    with pytest.raises(CompressLabError, match="marks where your text begins"):
        weave(ModelCardData(), BODY, damaged)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_a_readme_that_somebody_typed_is_kept_in_the_notes(body):
    if body.startswith(("---", "\ufeff---")) or "<!-- yours:" in body or END in body or not body.strip():
        return
    assert body in own_texts(weave(ModelCardData(), BODY, body))["notes"]


@pytest.mark.parametrize("text", [*HOSTILE, BEGIN.format("notes"), END, "---\nlicense: evil\n---"])
def test_text_from_elsewhere_is_only_text(text):
    cells = json.loads(json.dumps(CELLS))
    for cell in cells.values():
        cell["provenance"]["subject"] |= dict(name=text, licence=text, revision=text)
        cell["reason"] = text
        cell["recipe"] = text if cell["recipe"] == "RTN-4" else cell["recipe"]
        cell["steps"] = [{"method": text, "bits": text}]
        for each in cell["provenance"]["data"]:
            each |= dict(name=text, licence=text)
    card = Card(Evidence(cells, CARD_STUDY), text)
    written = card.text()
    assert set(own_texts(written)) == {*ASKED} and card.text(written) == written
    loaded = ModelCard(written)
    assert loaded.data.to_dict() == card.data().to_dict()
    body = loaded.text.replace("<!-- yours: ", "").replace(END, "").replace("< !--", "")
    code_left_out = "".join(body.split("`")[::2])
    assert "<" not in code_left_out.replace("&lt;", "")
    check_record(record(card.evidence, text))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats() | st.none(), min_size=6, max_size=6), st.sampled_from(["lower", "higher", None]))
def test_a_record_is_valid_whatever_was_measured(numbers, better):
    value, low, high, original, change, items = numbers
    values = {"m": dict(value=value, better=better, interval=[low, high])}
    difference = dict(
        metric="m", original=original, compressed=value, value=change, interval=[low, high], better=better
    )
    cell = dict(recipe="a", probe="p", values=values, differences=[difference], settings={})
    written = record(Evidence({"k": cell}), "a")
    check_record(json.loads(json.dumps(written, allow_nan=False)))
    shown = better is not None and value is not None and math.isfinite(value)
    assert [each["score_details"]["score"] for each in written["evaluation_results"]] == [value] * shown


def test_a_card_loads_without_network_and_comes_back(run):
    assert main(["card", "run"]) == 0
    folder = Path("run/cards/RTN-4")
    loaded = ModelCard.load(folder / "README.md")
    assert str(loaded) == (folder / "README.md").read_text()
    assert (loaded.data.base_model, loaded.data.base_model_relation) == ("acme/tiny", "quantized")
    assert [result.metric_type for result in loaded.data.eval_results] == ["acc", "acc_norm"]
    entries = parse_eval_result_entries(read_yaml((folder / ".eval_results/compress_lab.yaml").read_text()))
    assert entries == hub_entries(Evidence.from_run("run"), "RTN-4") and isinstance(entries[0], EvalResultEntry)
    before = {path: path.read_bytes() for path in Path("run/cards").rglob("*") if path.is_file()}
    assert main(["card", "run"]) == 0 and len(before) == 6
    assert before == {path: path.read_bytes() for path in before}


def test_apply_and_export_write_a_card_and_keep_what_was_written_in_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("compressed_tensors")
    import compress_lab as cl
    from compress_lab.models.saving import Subject
    from compress_lab.models.tiny import tiny

    monkeypatch.chdir(tmp_path)
    Subject(tiny("llama", num_hidden_layers=1)).save("base")
    words = ["apply", "RTN", "--group-size", "16", "--model", "base", "--out", "copy"]
    card = Path("copy/README.md")
    for bits in ("4", "8"):
        assert main([*words, "--bits", bits]) == 0 and f"bits={bits}" in card.read_text()
        card.write_bytes(card.read_bytes().replace(ASKED["intended use"].encode(), b"For me.\r\n"))
        assert b"For me.\r\n" in card.read_bytes() and cl.load("copy").history[0]["bits"] == int(bits)
    card.write_text(card.read_text().replace(END, "", 1))
    assert main([*words, "--bits", "3"]) == 2 and "marks where your text begins" in capsys.readouterr().err
    assert cl.load("copy").history[0]["bits"] == 8
    card.unlink()
    assert main(["export", "copy", "--format", "compressed-tensors", "--out", "out"]) == 0
    assert "bits=8" in Path("out/README.md").read_text()


def test_records_pass_the_schema_of_every_eval_ever_itself(tmp_path):
    from jsonschema import Draft7Validator

    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--python-version", "3.12", OFFICIAL[0]]
    if subprocess.run([*fetch, "-d", tmp_path], capture_output=True, timeout=300).returncode:
        pytest.skip(f"no package index offers {OFFICIAL[0]}")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        schema = wheel.read("every_eval_ever/schemas/eval.schema.json")
    assert hashlib.sha256(schema).hexdigest() == OFFICIAL[1]
    official = Draft7Validator(json.loads(schema))
    for recipe in ("RTN-4", "magnitude 50%"):
        official.validate(record(CARD.evidence, recipe))
    with pytest.raises(Exception, match="is a required property"):
        official.validate({name: part for name, part in record(CARD.evidence, "RTN-4").items() if name != "model_info"})
