"""The project's own files agree with each other."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points

import pytest
import yaml
from heavy import HEAVY_NOTEBOOKS, HEAVY_TESTS
from notebook_files import IDS, MODULES, ROOT, code, read, settings
from packaging.requirements import Requirement

from compress_lab.core.registry import FORMATS, REGISTRIES, TEXTS
from compress_lab.site.__main__ import main

SETTINGS = settings["DEFAULT"]
PINNED = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
ASKED = [
    Requirement(word)
    for key in ("requirements", "test_requirements", "docs_requirements")
    for word in SETTINGS[key].split()
]


def same(name):
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("requirement", ASKED, ids=str)
def test_each_requirement_is_pinned_to_a_version_it_allows(requirement):
    pins = [pin for pin in PINNED if same(pin.name) == same(requirement.name)]
    assert len(pins) == 1
    (version,) = (specifier.version for specifier in pins[0].specifier)
    assert requirement.specifier.contains(version)


def test_torch_is_pinned_plainly():
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize("group", [registry.group.partition(".")[2] for registry in REGISTRIES])
def test_entry_points_are_installed_and_can_be_imported(group):
    points = {point.value for point in entry_points(group=f"compress_lab.{group}")}
    assert points == {word.partition("=")[2] or word for word in SETTINGS[group].split()}
    for module in points:
        import_module(module)


@pytest.mark.parametrize("registry", [FORMATS, TEXTS], ids=lambda registry: registry.kind)
def test_the_names_of_formats_and_texts_are_known_before_they_are_imported(registry):
    assert registry.offered == sorted(registry.discover())


def test_the_version_is_the_same_everywhere():
    import compress_lab

    assert (
        compress_lab.__version__ == SETTINGS["version"]
        and f"## {SETTINGS['version']}" in (ROOT / "CHANGELOG.md").read_text()
        and yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == SETTINGS["version"]
    )


@pytest.mark.parametrize(
    "name", ["nbs/_quarto.yml", "nbs/nbdev.yml", ".github/workflows/test.yml", ".github/workflows/docs.yml"]
)
def test_yaml_is_valid(name):
    assert yaml.safe_load((ROOT / name).read_text())


def test_every_make_target_is_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    help_text = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = [line.split()[1] for line in help_text.splitlines()]
    assert {"demo", "test", "lab", "docs", "prepare", "clean"} <= set(targets)
    for target in set(targets) - {"help"}:
        assert f"`make {target}`" in readme


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"])
def test_links_between_files_lead_somewhere(name):
    text = re.sub(r"`[^`\n]*`", "", (ROOT / name).read_text(encoding="utf-8"))
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text):
        address, _, anchor = link.partition("#")
        assert ((ROOT / name).parent / address).exists() if address else anchor in headings, link


def test_site_says_how_it_is_used(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["site", "nothing"])
    with pytest.raises(SystemExit, match="usage"):
        main()


def test_what_takes_long_exists_under_its_name():
    assert HEAVY_NOTEBOOKS <= {name.removesuffix(".ipynb") for name in IDS}
    for test in HEAVY_TESTS:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test


def shown_by(node, others):
    """The names of which an example has to use one: the definition's own; for a class its subclasses, and the functions
    whose annotation says that they return it; for a method its class, or what shows it.
    """
    kind, names = node.name, {node.name}
    if isinstance(node, ast.FunctionDef):
        if not node.args.args or node.args.args[0].arg != "self":
            return names
        kind = ast.unparse(node.args.args[0].annotation)
    for other in others:
        above = [ast.unparse(base) for base in other.bases] if isinstance(other, ast.ClassDef) else []
        result = getattr(other, "returns", None)
        if kind in above or result is not None and re.search(rf"\b{kind}\b", ast.unparse(result)):
            names.add(other.name)
    return names | {kind}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_an_example_uses_each_public_definition(path):
    cells = code(read(path))
    nodes = [
        node
        for directives, text in cells
        if "export" in directives
        for node in ast.parse(text).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    ]
    words = {word for directives, text in cells if "export" not in directives for word in re.findall(r"\w+", text)}
    missing = [node.name for node in nodes if not node.name.startswith("_") and not shown_by(node, nodes) & words]
    assert not missing, f"use {', '.join(missing)} in a cell that is not exported, or begin its name with _"
