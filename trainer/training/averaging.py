"""Means of weights: over the steps of a stage, and over epochs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage:
    """The exponential moving average of the parameters that learn.

    Args:
        network: its parameters with ``requires_grad`` are followed.
        decay: per step; early steps count more, so that the random start is forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = [each for each in network.parameters() if each.requires_grad]
        self._steps = 0
        self.reset()

    def reset(self) -> None:
        """Begin again from the weights as they are."""
        self._steps = 0
        self.values = [each.detach().clone() for each in self._parameters]

    def update(self) -> None:
        """Take in the weights after a step."""
        self._steps += 1
        decay = min(self.decay, self._steps / (self._steps + 10))
        for value, parameter in zip(self.values, self._parameters, strict=True):
            value.lerp_(parameter.detach(), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Give what `load_state_dict` needs to go on."""
        return {"steps": self._steps, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from an average kept on disk."""
        self._steps = state["steps"]
        pairs = zip(state["values"], self._parameters, strict=True)
        self.values = [value.to(parameter.device) for value, parameter in pairs]

    def apply(self) -> None:
        """Let the network be the average from now on."""
        self._swap()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network be the average for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for index, parameter in enumerate(self._parameters):
            self.values[index], parameter.data = parameter.data, self.values[index]


def mean(
    states: Sequence[Mapping[str, Tensor]], shares: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Average state dicts; whole numbers are those of the last.

    Args:
        states: of the same names and shapes.
        shares: of each, with the sum 1; equal without them.

    Reference: Izmailov et al. 2018, "Averaging weights leads to wider optima".
    """
    shares = shares or [1 / len(states)] * len(states)
    return {
        name: torch.stack([s * state[name] for s, state in zip(shares, states, strict=True)]).sum(0)
        if last.is_floating_point()
        else last
        for name, last in states[-1].items()
    }
