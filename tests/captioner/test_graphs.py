"""Graphs from a stranger are refused in a line, before they run and whatever they are."""

import re
from contextlib import nullcontext

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from app.captioner import graphs
from app.captioner.engines import cpu
from app.captioner.errors import CheckpointError
from app.captioner.graphs import ENCODE, ENCODE_INT8, STEP, Template, placed
from app.captioner.manifest import MOST_WORKING_BYTES
from app.captioner.pipeline import Captioner
from app.captioner.tensors import Place
from support.tiny import as_loaded, tiny_unpublished

CONST = (
    '<layer id="0" name="c" type="Const" version="opset1"><data {}/>'
    '<output><port id="0" precision="FP32"/></output></layer>'
)
RIGHT = {"element_type": "f32", "shape": "2, 3", "offset": "8", "size": "24"}
SCALAR = {"element_type": "i64", "shape": "", "offset": "0", "size": "8"}


def graph(*layers):
    return f"<net><layers>{''.join(layers)}</layers></net>".encode()


def constant(**about):
    return CONST.format(" ".join(f'{name}="{value}"' for name, value in about.items()))


def layer(kind, version="opset1"):
    return f'<layer id="1" name="x" type="{kind}" version="{version}"/>'


def refused(text, reason):
    with pytest.raises(ValueError, match=reason) as refusal:
        graphs.check(text, 32)
    assert len(str(refusal.value)) < 300


def test_our_own_graphs_are_accepted(loaded):
    for text in loaded.graphs.values():
        graphs.check(text, len(loaded.weights))


@pytest.mark.parametrize("about", [RIGHT, SCALAR, {**RIGHT, "shape": "0", "size": "1"}])
def test_a_constant_inside_its_file_is_accepted(about):
    graphs.check(graph(constant(**about), layer("Relu")), 32)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": "9"},
        {"offset": "-1"},
        {"offset": str(2**64)},
        {"size": "20"},
        {"size": "-24"},
        {"shape": "2, 4"},
        {"shape": "-2, -3"},
        {"shape": f"{2**40}, {2**40}"},
        {"shape": "2, x"},
        {"element_type": "f64"},
        {"element_type": "string"},
        {"offset": ""},
    ],
)
def test_a_constant_that_lies_about_its_place_or_size_is_refused(change):
    refused(graph(constant(**{**RIGHT, **change})), "a constant")


@pytest.mark.parametrize("missing", RIGHT)
def test_a_constant_that_leaves_something_out_is_refused(missing):
    about = {name: value for name, value in RIGHT.items() if name != missing}
    refused(graph(constant(**about)), "a constant has no type, shape or place")
    refused(graph(layer("Const")), "a constant has no type, shape or place")


@pytest.mark.parametrize("kind", ["Loop", "If", "TensorIterator", "ReadValue", "x" * 999, ""])
def test_an_operator_that_no_network_of_ours_has_is_refused(kind):
    refused(graph(layer(kind)), "a layer of the kind")


def test_an_operator_of_an_extension_is_refused():
    refused(graph(layer("Relu", "extension")), "a layer of the kind")
    refused(graph('<layer id="1" name="x" type="Relu"/>'), "a layer of the kind")


def test_more_layers_than_any_network_has_are_refused():
    refused(graph(*[layer("Relu")] * 10_001), "it has 10001 layers")
    refused(graph(), "it has 0 layers")


BOMB = '<!DOCTYPE n [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><net><layers>&b;</layers></net>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32"])
def test_entities_are_refused_in_every_encoding(encoding):
    refused(BOMB.encode(encoding), "entities|characters")


@pytest.mark.parametrize("text", [b"", b"{}", b"<net>", b"\xff\xfe", b"<net/><net/>"])
def test_what_is_no_xml_is_refused(text):
    refused(text, "it is no XML|characters")


def test_constants_get_their_place_by_name_and_by_number():
    template = Template('offset="@a.b" offset="+64" offset="+0"', bytes(80))
    places = {"a.b": Place("F16", (2,), 1000, 4)}
    assert placed(template, places, 5000) == b'offset="1000" offset="5064" offset="5000"'


# --- graphs of known operators that are not those of the network ---------------------------------


def on_cpu(loaded, texts=None, *, precision="float32", **changes):
    return Captioner.of(
        loaded._replace(graphs={**loaded.graphs, **(texts or {})}, **changes), precision=precision
    )


def not_ours(loaded, texts=None, reason="the graphs are none of this network", **changes):
    with pytest.raises(CheckpointError, match=reason):
        on_cpu(loaded, texts, **changes)


@pytest.fixture(scope="module")
def merge():
    return as_loaded(tiny_unpublished("merge"))


def test_graphs_in_each_others_place_are_refused(loaded):
    encode, step = loaded.graphs[ENCODE], loaded.graphs[STEP]
    not_ours(loaded, {ENCODE: step, STEP: encode})
    not_ours(loaded, {ENCODE: step})
    not_ours(loaded, {STEP: encode})


def test_graphs_of_another_network_are_refused(loaded, merge):
    not_ours(loaded, merge.graphs, weights=merge.weights)
    not_ours(merge, loaded.graphs, weights=loaded.weights)


def test_graphs_whose_numbers_are_others_are_refused(loaded, merge):
    not_ours(loaded, {ENCODE: merge.graphs[ENCODE]}, reason=ENCODE)


@pytest.mark.parametrize(
    "change", [{"words": 20}, {"hidden_width": 17}, {"embedding_width": 17}, {"decoder": "merge"}]
)
def test_graphs_of_another_architecture_than_the_manifests_are_refused(loaded, change):
    architecture = loaded.manifest.architecture.model_copy(update=change)
    manifest = loaded.manifest.model_copy(update={"architecture": architecture})
    not_ours(loaded, manifest=manifest)


def test_a_missing_table_of_words_is_refused(loaded):
    name = b"decoder.embedding.weight"
    not_ours(loaded, weights=loaded.weights.replace(name, b"x" * len(name)))


def test_a_graph_that_is_no_ir_is_refused(loaded):
    not_ours(loaded, {STEP: graph(layer("Relu"))}, reason=STEP)


def changed(text, pattern, by, count=1):
    new, found = re.subn(pattern, by, text.decode(), count=count)
    assert found == count
    return new.encode()


def test_pixels_of_another_kind_are_refused(loaded):
    kinds = r'element_type="u8"'
    not_ours(loaded, {ENCODE: changed(loaded.graphs[ENCODE], kinds, 'element_type="f32"')})


def encoder_with(loaded, blown_up):
    """Put something of no use between the pixels and the network."""
    model = ov.Core().read_model(loaded.graphs[ENCODE], ov.Tensor(_bytes(loaded)))
    (pixels,) = model.get_parameters()
    users = pixels.output(0).get_target_inputs()
    useless = blown_up(pixels)
    for user in users:
        user.replace_source_output(useless.output(0))
    return model


def _bytes(loaded):
    return np.frombuffer(loaded.weights, np.uint8)


def blown_up(times):
    """Repeat each image so many times, and keep the first of them."""

    def insert(pixels):
        shape = op.shape_of(pixels)
        tiled = op.tile(pixels, op.constant([1, times, 1, 1]))
        return op.slice(tiled, op.constant([0] * 4), shape, op.constant([1] * 4))

    return insert


@pytest.mark.parametrize(("times", "fits"), [(2, True), (2000, False)])
def test_a_graph_that_takes_more_memory_than_a_batch_may_is_refused(loaded, times, fits):
    encode = encoder_with(loaded, blown_up(times))
    step = ov.Core().read_model(loaded.graphs[STEP], ov.Tensor(_bytes(loaded)))
    refusal = pytest.raises(ValueError, match=f"more than {MOST_WORKING_BYTES} bytes")
    with nullcontext() if fits else refusal:
        cpu._check_together(encode, step, loaded.manifest)


def test_a_graph_whose_memory_hangs_on_the_pixels_is_refused(loaded):
    def insert(pixels):
        ones = op.constant([1])
        first = op.slice(pixels, *(op.constant([n] * 4) for n in (0, 1, 1)))
        times = op.convert(op.reshape(first, ones, special_zero=False), "i64")
        return op.tile(pixels, op.concat([times, ones, ones, ones], 0))

    encode = encoder_with(loaded, insert)
    step = ov.Core().read_model(loaded.graphs[STEP], ov.Tensor(_bytes(loaded)))
    with pytest.raises(ValueError, match="depends on more than the batch"):
        cpu._check_together(encode, step, loaded.manifest)


def test_int8_that_is_missing_is_told_with_what_to_do(loaded):
    not_ours(loaded, precision="int8", reason=f"no {ENCODE_INT8}: publish it with --data")


def test_a_precision_that_this_cpu_imitates_is_refused(loaded, monkeypatch):
    monkeypatch.setattr(cpu, "computes_bfloat16", lambda: False)
    not_ours(loaded, precision="bfloat16", reason="cannot compute in bfloat16: choose float32")


@pytest.mark.parametrize(
    ("bfloat16", "int8", "fastest"),
    [(True, True, "bfloat16"), (False, True, "int8"), (False, False, "float32")],
)
def test_the_fastest_precision_is_what_the_cpu_and_the_checkpoint_have(
    loaded, monkeypatch, bfloat16, int8, fastest
):
    monkeypatch.setattr(cpu, "computes_bfloat16", lambda: bfloat16)
    texts = {**loaded.graphs, **({ENCODE_INT8: b""} if int8 else {})}
    assert cpu.fastest_precision(loaded._replace(graphs=texts)) == fastest
