"""Notebooks are committed clean, small and readable anywhere."""

import ast
import json
import re
import subprocess
import sys
from copy import deepcopy

import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbdev.clean import clean_nb
from notebook_files import IDS, MODULES, NBS, PATHS, code, read

from compress_lab.site.mathml import mathml
from compress_lab.site.notebooks import header

LARGEST, CELLS, EXPORTED_LINES = 1_500_000, 100, 60
MACHINE = re.compile(r"(?<![\w.:/~-])/(?:work|root|home|tmp|Users|mnt|opt)/|\b[A-Z]:\\Users\\")

every_notebook = pytest.mark.parametrize("path", PATHS, ids=IDS)


@every_notebook
def test_nbdev_clean_leaves_it_as_it_is(path):
    raw = json.loads((NBS / path).read_text(encoding="utf-8"))
    cleaned = deepcopy(raw)
    clean_nb(cleaned)
    assert cleaned == raw, "run nbdev_clean"


@every_notebook
def test_holds_no_paths_of_a_machine(path):
    for cell in json.loads((NBS / path).read_text(encoding="utf-8"))["cells"]:
        outputs = [
            text
            for output in cell.get("outputs", [])
            for text in (
                output.get("text", ""),
                *(value for kind, value in output.get("data", {}).items() if not kind.startswith("image/png")),
            )
        ]
        for text in map("".join, (cell["source"], *outputs)):
            assert not MACHINE.search(text), text[:300]


@every_notebook
def test_has_no_errors_or_warnings_in_its_outputs(path):
    for cell in read(path).cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", f"{cell.source}\n{output.text}"
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {}), f"a widget: {cell.source}"


@every_notebook
def test_keeps_no_widgets(path):
    assert "widgets" not in read(path).metadata, "remove metadata.widgets"


@every_notebook
def test_is_small(path):
    assert (NBS / path).stat().st_size < LARGEST
    assert len(read(path).cells) <= CELLS


@every_notebook
def test_has_a_title_and_a_description(path):
    facts = header(read(path))[0]
    assert facts.get("title") and facts.get("description"), (
        "the first cell: '# Title', an empty line, '> one line of description'"
    )


@every_notebook
def test_directives_stand_at_the_top_of_their_cell(path):
    for cell in read(path).cells:
        if cell.cell_type != "code":
            continue
        body = re.sub(r"\A(?:#\|.*\n?)+", "", cell.source)
        assert not re.search(r"^#\|", body, flags=re.M), cell.source


exporting = pytest.mark.parametrize("path", MODULES, ids=[path.as_posix() for path in MODULES])


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_exported_cells_are_short(path):
    for found, source in code(read(path)):
        if {"export", "exporti", "exports"} & set(found):
            lines = [line.strip() for line in source.splitlines()]
            assert sum(not line.startswith("#") for line in lines if line) <= EXPORTED_LINES, lines[0]


@exporting
def test_exporting_notebook_contains_a_check(path):
    checks = [
        source
        for found, source in code(read(path))
        if not {"export", "exporti", "exports", "default_exp"} & set(found)
        and re.search(r"\bassert\b|\bexpect\(", source)
    ]
    assert checks


@exporting
def test_public_functions_say_what_they_do(path):
    for found, source in code(read(path)):
        if not {"export", "exports"} & set(found):
            continue
        for node in ast.parse(source).body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and not is_overload(node)
            ):
                assert ast.get_docstring(node), f"{node.name} has no docstring"


def equations(text):
    "The equations of a markdown text, as the site finds them, and whether each has a line of its own."
    parser = MarkdownIt().use(dollarmath_plugin, double_inline=True).use(amsmath_plugin)
    for block in parser.parse(text):
        for token in (block, *(block.children or ())):
            if token.type.startswith("math") or token.type == "amsmath":
                yield token.content, not token.type.startswith("math_inline")


@every_notebook
def test_equations_can_be_shown_offline(path):
    for cell in read(path).cells:
        shown = [cell.source] if cell.cell_type == "markdown" else []
        shown += [
            output.data["text/markdown"]
            for output in cell.get("outputs", [])
            if "text/markdown" in output.get("data", {})
        ]
        for text in shown:
            for equation, block in equations("".join(text)):
                assert mathml(equation, block).startswith("<math"), equation


def is_overload(node):
    "Whether a function is a patch or an overload of one that is documented."
    return any(getattr(decorator, "id", "") in ("patch", "overload") for decorator in node.decorator_list)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_has_nothing_to_say(root, command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "nbs", "tests"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
