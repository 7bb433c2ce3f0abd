"""Graphs have all weights of their network by name, and none by value."""

import re

import pytest

from app.captioner.architecture import ENCODER_SHAPES
from app.captioner.graphs import ENCODE, STEP
from app.captioner.model import export
from support.tiny import tiny_network

SLOW = [
    pytest.param(each, marks=pytest.mark.long) for each in ENCODER_SHAPES if each != "mobilenet_v2"
]


@pytest.mark.parametrize("encoder", ["mobilenet_v2", *SLOW])
@pytest.mark.parametrize("features", ["grid", "vector"])
def test_every_weight_has_its_place_in_a_graph(encoder, features):
    """Of four numbers too, which an encoder with squeeze and excitation has."""
    network = tiny_network("merge", encoder=encoder, features=features)
    made = export.templates(network.architecture)
    named = {name for each in made.values() for name in re.findall(r'offset="@([^"]*)"', each.text)}
    state = network.state_dict()
    expected = {name for name, tensor in state.items() if tensor.is_floating_point()}
    assert {name for name in expected if name.startswith("encoder.")} <= named <= expected


def test_what_a_graph_has_of_its_own_is_little():
    made = export.templates(tiny_network().architecture)
    assert sum(len(each.constants) for each in made.values()) < 10_000


def test_a_weight_that_was_taken_for_another_number_is_found_out(monkeypatch):
    monkeypatch.setattr(export, "_LEAST_WEIGHT_BYTES", 10**9)
    with pytest.raises(ValueError, match=r"no graph has decoder\..*: a network of other operators"):
        export.templates(tiny_network("inject", hidden_width=12).architecture)


def test_graphs_are_made_once_of_an_architecture():
    one, other = (export.templates(tiny_network().architecture) for _ in range(2))
    assert one.keys() == {ENCODE, STEP}
    assert one is other
