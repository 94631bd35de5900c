"""What the shelf of papers claims: written down before it was tested, tested or not testable, and shown."""

import re
import subprocess

import pytest
from notebook_files import NBS, read

from compress_lab.core.errors import NotMeasured
from compress_lab.report.paper_claims import order_in_git, read_paper
from compress_lab.site.pages import citations

FOLDER = NBS / "papers" / "claims"
FILES = sorted(FOLDER.glob("*.yml"))
PLANNED = sorted((FOLDER / "planned").glob("*.yml"))

every_paper = pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])


def test_the_shelf_is_not_empty():
    assert FILES


@every_paper
def test_claims_were_committed_before_their_results(path):
    try:
        order = order_in_git(path)
    except NotMeasured as error:
        pytest.skip(f"no history to look at: {error.where}")
    beforehand = {claim.key for claim in read_paper(path).claims if claim.beforehand}
    assert not [row for row in order if row.claim in beforehand and not row.in_order]


@every_paper
def test_claims_have_verdicts(path):
    judged = [claim for claim in read_paper(path).claims if claim.verdict != "not run yet"]
    assert len(judged) >= 2
    assert any(claim.result for claim in judged), "a paper on the shelf has a result"


@every_paper
def test_the_notebook_shows_its_claims(path):
    notebook = read(FOLDER.parent.relative_to(NBS) / read_paper(path).notebook)
    assert any(f"claims/{path.name}" in cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_planned_claims_have_no_results():
    for path in PLANNED:
        assert {claim.verdict for claim in read_paper(path).claims} <= {"not run yet", "not testable here"}, path.name


def test_every_paper_has_claims():
    notebooks = {path.name for path in FOLDER.parent.glob("[0-9]*.ipynb")} - {"00_scoreboard.ipynb"}
    shelf, planned = ({read_paper(path).notebook for path in paths} for paths in (FILES, PLANNED))
    assert shelf <= notebooks <= shelf | planned


def test_references_are_those_of_the_claims():
    "Title and number in the BibTeX are the ones that the file of claims has."
    entries = citations(FOLDER.parent / "references.bib")
    papers = {path.stem: read_paper(path) for path in (*FILES, *PLANNED)}
    assert entries and set(entries) <= set(papers)
    for key, entry in entries.items():
        fields = dict(re.findall(r"^  (\w+) += \{(.*)\},$", entry, flags=re.M))
        assert re.sub(r"[{}]", "", fields["title"]).lower() == papers[key].title.lower()
        assert papers[key].link.endswith(fields.get("eprint") or fields["url"]), key
        assert fields["author"].split()[-1] == "others" or " and " in fields["author"]
        assert papers[key].paper.endswith(fields["year"]) and key.endswith(fields["year"])


def test_git_is_asked_where_there_is_one():
    inside = subprocess.run(["git", "-C", str(NBS), "rev-parse", "--is-shallow-repository"], capture_output=True)
    if inside.returncode or inside.stdout.strip() != b"false" or not FILES:
        pytest.skip("no checkout with its history")
    assert len(order_in_git(FILES[0])) == len(read_paper(FILES[0]).claims)
