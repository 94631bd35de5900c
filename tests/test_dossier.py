"""The dossier under what a notebook cell does not show.

Hostile text, gaps of every kind, broken cells, a full study.
"""

import math
import os
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from compress_lab.core.errors import CompressLabError
from compress_lab.core.store import Store
from compress_lab.report import plots
from compress_lab.report.card import Card
from compress_lab.report.claims import Claim
from compress_lab.report.dossier import Dossier
from compress_lab.report.evidence import areas, known_probes, trust_axes
from compress_lab.report.example import ANSWER_STUDY, answer_cells
from compress_lab.report.pictures import error_metric, without_error

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "{{ 7*7 }}{% raw %}",
    "</style></title></svg><script>",
    "$\\frac{1}{",
    "\x00\x08\u202egnp",
    "名前 🙂",
    "a\nb\tc",
    "x" * 5000,
    "",
    " ",
]

RECIPES = {  # name: steps, stored share, bits, ratio of the perplexity, agreement, kl, simulated
    "RTN-8": ([dict(method="RTN", bits=8, group_size=64)], 0.35, 8.5, 1.001, 0.985, 0.0009, True),
    "RTN-4": ([dict(method="RTN", bits=4, group_size=64)], 0.24, 4.5, 1.292, 0.78, 0.29, True),
    "GPTQ-4": ([dict(method="GPTQ", bits=4, group_size=64)], 0.24, 4.5, 1.20, 0.82, 0.19, True),
    "magnitude 50%": ([dict(method="Magnitude", sparsity=0.5)], 1.0, 32.0, 14.1, 0.37, 2.7, False),
    "Wanda 50%": ([dict(method="Wanda", sparsity=0.5)], 1.0, 32.0, 2.13, 0.59, 0.83, False),
    "Wanda 2:4": ([dict(method="Wanda", sparsity="2:4")], 1.0, 32.0, 5.6, 0.45, 1.8, False),
    "Wanda 50% then GPTQ-4": (
        [dict(method="Wanda", sparsity=0.5), dict(method="GPTQ", bits=4, group_size=64)],
        0.24,
        4.5,
        2.9,
        0.52,
        1.2,
        True,
    ),
}
STUDY = (
    "subject: made-up\nrecipes:\n"
    + "".join(f"  {name}: {steps}\n" for name, (steps, *_) in RECIPES.items())
    + "probes: [size, perplexity, fidelity, latency, memory]\n"
)


def modules(rng, level, blocks):
    roles = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
    return {
        f"model.layers.{b}.{role}": {
            "weight_error": level * rng.lognormal(0, 0.15) * (1 + 0.3 * (b in (0, blocks - 1)))
        }
        for b in range(blocks)
        for role in roles
    }


def difference(metric, original, compressed, width, **more):
    low, high = compressed - original - width, compressed - original + width
    return (
        dict(
            metric=metric,
            original=original,
            compressed=compressed,
            value=compressed - original,
            interval=[low, high],
            ratio=compressed / original if original else None,
            ratio_interval=[1 + low / original, 1 + high / original] if original else None,
            method="paired bootstrap over 14 documents",
            verdict="",
            n_items=96,
            n_clusters=14,
        )
        | more
    )


def synthetic(names=RECIPES, seed=0, blocks=3):
    "Cells of a study of the right shape, with made-up numbers."
    rng, cells = np.random.default_rng(0), {}
    provenance = dict(
        subject=dict(
            name="made-up-135m",
            source="nowhere",
            licence="Apache-2.0",
            sha256="b1" * 32,
            base_model="made-up",
            done=["dequantised from Q4_1"],
        ),
        data=[dict(name="made-up text", licence="CC BY-SA", sha256="a5" * 32, role="evaluation")],
        environment=dict(
            python="3.12",
            versions=dict(torch="2.13.0", transformers="5.23.0"),
            processor=dict(model="a processor", flags=["avx2", "avx512_vnni"], cores=2),
            threads=2,
        ),
    )

    def put(recipe, probe, values, differences=(), reason="", steps=(), simulated=False, history=()):
        cells[f"f00dfeed0123-{zlib.crc32(recipe.encode()):08x}-{probe}-s{seed}"] = dict(
            recipe=recipe,
            recipe_hash="",
            steps=list(steps),
            probe=probe,
            settings={},
            seed=seed,
            status="not measured" if reason else "measured",
            reason=reason,
            values=values,
            differences=list(differences),
            fingerprint="f00dfeed" * 4,
            history=list(history),
            simulated=simulated,
            provenance=provenance,
            seconds=1.0,
            created="2026-11-23T12:00:00+00:00",
        )

    put(
        "original",
        "size",
        {
            "file_bytes": dict(value=538e6, unit="bytes", better="lower"),
            "bits_per_weight": dict(value=32.0),
            "parameters": dict(value=134.5e6),
        },
    )
    put("original", "perplexity", {"perplexity": dict(value=27.37, unit="", better="lower")})
    for name in names:
        steps, share, bits, ratio, agreement, kl, simulated = RECIPES.get(name, RECIPES["RTN-4"])
        history = [
            dict(step, modules=modules(rng, 0.1 if "bits" in step else 0.3, blocks), touched=106_000_000, seconds=3.0)
            for step in steps
        ]
        more = dict(steps=steps, simulated=simulated, history=history)
        put(
            name,
            "size",
            {
                "file_bytes": dict(value=538e6 * share, unit="bytes", better="lower"),
                "bits_per_weight": dict(value=bits),
                "parameters": dict(value=134.5e6),
            },
            **more,
        )
        put(
            name,
            "perplexity",
            {"perplexity": dict(value=27.37 * ratio, unit="", better="lower")},
            [difference("perplexity", 27.37, 27.37 * ratio, 1.2 * (ratio - 1) ** 0.5)],
            **more,
        )
        put(
            name,
            "fidelity",
            {
                "kl": dict(value=kl, unit="nats", better="lower"),
                "top1_agreement": dict(value=agreement, unit="", better="higher"),
            },
            [difference("kl", 0, kl, kl / 12), difference("top1_agreement", 1, agreement, 0.01)],
            **more,
        )
        refused = "simulated quantization: no kernel ran" if simulated else ""
        for probe, metrics in (("latency", ("prefill_seconds", "decode_seconds")), ("memory", ("peak_bytes",))):
            put(
                name,
                probe,
                {},
                []
                if refused
                else [
                    difference(m, 1.0, 1.0 + rng.normal(0, 0.01), 0.02, control_interval=[0.97, 1.03]) for m in metrics
                ],
                refused,
                **more,
            )
    return cells


class Page(HTMLParser):
    "Collects tags and checks that they nest."

    VOID = {"meta", "br", "img", "link", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.ids = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


def self_contained(text):
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value.startswith(("#", "data:")), (tag, name, value)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert "Content-Security-Policy" in text and "default-src 'none'" in text
    return page


@pytest.fixture(scope="module")
def cells():
    return synthetic()


@pytest.fixture(scope="module")
def page(cells, tmp_path_factory):
    return Dossier(cells, STUDY).to_html(tmp_path_factory.mktemp("d") / "dossier.html").read_text(encoding="utf-8")


def test_page_is_self_contained_and_accessible(page):
    parsed = self_contained(page)
    names = [tag for tag, _ in parsed.tags]
    assert names.count("h1") == 1 and names.count("table") == names.count("caption") >= 2
    assert (
        all(a.get("role") == "img" and a.get("aria-label") for tag, a in parsed.tags if tag == "svg")
        and names.count("svg") == 3
    )
    assert all(a.get("scope") for tag, a in parsed.tags if tag == "th")
    assert ("html", {"lang": "en"}) in parsed.tags and "prefers-color-scheme" in page and "@media print" in page
    for words in (
        "simulated",
        "mask: no kernel uses it",
        "What was not measured",
        "Apache-2.0",
        "b1" * 32,
        "avx512_vnni",
        "compress-lab run study.yaml",
    ):
        assert words in page, words
    assert len(page) < 2_000_000


def test_same_cells_same_page(cells, tmp_path, page):
    assert Dossier(cells, STUDY).to_html(tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_table_follows_the_study(cells):
    table = Dossier(cells, STUDY).table()
    assert list(table.index) == ["original", *RECIPES]
    assert table.loc["GPTQ-4", "perplexity difference"] == pytest.approx(27.37 * 0.2) and table.loc[
        "GPTQ-4", "stored size"
    ] == pytest.approx(0.24)
    assert (
        table.loc["GPTQ-4", "perplexity difference lo"]
        < table.loc["GPTQ-4", "perplexity difference"]
        < table.loc["GPTQ-4", "perplexity difference hi"]
    )
    assert math.isnan(table.loc["GPTQ-4", "decode time"]) and table.loc["Wanda 50%", "decode time"] == pytest.approx(
        1, abs=0.1
    )
    assert table.loc["Wanda 50% then GPTQ-4", "note"] == "simulated; mask: no kernel uses it"


def test_claims_follow_the_intervals(cells):
    dossier = Dossier(cells, STUDY)
    by = lambda recipe: " ".join(c.text for c in dossier.recipe_claims(recipe))
    assert "No difference in perplexity was seen between RTN-8" in by("RTN-8") and "RTN-4 raises perplexity" in by(
        "RTN-4"
    )
    assert (
        "No change in speed is claimed for Wanda 50%" in by("Wanda 50%")
        and "mask" in by("Wanda 50%")
        and "faster" not in by("RTN-4")
    )
    for claim in dossier.claims():
        assert isinstance(claim, Claim) and set(claim.cells) <= set(cells) and (claim.figures or not claim.about)
        if claim.about:
            assert claim.cells and all(cells[key]["recipe"] == claim.about for key in claim.cells)


@pytest.mark.parametrize(
    "ratio, control, words",
    [
        (0.6, [0.97, 1.03], "is faster in decoding"),
        (0.96, [0.9, 1.1], "No change"),
        (0.6, None, "No change"),
        (1.4, [0.97, 1.03], "is slower"),
    ],
)
def test_speed_needs_the_control(ratio, control, words):
    cell = dict(
        recipe="A",
        probe="latency",
        differences=[
            difference("decode_seconds", 1.0, ratio, 0.02, **({"control_interval": control} if control else {}))
        ],
    )
    dossier = Dossier({"k": cell})
    assert words in dossier.recipe_claims("A")[0].text
    assert ("A ran faster" in " ".join(map(str, dossier.summary()))) == ("is faster" in words)


def test_hostile_names_side_by_side(tmp_path):
    cells = {
        f"k{i}-{probe}": dict(cell, recipe=name)
        for i, name in enumerate(HOSTILE)
        for probe, cell in ((c["probe"], c) for c in synthetic(["GPTQ-4"]).values() if c["recipe"] != "original")
    }
    page = Dossier(cells).to_html(tmp_path / "d.html").read_text(encoding="utf-8")
    self_contained(page)
    assert "<script" not in page and "onerror=alert(1)>" not in page and "\u202e" not in page and "{{ 7*7 }}" in page


@pytest.mark.parametrize("text", [HOSTILE[0], HOSTILE[1], HOSTILE[6], "a: b\n  c: [d, &x *x]", ""])
def test_hostile_text_everywhere(text, tmp_path):
    cells = synthetic(["RTN-4"])
    for cell in cells.values():
        if cell["recipe"] != "original":
            cell.update(
                recipe=text,
                reason=text,
                steps=[{"method": text, text: text}],
                history=[{"method": text, "modules": {f"{text}.0.{text}": {"weight_error": 0.1}}}],
            )
        cell.update(
            settings={text: text},
            fingerprint=text,
            created=text,
            provenance={
                "subject": {"name": text, text: text},
                "data": [{text: [text]}],
                "environment": {text: {text: text}},
            },
        )
        cell["values"] = {**cell["values"], text: {"value": 1.0, "unit": text}}
        for d in cell["differences"]:
            d.update(method=text, verdict=text, margin=text)
    dossier = Dossier(cells, text)
    page = dossier.to_html(tmp_path / "d.html").read_text(encoding="utf-8")
    self_contained(page)
    assert "<script" not in page and "onerror=alert(1)>" not in page and "\x00" not in page and "\u202e" not in page
    assert "<script" not in dossier._repr_html_()
    if text.endswith("]"):
        assert text.replace("&", "&amp;") in page  # a study file keeps its indentation


def test_hostile_text_in_plots():
    import pandas as pd

    frame = pd.DataFrame(
        dict(
            recipe=HOSTILE,
            size=np.arange(len(HOSTILE)) + 1.0,
            quality=np.arange(len(HOSTILE))[::-1] + 1.0,
            metric=HOSTILE[0],
            value=1.0,
            lo=0.5,
            hi=2.0,
        )
    )
    for figure in (
        plots.pareto(frame.drop(columns=["lo", "hi"])),
        plots.intervals(frame),
        plots.layer_errors({name: [{"modules": {f"{name}.3.{name}": {"weight_error": 0.1}}}] for name in HOSTILE}),
    ):
        text = plots.svg(figure, HOSTILE[0], "p")
        assert "<script" not in text and "\u202e" not in text and "\x00" not in text


def test_nothing_at_all(tmp_path):
    dossier = Dossier({})
    self_contained(dossier.to_html(tmp_path / "d.html").read_text(encoding="utf-8"))
    assert dossier.table().empty and len(dossier.not_measured()) >= 10


def test_everything_failed(cells, tmp_path):
    failed = {
        key: dict(cell, status="not measured", reason="the Hessian stayed singular", values={}, differences=[])
        for key, cell in cells.items()
    }
    dossier = Dossier(failed, STUDY)
    page = dossier.to_html(tmp_path / "d.html").read_text(encoding="utf-8")
    self_contained(page)
    assert "the Hessian stayed singular" in page and "Nothing was measured." in page and "Not drawn" in page
    assert dossier.table().loc["GPTQ-4", "note"].endswith("not measured")


def test_one_recipe(tmp_path):
    dossier = Dossier(synthetic(["GPTQ-4"]))
    page = dossier.to_html(tmp_path / "d.html").read_text(encoding="utf-8")
    self_contained(page)
    assert list(dossier.table().index) == ["original", "GPTQ-4"] and "GPTQ-4 raises perplexity" in page


def test_missing_probes_and_unreached_cells(cells, tmp_path):
    some = {
        key: cell
        for key, cell in cells.items()
        if cell["probe"] == "perplexity" and cell["recipe"] in ("original", "RTN-8")
    }
    dossier = Dossier(some, STUDY)
    page = dossier.to_html(tmp_path / "d.html").read_text(encoding="utf-8")
    self_contained(page)
    assert {
        "recipe": "GPTQ-4",
        "probe": "size",
        "reason": "the run has not reached it",
        "cell": "",
    } in dossier.not_measured()
    assert "stored size" not in dossier.table(text=True) and "Not drawn" in page and "Not recorded" not in page


def test_only_fidelity_still_draws(cells):
    assert "KL divergence" in Dossier(
        {k: c for k, c in cells.items() if c["probe"] in ("size", "fidelity")}
    ).pareto().axes[0].get_title("left")


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"values": None, "differences": None},
        {"values": [], "differences": {}},
        {"values": {"perplexity": {"value": "x"}}},
        {"differences": [None, 3, {}]},
        {"recipe": None, "probe": 3, "steps": "x", "history": [1]},
        {
            "values": {"perplexity": {"value": math.inf}},
            "differences": [{"metric": "perplexity", "value": math.nan, "interval": [None, 1]}],
        },
        {"provenance": [], "history": {"a": 1}, "status": None},
    ],
)
def test_odd_cells_do_not_stop_it(broken, tmp_path):
    self_contained(
        Dossier({**synthetic(["RTN-8"]), "odd": {"recipe": "odd", "probe": "perplexity", **broken}})
        .to_html(tmp_path / "d.html")
        .read_text(encoding="utf-8")
    )


def test_intervals_of_seeds_are_not_put_together_without_their_records():
    one, two = synthetic(["RTN-4"]), synthetic(["RTN-4"], seed=1)
    for cell in two.values():
        for d in cell["differences"]:
            d["interval"] = [d["interval"][0] - 1, d["interval"][1] + 2]
    row = Dossier({**one, **two}).find("RTN-4", "perplexity")
    d = next(d for c in one.values() for d in c["differences"] if d["metric"] == "perplexity")
    assert (
        len(row["cells"]) == 2
        and row["difference"] == pytest.approx(d["value"])
        and np.isnan([row["difference_lo"], row["difference_hi"]]).all()
        and row["verdict"] == "no interval"
    )


def test_from_run(cells, tmp_path):
    store = Store(tmp_path / "run")
    for key, cell in cells.items():
        store.put(key, cell)
    store.write_text("study.yaml", STUDY)
    dossier = Dossier.from_run(tmp_path / "run")
    assert list(dossier.table().index) == ["original", *RECIPES]
    damaged = next((tmp_path / "run").rglob("result.json"))
    damaged.write_text(damaged.read_text().replace("27.37", "17.37").replace("made-up", "changed"))
    gaps = Dossier.from_run(tmp_path / "run").not_measured()
    assert sum("damaged" in gap["reason"] for gap in gaps) == 1
    with pytest.raises(CompressLabError, match="nothing to report"):
        Dossier.from_run(tmp_path / "elsewhere")


def test_old_page_survives_a_failed_write(tmp_path, monkeypatch):
    path = Dossier({}).to_html(tmp_path / "d.html")
    before = path.read_bytes()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CompressLabError, match="disk is full"):
        Dossier({}, "subject: another").to_html(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["d.html"]


def test_plots_leave_no_trace():
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    Dossier(synthetic(["RTN-4"])).pareto()
    assert plt.get_fignums() == [] and dict(mpl.rcParams) == before


def test_a_step_says_what_it_computed_in(tmp_path):
    cells = synthetic()
    for cell in cells.values():
        if cell["recipe"] != "GPTQ-4":
            continue
        cell["steps"] = [dict(cell["steps"][0], calibration_dtype="auto")]
        cell["history"] = [dict(each, calibration_dtype="bfloat16") for each in cell["history"]]
    page = Dossier(cells, STUDY).to_html(tmp_path / "dossier.html").read_text(encoding="utf-8")
    assert (
        "GPTQ(bits=4, group_size=64, calibration_dtype=&#39;bfloat16&#39;)" in page
        and "auto" not in page.partition("<code>GPTQ(")[2].partition("</code>")[0]
    )


def test_errors_of_outputs_are_drawn_where_there_are_some():
    cells = synthetic(["RTN-4", "GPTQ-4"])
    plain = Dossier(cells, STUDY)
    assert error_metric(plain) == "weight_error" and not without_error(plain)
    for cell in cells.values():
        if cell["recipe"] != "GPTQ-4":
            continue
        for entry in cell["history"]:
            for module in entry["modules"].values():
                module["output_error"] = 0.01
    some = Dossier(cells, STUDY)
    assert error_metric(some) == "output_error" and without_error(some) == ["RTN-4"]
    caption = some.pictures()[-1].caption
    assert "Relative output error" in caption and "RTN-4 recorded errors of weights only" in caption


def cells_of(probe, axis):
    "Cells of an original and a copy, with the metrics that the class of a probe declares, worse by their intervals."
    metrics = known_probes()[probe].metrics
    values = {metric.name: dict(value=0.2, unit=metric.unit, better=metric.better) for metric in metrics}
    changes = [difference(metric.name, 0.2, 0.5, 0.1, unit=metric.unit, better=metric.better) for metric in metrics]
    meta = {"records": {"meta": {"axis": axis}}} if axis else {}
    return {
        f"{probe} {recipe}": dict(recipe=recipe, probe=probe, settings={}, values=values, differences=made, **meta)
        for recipe, made in (("original", []), ("a", changes))
    }


@pytest.mark.parametrize("told", [True, False], ids=["axis of the records", "axis of the class"])
@pytest.mark.parametrize("name", sorted(known_probes()))
def test_what_a_probe_measured_is_nowhere_called_missing(name, told, tmp_path):
    kind = known_probes()[name]
    own = kind.axis or name
    dossier = Dossier(cells_of(name, kind.axis if told else ""), f"subject: x\nrecipes: {{a: []}}\nprobes: [{name}]")
    missing = [gap["probe"] for gap in dossier.not_measured()]
    assert sorted(missing) == sorted({*areas()} - {own})
    said = {heading: " ".join(map(str, claims)) for heading, claims in dossier.first_screen().items()}
    assert "Nothing was measured" not in " ".join(said.values())
    text = dossier.to_html(tmp_path / "d.html").read_text(encoding="utf-8")
    assert f"probes: {name}" in text and all(f">{metric.name}" in text for metric in kind.metrics)
    assert (f"<h2>{own.capitalize()}</h2>" in text) == (own in trust_axes())
    by_reason = {gap["reason"]: gap["probe"].split(", ") for gap in Card(dossier, "a").limits()["gaps"]}
    assert own not in by_reason["no probe of this study covers it"]


@pytest.mark.parametrize("name", sorted(known_probes()))
def test_an_area_is_called_missing_without_its_probes(name):
    own = known_probes()[name].axis or name
    others = {each: kind.axis for each, kind in known_probes().items() if (kind.axis or each) != own}
    cells = {key: cell for each, axis in others.items() for key, cell in cells_of(each, axis).items()}
    assert sorted(gap["probe"] for gap in Dossier(cells).not_measured()) == sorted(["data rights", own])


@pytest.mark.parametrize("name", [name for name, kind in known_probes().items() if kind.axis == "fidelity"])
def test_a_distance_is_no_loss(name):
    dossier = Dossier(cells_of(name, "fidelity"))
    limits = Card(dossier, "a").limits()
    metric = known_probes()[name].metrics[0].name
    assert not limits["worse"] and limits["apart"].startswith(metric)
    assert [claim.text for claim in dossier.recipe_claims("a")][0].startswith("a ") and dossier.axes().empty
    assert dossier.first_screen()["What to take"][0].text.startswith("There is no verdict")


def test_tasks_are_named_by_the_axis_of_their_file():
    for status in ("measured", "not measured"):
        cell = dict(
            recipe="a", probe="task", settings={"task": "hans"}, status=status, values={"hans.acc": {"value": 1}}
        )
        for dossier in (Dossier({"k": cell}), Dossier({}, "recipes: {a: []}\nprobes: [{probe: task, task: hans}]")):
            missing = {gap["probe"] for gap in dossier.not_measured() if not gap["recipe"]}
            assert "task accuracy" in missing and "robustness" not in missing


def test_a_table_of_answers_stands_under_no_sentence_that_nobody_looked(tmp_path):
    dossier = Dossier(answer_cells(), ANSWER_STUDY)
    unknown = " ".join(map(str, dossier.first_screen()["What is not known"]))
    assert "No probe of this study covers" in unknown and "answers" not in unknown
    assert "answers" not in {gap["probe"] for gap in dossier.not_measured()}
