"""Task files travel with the package, and anything else in their place is refused by name.

Trees hold every request exactly.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from notebook_files import ROOT

from compress_lab.core.errors import CompressLabError
from compress_lab.evaluate.scoring import Request, grow, inputs, packs, score
from compress_lab.evaluate.tasks import read_task, task_files
from compress_lab.models.tiny import tiny

few_tokens = st.lists(st.integers(0, 2), min_size=2, max_size=9)
requests = st.lists(
    few_tokens.flatmap(
        lambda tokens: st.integers(1, len(tokens) - 1).map(lambda option: Request(np.array(tokens), option))
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@given(requests, st.integers(1, 40))
def test_every_request_is_in_one_tree_with_all_its_tokens(given_requests, budget):
    found = packs(given_requests, budget)
    assert sorted(number for pack in found for number in pack) == list(range(len(given_requests)))
    for pack in found:
        tree = grow(given_requests, pack)
        prefixes = {
            tuple(inputs(given_requests[number])[:length])
            for number in pack
            for length in range(1, len(inputs(given_requests[number])) + 1)
        }
        assert len(tree.tokens) == len(prefixes), "each beginning once"
        for number in pack:
            request, nodes, targets = (
                given_requests[number],
                tree.nodes[tree.owner == number],
                tree.targets[tree.owner == number],
            )
            assert (targets == request.tokens[-request.option :]).all() and len(nodes) == request.option
            for node, length in zip(nodes, range(len(request.tokens) - request.option, len(request.tokens))):
                assert (tree.tokens[tree.seen[node]] == request.tokens[:length]).all()
                assert (np.sort(tree.depth[tree.seen[node]]) == np.arange(length)).all()


@settings(max_examples=20, deadline=None)
@given(requests, st.integers(1, 40))
def test_ways_agree(given_requests, budget):
    model = tiny("llama")
    ways = [score(model, given_requests, budget=budget, way=way) for way in ("packed", "padded", "alone")]
    for way in ways[:2]:
        assert np.allclose(way.logp, ways[2].logp, atol=1e-4) and (way.greedy == ways[2].greedy).all()


values = st.recursive(
    st.none()
    | st.integers(-3, 3)
    | st.text(max_size=8)
    | st.sampled_from(["{{a}}", "{% if", "a.b", "choice", "acc", "1 +", "{{ 1 / 0 }}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(task_files())), st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, name, data):
    said = yaml.safe_load(task_files()[name].read_text(encoding="utf-8"))
    for key in data.draw(st.lists(st.sampled_from(sorted(said)), min_size=1, max_size=2, unique=True)):
        said[key] = data.draw(values)
    path = tmp_path_factory.mktemp("damaged") / "task.yaml"
    path.write_text(yaml.safe_dump(said), encoding="utf-8")
    try:
        read_task(path)
    except CompressLabError as error:
        assert "task.yaml" in str(error)


def test_task_files_are_packaged(tmp_path):
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    packaged = {path.stem for path in Path(tmp_path, "compress_lab", "evaluate", "tasks").glob("*.yaml")}
    assert packaged == {*task_files()} and len(packaged) > 20


@pytest.mark.parametrize("name", sorted(task_files()))
def test_each_file_says_where_it_is_from(name):
    file = read_task(name)
    assert file.name == name and file.about and file.licence and "/" in file.dataset
