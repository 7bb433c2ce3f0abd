"""The features of a clip's frames -> features as of one image, for a decoder of any kind.

B clips, F frames of a clip, R regions of a frame, D feature width, H width of the LSTM
"""

import torch
from torch import Tensor, nn

from app.captioner.architecture import QUARTERS, Architecture
from app.captioner.model.lstm import lstm_step


class MeanOfFrames(nn.Module):
    """Each region is its mean over the frames: in which order they come makes no difference.

    Reference: Venugopalan et al. 2015, "Translating videos to natural language using deep recurrent
    neural networks", section 3.2.
    """

    def __init__(self, architecture: Architecture, width: int) -> None:
        super().__init__()
        self.frames_per_clip, self.width = architecture.frames_per_clip or 1, width

    def forward(self, features_BFRD: Tensor) -> Tensor:
        """Give ``features_BRD``."""
        return features_BFRD.mean(1)


class LstmOverFrames(nn.Module):
    """An LSTM reads the frames in their order.

    A frame is what its regions show, one beside the other, made narrower. An attention decoder
    chooses among the states after every frame, as if they were regions; the others take the last.

    Reference: Donahue et al. 2015, "Long-term recurrent convolutional networks for visual
    recognition and description"; Venugopalan et al. 2015, "Sequence to sequence - video to text",
    whose first LSTM this is; Yao et al. 2015, "Describing videos by exploiting temporal structure",
    for attention over frames.
    """

    def __init__(self, architecture: Architecture, width: int) -> None:
        super().__init__()
        self.frames_per_clip = architecture.frames_per_clip or 1
        self.width = H = architecture.hidden_width
        regions = QUARTERS if architecture.features == "grid" else 1
        self.keeps_all = architecture.decoder == "attention"
        self.normalise = nn.LayerNorm(regions * width)
        self.frame = nn.Linear(regions * width, H)
        self.input_gates = nn.Linear(H, 4 * H)
        self.recurrent_gates = nn.Linear(H, 4 * H, bias=False)
        self.dropout = nn.Dropout(architecture.dropout)
        with torch.no_grad():
            self.input_gates.bias[H : 2 * H].fill_(1.0)

    def forward(self, features_BFRD: Tensor) -> Tensor:
        """Give the states of the LSTM: ``states_BFH``, or the last one, ``states_B1H``."""
        frames_BFX = self.normalise(features_BFRD.flatten(2))
        gates_BFG = self.input_gates(self.dropout(torch.relu(self.frame(frames_BFX))))
        hidden_BH = cell_BH = torch.zeros_like(gates_BFG[:, 0, : self.width])
        states = []
        for gates_BG in gates_BFG.unbind(1):
            read_BG = gates_BG + self.recurrent_gates(hidden_BH)
            hidden_BH, cell_BH, _ = lstm_step(read_BG, cell_BH, self.width)
            states.append(hidden_BH)
        return torch.stack(states if self.keeps_all else states[-1:], dim=1)


FrameReader = MeanOfFrames | LstmOverFrames
READERS: dict[str, type[FrameReader]] = {"mean": MeanOfFrames, "lstm": LstmOverFrames}


def as_clip(features_BRD: Tensor, frames: int) -> Tensor:
    """Give ``features_BFRD``: those of clips as they are, a photo as a clip that stands still."""
    if features_BRD.ndim == 4:
        return features_BRD
    return features_BRD.unsqueeze(1).expand(-1, frames, -1, -1)
