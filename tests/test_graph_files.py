"""ONNX and OpenVINO files as others lay them out, and what a damaged or foreign one says."""

import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import compress_lab as cl
from compress_lab.core.errors import CompressLabError
from compress_lab.models.tiny import tiny


def as_optimum_names(path):
    "Renames the inputs and outputs of a graph as `optimum` calls them."
    model = onnx.load(path, load_external_data=False)
    new = {}
    for value in (*model.graph.input, *model.graph.output):
        side, _, rest = value.name.partition(".past_key_values.layers.")
        if rest:
            layer, _, part = rest.partition(".")
            new[value.name] = f"{'past_key_values' if side == 'input' else 'present'}.{layer}.{part.removesuffix('s')}"
    for value in (*model.graph.input, *model.graph.output):
        value.name = new.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    path.write_bytes(model.SerializeToString())
    return new


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    subject = cl.Subject(tiny("llama", num_hidden_layers=1))
    folder = tmp_path_factory.mktemp("graph") / "made"
    cl.export(cl.RTN(8, 32).apply(subject), folder, "onnx", check=False)
    return subject, folder


def test_a_folder_of_optimum_decodes_with_its_cache(exported, tmp_path):
    subject, folder = exported
    shutil.copytree(folder, tmp_path / "theirs")
    names = as_optimum_names(tmp_path / "theirs" / "model.onnx")
    assert sorted(names.values())[:2] == ["past_key_values.0.key", "past_key_values.0.value"]
    ours, theirs = cl.load(folder).model, cl.load(tmp_path / "theirs").model
    tokens = torch.arange(8, 20)[None]
    whole = theirs(tokens).logits
    first = theirs(tokens[:, :8], use_cache=True)
    rest = theirs(tokens[:, 8:], past_key_values=first.past_key_values, use_cache=True)
    assert theirs.decodes and torch.equal(whole, ours(tokens).logits)
    assert torch.allclose(torch.cat([first.logits, rest.logits], 1), whole, atol=1e-5)
    assert (whole - subject.model(tokens).logits).abs().max() < 0.1 * whole.abs().max()


def by_hand(path, inputs=("input_ids", "attention_mask", "token_type_ids"), output="logits", external=None):
    "A classifier of a few nodes: embeddings of eight bits and of the kinds of tokens, summed over the tokens."
    random = np.random.default_rng(0)
    table, kinds = random.integers(-128, 128, (50, 4)).astype(np.int8), random.normal(size=(2, 4)).astype(np.float32)
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.float32(0.1).reshape(()), "scale"),
        numpy_helper.from_array(np.zeros((), np.int8), "zero"),
        numpy_helper.from_array(kinds, "kinds"),
        numpy_helper.from_array(np.array([1]), "axis"),
    ]
    if external:
        constants[0].ClearField("raw_data")
        constants[0].data_location = TensorProto.EXTERNAL
        constants[0].external_data.add(key="location", value=external)
    nodes = [
        helper.make_node("DequantizeLinear", ["table", "scale", "zero"], ["words"]),
        helper.make_node("Gather", ["words", inputs[0]], ["word"]),
        helper.make_node("Gather", ["kinds", inputs[-1]], ["kind"]),
        helper.make_node("Add", ["word", "kind"], ["both"]),
        helper.make_node("ReduceSum", ["both", "axis"], [output], keepdims=0),
    ]
    rows = ["rows", "length"]
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info(name, TensorProto.INT64, rows) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", 4])],
        constants,
    )
    path.parent.mkdir(exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return table * np.float32(0.1), kinds


def test_a_classifier_reads_which_text_a_token_is_of(tmp_path):
    table, kinds = by_hand(tmp_path / "theirs" / "model_quantized.onnx")
    graph = cl.load(tmp_path / "theirs")
    tokens, types = torch.tensor([[3, 4, 5]]), torch.tensor([[0, 1, 1]])
    for given in (None, types):
        expected = (table[tokens] + kinds[types if given is not None else torch.zeros_like(types)]).sum(1)
        assert np.allclose(graph.model(tokens, token_type_ids=given).logits, expected, atol=1e-5)
    size = cl.probe(graph, "size").summary()
    assert size["file_bytes"]["value"] == (tmp_path / "theirs" / "model_quantized.onnx").stat().st_size
    assert size["bits_per_weight"]["value"] == 8 * (200 + 4 + 1) / 200 and graph.stored.format == "onnx INT8"
    assert graph.tokenizer is None


@pytest.mark.parametrize(
    "changes, why",
    [
        (dict(inputs=("pixel_values", "attention_mask", "token_type_ids")), "no tokens"),
        (dict(inputs=("input_ids", "attention_mask", "speaker_ids")), "also needs speaker_ids"),
        (dict(output="embedding"), "neither logits nor hidden states"),
        (dict(external="../outside"), "which is missing"),
        (dict(external="missing"), "which is missing"),
    ],
)
def test_what_cannot_be_computed_is_named(changes, why, tmp_path):
    (tmp_path / "outside").write_bytes(bytes(200))
    by_hand(tmp_path / "theirs" / "model.onnx", **changes)
    with pytest.raises(CompressLabError, match=why):
        cl.load(tmp_path / "theirs")


@pytest.mark.parametrize("name", ["model.onnx", "openvino_model.xml"])
@pytest.mark.parametrize("content", [b"", b"\x08", b"<?xml version='1.0'?><net/>", b"\x0a" * 100])
def test_a_damaged_file_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "openvino_model.bin").write_bytes(b"")
    with pytest.raises(CompressLabError):
        cl.load(tmp_path)


def test_a_graph_is_no_model_to_be_changed(exported, tmp_path):
    graph = cl.load(exported[1])
    for act in (
        lambda: cl.RTN(4, 32).apply(graph, in_place=True),
        lambda: cl.export(graph, tmp_path / "again", "onnx"),
        lambda: cl.native(graph, "eager"),
        lambda: cl.load(exported[1], device="meta"),
    ):
        with pytest.raises(CompressLabError):
            act()
