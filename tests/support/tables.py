"""A language model that is a table of numbers, for torch's search and for numpy's."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from app.captioner.engines import numpy_search
from app.captioner.engines.numpy_search import Encoded, Floats, Following, Integers
from app.captioner.search import BeamArrays, SearchOptions, StillWaiting

PAD, BOS, EOS, UNK = range(4)
V = 7  # four special ids and three words
State = tuple[int, Tensor, Tensor]
"""The step, which images, and what each beam has said, as one number."""


class Table:
    """The next word depends on image, step and last word.

    Attention tells what a beam has said, so that a beam with another's attention is found out.
    """

    def __init__(self, images: int, steps: int, seed: int, sharpness: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(images, steps, V, V, generator=generator) * sharpness

    def start(self, features_BRD: Tensor, beams: int) -> State:
        self.batches: list[list[int]] = []  # which images each step was for
        return 0, features_BRD[:, 0, 0].long(), torch.zeros(len(features_BRD), beams).long()

    def step(self, words_BK: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        step, images_B, history_BK = state
        self.batches.append(images_B.tolist())
        logits_BKV = self.logits[images_B[:, None], step, words_BK]
        attention_BKR = torch.stack((history_BK, words_BK), dim=-1).float()
        return logits_BKV, (step + 1, images_B, history_BK * V + words_BK), attention_BKR

    def reorder(self, state: State, parents_BK: Tensor) -> State:
        step, images_B, history_BK = state
        return step, images_B, history_BK.gather(1, parents_BK)

    def select(self, state: State, images_B: Tensor) -> State:
        step, all_B, history_BK = state
        return step, all_B[images_B], history_BK[images_B]

    def summary(self, state: State) -> Tensor:
        return state[1][:, None].float()


class NumpyTable:
    """A `Table` as `numpy_search.Step`; the hidden state is what was said, the cell the step."""

    words = V

    def __init__(self, table: Table, options: SearchOptions) -> None:
        self._logits = table.logits.numpy()
        self._options = options
        self.batches: list[list[int]] = []
        self.beams: list[int] = []

    def __call__(
        self,
        words_LG: Integers,
        hidden_LGH: Floats,
        cell_LGH: Floats,
        image: Sequence[Floats],
        barred: Floats,
    ) -> Following:
        images_L1 = image[0][:, 0].astype(int)
        step = int(cell_LGH.flat[0])
        self.batches.append(images_L1[:, 0].tolist())
        self.beams.append(words_LG.shape[1])
        logits_LGV = self._logits[images_L1, step, words_LG] + barred
        log_probs_LGV = torch.from_numpy(logits_LGV).log_softmax(-1).numpy()
        count = min(self._options.beam_width, V)
        best_LGN = np.argsort(-log_probs_LGV, axis=-1, kind="stable")[..., :count]
        history_LG = hidden_LGH[..., 0]
        return Following(
            np.take_along_axis(log_probs_LGV, best_LGN, -1),
            best_LGN,
            log_probs_LGV[..., [EOS]],
            (history_LG * V + words_LG)[..., None],
            cell_LGH + 1,
            np.stack((history_LG, words_LG), axis=-1).astype(np.float32),
        )

    def search(self, images: Sequence[int], still_waiting: StillWaiting) -> BeamArrays:
        images_B11 = np.array(images, np.float32).reshape(-1, 1, 1)
        nothing_B11 = np.zeros_like(images_B11)
        return numpy_search.search(
            self,
            Encoded(nothing_B11, nothing_B11, [images_B11]),
            self._options,
            bos=BOS,
            eos=EOS,
            banned=(PAD, UNK),
            still_waiting=still_waiting,
        )


def log_prob(table: Table, image: int, words: Sequence[int]) -> float:
    """Score one caption by the definition, word by word."""
    total, last = 0.0, BOS
    for step, word in enumerate((*words, EOS)):
        allowed = table.logits[image, step, last].clone()
        allowed[[PAD, BOS, UNK]] = -torch.inf
        total += allowed.log_softmax(-1)[word].item()
        last = word
    return total


def ends_after(words: Sequence[int], *, of: int) -> Table:
    """Make a table whose image b has captions of ``words[b]`` words, out of ``of`` at most."""
    table = Table(len(words), of + 1, seed=8)
    table.logits[..., EOS] = -50
    for image, length in enumerate(words):
        table.logits[image, length, :, EOS] = 50
    return table
