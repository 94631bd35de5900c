"""Settings for all tests: no Hub, no progress bars, Ctrl-C heard, a fair share of the processor for each worker."""

import os
import signal
import sys
from pathlib import Path

import pytest
from heavy import heavy, rank

ROOT = Path(__file__).parent.parent
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell starts background jobs without it, and their children inherit that
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
threads = str(max(1, (os.cpu_count() or 1) // workers))
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "COMPRESS_LAB_PROGRESS": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
    }
)


def pytest_addoption(parser):
    parser.addoption(
        "--flags",
        default="",
        help="run notebooks and cells with these flags too: slow, gpu, peers; and with sweep what takes long: every "
        "architecture where a sample is tried otherwise, and the heaviest cases",
    )


def pytest_collection_modifyitems(config, items):
    """Marks what takes long with `sweep`, and leaves that out unless it is asked for.

    What takes longest comes first, so that no worker is left with it at the end, and the cases of an architecture come
    last and follow each other, for which its model is built once.
    """
    for item in items:
        if heavy(item.nodeid):
            item.add_marker(pytest.mark.sweep)
    if "sweep" not in config.getoption("--flags").split():
        left_out = [item for item in items if item.get_closest_marker("sweep")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("sweep")]
    sweeps = sys.modules.get("sweeps")  # where a test that is asked for imports it
    items.sort(key=lambda item: (rank(item.nodeid), sweeps.architecture(item) if sweeps else ""))


@pytest.fixture(scope="session")
def root() -> Path:
    "The project's folder."
    return ROOT
