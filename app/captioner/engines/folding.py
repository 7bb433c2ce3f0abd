"""An encoder prepared for inference: batch norm folded away, later layers in a smaller type.

B images, C channels, H/W pixels
"""

import copy
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from app.captioner.model.network import Decoder, Encoder, Network

EXACT_CONVOLUTIONS = 3
"""The first ones see pixels, have few weights, and what they round grows on the way: in bfloat16
too they would raise the error of MobileNetV2's features by two thirds and win little time."""


def folded_encoder(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    """Fold every batch norm into the convolution before it.

    Args:
        encoder: it stays as it is.
        dtype: of all layers but the first convolutions. Images and features stay in float32.

    Returns:
        An encoder of the same interface that cannot be trained or saved.
    """
    prepared = copy.deepcopy(encoder).eval()
    traced = fx.symbolic_trace(nn.Sequential(prepared.blocks, prepared.head))
    convolutions = fold(traced, fuse_conv_bn_eval)
    prepared.blocks, prepared.head = nn.Sequential(traced), nn.Sequential()
    if dtype != torch.float32:
        _lower(traced, convolutions, dtype)
        prepared.head = nn.Sequential(_Cast(torch.float32))
    return prepared


def decoder_with_table(decoder: Decoder) -> Decoder:
    """Copy a decoder and look up what the LSTM takes of a word instead of computing it."""
    prepared = copy.deepcopy(decoder).eval()
    prepared.word_gates_VG = prepared.input_gates(prepared.embedding.weight)
    return prepared


def network_of(network: Network, encoder: Encoder, decoder: Decoder) -> Network:
    """Give a network like the first with these two parts, for inference alone."""
    prepared = copy.copy(network)
    prepared._modules = dict(network._modules)  # noqa: SLF001 - a shallow copy shares this dict
    prepared.encoder, prepared.decoder = encoder, decoder
    return prepared.requires_grad_(requires_grad=False).eval()


def fold(
    traced: fx.GraphModule, fused: Callable[[nn.Conv2d, nn.BatchNorm2d], nn.Module]
) -> list[fx.Node]:
    """Let every convolution swallow the batch norm that follows it alone; give the convolutions.

    ``fused`` makes one layer of the two.
    """
    convolutions = []
    for node in traced.graph.nodes:
        convolution = _module(traced, node)
        if type(convolution) is nn.Conv2d:
            norm = _swallow(traced, node, nn.BatchNorm2d)
            if norm is not None:
                traced.set_submodule(str(node.target), fused(convolution, norm))
            convolutions.append(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return convolutions


def _lower(traced: fx.GraphModule, convolutions: list[fx.Node], dtype: torch.dtype) -> None:
    """Compute in ``dtype`` from the first convolution on that is not among the exact ones."""
    nodes = list(traced.graph.nodes)
    switch = nodes.index(convolutions[:EXACT_CONVOLUTIONS][-1]) + 1
    early, late = nodes[:switch], nodes[switch:]
    for node in late:
        if (module := _module(traced, node)) is not None:
            module.to(dtype)
        elif node.op == "get_attr":
            parameter = attrgetter(str(node.target))(traced)
            parameter.data = parameter.data.to(dtype)
    for node in early:
        later_users = [user for user in node.users if user in set(late)]
        if later_users:
            with traced.graph.inserting_before(late[0]):
                lowered = traced.graph.call_method("to", (node, dtype))
            for user in later_users:
                user.replace_input_with(node, lowered)
    traced.graph.lint()
    traced.recompile()


def _module(traced: fx.GraphModule, node: fx.Node) -> Any:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _swallow(traced: fx.GraphModule, node: fx.Node, kind: type[nn.Module]) -> Any:
    """Take the only user of a node out of the graph if it is of this kind, and give it."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    found = _module(traced, user)
    if type(found) is not kind:
        return None
    user.replace_all_uses_with(node)
    traced.graph.erase_node(user)
    return found


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def forward(self, maps: Tensor) -> Tensor:
        return maps.to(self._dtype)
