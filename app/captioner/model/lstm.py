"""One step of an LSTM, for words and for frames.

N any leading axes, H width of the state, G gates
"""

import torch
from torch import Tensor


def lstm_step(
    gates_NG: Tensor, cell_NH: Tensor, width: int, extra: int = 0
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Go on by what is read.

    Args:
        gates_NG: ``(N, (4 + extra) H)``, input and recurrent parts added up: enter, forget, leave,
            candidate, and the extra ones.
        cell_NH: before this step.
        width: H, which a traced graph takes for a number.
        extra: how many gates there are beside an LSTM's four.

    Returns:
        ``hidden_NH``, ``cell_NH``, and the extra gates before any activation.

    Reference: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.
    """
    opening, candidate, *others = torch.split(gates_NG, [3 * width, *[width] * (1 + extra)], dim=-1)
    enter, forget, leave = torch.sigmoid(opening).chunk(3, dim=-1)
    cell_NH = forget * cell_NH + enter * torch.tanh(candidate)
    return leave * torch.tanh(cell_NH), cell_NH, tuple(others)
