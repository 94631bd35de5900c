"""What the tests ask about notebooks."""

import re
from configparser import ConfigParser

import nbformat
from conftest import ROOT

from compress_lab.site.notebooks import directives, exported_module, header, notebooks

NBS, LIB = ROOT / "nbs", ROOT / "compress_lab"
PATHS = notebooks(NBS)
IDS = [path.as_posix() for path in PATHS]
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(ROOT / "settings.ini", encoding="utf-8")
FLAGS = set(settings["DEFAULT"]["tst_flags"].split())


def read(path):
    "The notebook at a path relative to `nbs`."
    return nbformat.read(NBS / path, 4)


def code(notebook):
    "Its code cells, each as its directives and its text without them."
    return [directives(cell.source) for cell in notebook.cells if cell.cell_type == "code"]


def flags(notebook):
    "The flags a whole notebook stands under."
    return set(re.split(r"[\s,]+", str(header(notebook)[0].get("flags", "")).strip())) - {""}


def module_path(module):
    "Where a module lies."
    return (LIB / module.replace(".", "/")).with_suffix(".py")


MODULES = {path: module for path in PATHS if (module := exported_module(read(path)))}
