"""Every notebook runs from top to bottom, each in a kernel of its own.

`--flags slow` adds what is flagged so, `--flags sweep` the heaviest.
"""

import re

import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebook_files import FLAGS, IDS, NBS, PATHS, directives, flags, header, read
from warm_kernels import WarmKernels

SECONDS_A_CELL = 600


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_notebook_runs(path, request):
    notebook = read(path)
    assert "skip_exec" not in header(notebook)[0], "a notebook that is never executed passes silently: use a flag"
    skipped = FLAGS - set(request.config.getoption("--flags").split())
    if wanted := flags(notebook) & skipped:
        pytest.skip(f"flag {', '.join(sorted(wanted))}")
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code" and runs(cell.source, skipped)]
    if not notebook.cells:
        pytest.skip("no cell to run without its flags")
    client = NotebookClient(
        notebook,
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        kernel_manager_class=WarmKernels,
        resources={"metadata": {"path": str((NBS / path).parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        pytest.fail(re.sub(r"\x1b\[[0-9;]*m", "", f"{path}\n{error}"), pytrace=False)


def runs(source, skipped):
    "Whether a cell is executed: not flagged, not `#| eval: false`."
    found = directives(source)[0]
    return not (skipped & set(found)) and found.get("eval") != "false"
