"""The risk profile: evidence only where a record is, whatever the study looked at, and the same bytes twice."""

import csv
import io
import json
import re
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from notebook_files import LIB, ROOT
from test_dossier import HOSTILE

from compress_lab.cli import main
from compress_lab.core.settings import read_yaml
from compress_lab.core.store import Store
from compress_lab.report.evidence import Evidence, areas, known_probes
from compress_lab.report.example import CARD_STUDY, axis_cells, card_cells
from compress_lab.report.frameworks import FILES, frameworks
from compress_lab.report.risk import FACTS, RECORD, TOKENS, Profile, read_answers

CELLS = card_cells()
ASKED = {row.id: row for framework in frameworks() for row in framework.requirements}
PROBES = sorted(known_probes())
AXES = {name: kind.axis for name, kind in known_probes().items()}
UNWANTED = re.compile("complian|conform|certif", re.I)
chosen = st.lists(st.sampled_from(PROBES), unique=True, max_size=8)


def study_of(probes) -> dict:
    "Made-up cells of two copies, one probe each."
    cells = {}
    for name in probes:
        made = axis_cells(AXES[name], name, {"a": 0.3, "b": -0.3})
        cells |= {re.sub(r"[^\w-]+", "-", key).strip("-"): cell for key, cell in made.items()}
    return cells


def profile_of(cells, study="") -> dict:
    return Profile(Evidence(cells, study), {}).rows()


@settings(max_examples=15, deadline=None)
@given(chosen)
def test_evidence_of_a_probe_stands_only_where_the_probe_was_run(probes):
    cells, looked = study_of(probes), {*probes, *(AXES[name] for name in probes)}
    for name, row in profile_of(cells).items():
        from_probes = [source for source in ASKED[name].sources if source not in FACTS]
        for source in from_probes:
            seen = any(cells[key]["probe"] == source or AXES[cells[key]["probe"]] == source for key in keys_of(row))
            assert source in looked or not seen
        if not set(ASKED[name].sources) & {*looked, *FACTS}:
            assert row.status in ("gap", "nothing") and not row.findings
        if set(from_probes) & looked:
            assert row.status in ("evidence", "part")


def keys_of(row) -> set:
    return {key for finding in row.findings for key in finding.cells}


@settings(max_examples=8, deadline=None)
@given(chosen, st.data())
def test_removing_a_record_removes_its_tick(probes, data):
    cells = CELLS | study_of(probes)
    before = profile_of(cells, CARD_STUDY)
    ticked = [name for name, row in before.items() if row.findings]
    assert all(keys_of(before[name]) and keys_of(before[name]) <= set(cells) for name in ticked)
    name = data.draw(st.sampled_from(ticked))
    gone = keys_of(before[name])
    left = {key: cell for key, cell in cells.items() if key not in gone}
    after = profile_of(left, CARD_STUDY)
    assert after[name].status == "gap" or keys_of(after[name]) and not keys_of(after[name]) & gone
    assert not any(keys_of(row) & gone for row in after.values())


def test_nothing_measured_is_no_evidence():
    rows = profile_of({}, CARD_STUDY)
    assert {row.status for row in rows.values()} == {"gap", "nothing"}
    unmeasured = {key: dict(cell, status="not measured", values={}, differences=[]) for key, cell in CELLS.items()}
    assert {row.status for row in profile_of(unmeasured, CARD_STUDY).values()} == {"gap", "nothing"}


def test_each_source_is_a_fact_a_probe_or_an_axis():
    known = {*FACTS, *PROBES, *areas()}
    for row in ASKED.values():
        assert set(row.sources) <= known, row.id
        assert row.gives != "nothing" or not row.sources
    assert Counter(row.gives for row in frameworks()[0].requirements) == {"study": 21, "part": 29, "nothing": 22}


@pytest.mark.parametrize("framework", frameworks(), ids=lambda framework: framework.name)
def test_each_row_says_where_it_is_from_and_when_it_was_read(framework):
    newest = re.search(r"^## \S+, (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    released = date.fromisoformat(newest) if newest[:1].isdecimal() else date.today()  # "not yet released"
    assert (released - framework.as_of).days <= 365
    assert all(row.source.startswith("https://") for row in framework.requirements)
    assert len({row.says for row in framework.requirements}) == len(framework.requirements)


def test_no_sentence_says_that_a_rule_is_met():
    files = [LIB / "report" / "data" / name for name in FILES]
    files += [
        *(LIB / "report" / "templates").glob("risk.*"),
        LIB / "report" / "risk.py",
        LIB / "report" / "frameworks.py",
    ]
    assert len(files) == 8 and not [file.name for file in files if UNWANTED.search(file.read_text())]
    profile = Profile(Evidence(CELLS | study_of(PROBES), CARD_STUDY), {})
    assert not any(UNWANTED.search(text) for text in (profile.to_html(), profile.to_markdown(), profile.to_json()))


def test_the_same_study_gives_the_same_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    store = Store("run")
    store.write_text("study.yaml", CARD_STUDY)
    for key, cell in CELLS.items():
        store.put(key, cell)
    Path("answers.yaml").write_text(
        yaml.safe_dump({"GOVERN 1.2": "We <b>decide</b>.", "training tokens of the base": 10**12})
    )
    written = []
    for _ in range(2):
        assert main(["risk", "run", "--answers", "answers.yaml"]) == 0
        written.append([Path("run/risk", f"risk.{form}").read_bytes() for form in ("html", "md", "json")])
    assert written[0] == written[1]
    page, text, read = written[0][0].decode(), written[0][1].decode(), json.loads(written[0][2])
    assert "We &lt;b&gt;decide&lt;/b&gt;." in page and "<b>" not in page + text
    assert sum(len(framework["rows"]) for framework in read["frameworks"]) == len(ASKED)
    keys = {
        key for part in read["frameworks"] for row in part["rows"] for each in row["findings"] for key in each["cells"]
    }
    assert keys and keys <= set(store.keys())
    assert main(["risk", "run", "--answers", "answers.yaml", "--answers-template", "more.yaml"]) == 0
    assert (
        read_answers("more.yaml") == read_answers("answers.yaml") and "GOVERN 2.1:\n" in Path("more.yaml").read_text()
    )
    Path("answers.yaml").write_text("GOVERN 9.9: a")
    assert main(["risk", "run", "--answers", "answers.yaml"]) == 2 and "GOVERN" in capsys.readouterr().err


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_elsewhere_is_only_text(text):
    cells = json.loads(json.dumps(CELLS))
    for cell in cells.values():
        cell["recipe"] = text if cell["recipe"] == "RTN-4" else cell["recipe"]
        cell["steps"] = [{"method": text}]
        cell["provenance"]["subject"] |= dict(name=text, licence=text)
    profile = Profile(Evidence(cells, CARD_STUDY), {"GOVERN 1.2": text})
    plain = profile.to_html()
    assert plain.count("<script") == plain.count("<img") == plain.count("onerror='") == 0
    assert "<script" not in profile.to_markdown() and "\x00" not in profile.to_markdown() + plain
    assert len(json.loads(profile.to_json())["frameworks"]) == 4
    answered = Profile(profile.evidence, {"GOVERN 1.2": text, "GDPR Art. 30, recipients": text, TOKENS: 1e12})
    assert read_yaml(answered.answers_yaml()).keys() >= {"GOVERN 1.2", TOKENS, *RECORD}
    table = list(csv.DictReader(io.StringIO(answered.records().to_csv(index=False))))
    assert len(table) == 2 and all("\n" not in value and "\x00" not in value for row in table for value in row.values())
