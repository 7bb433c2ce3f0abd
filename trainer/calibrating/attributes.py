"""Attributes: what is told from an image by itself, without words in a row.

N images, A attributes, W width of what is known of an image, V words of the vocabulary

Reference: Wu et al. 2016, "What value do explicit high level concepts have in vision to language
problems?", who feed such attributes to the LSTM; here they check what it says.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from app.captioner.vocabulary import SPECIALS, Vocabulary, tokenise
from trainer.errors import TrainerError
from trainer.scoring.things import Things

PHOTO = "photo"
LEAST_IMAGES = 15
"""An attribute is learnt if references of so many training images bear it out."""
_STEPS = 200
_RATE = 0.05
_WEIGHT_DECAY = 1e-3
_PHOTO_C = 1e-3

Floats = npt.NDArray[np.float32]


class Attributes(NamedTuple):
    """Linear classifiers over what is known of an image.

    Attributes:
        names: of the A attributes; the last is `PHOTO`.
        weight_AW: of each.
        bias_A: of each.
        word_attribute_V: which one a word of the vocabulary says, or -1.
    """

    names: tuple[str, ...]
    weight_AW: Floats
    bias_A: Floats
    word_attribute_V: npt.NDArray[np.int64]


def fit_attributes(
    known_NW: Floats,
    references: Sequence[Sequence[str]],
    drawn_MW: Floats,
    vocabulary: Vocabulary,
    table: Things,
) -> Attributes:
    """Learn to tell from an image what references will name, and whether it is a photo.

    Args:
        known_NW: of the training images.
        references: their captions.
        drawn_MW: of M pictures that are no photos.
        vocabulary: the words that captions may say.
        table: which words name the same.

    Raises:
        TrainerError: references name too little.
    """
    said = [frozenset(w for text in texts for w in tokenise(text)) for texts in references]
    groups = [table.group_of.get(word, "") for word in vocabulary.words]
    names, columns = [], []
    for name in sorted(set(groups) - {""}):
        borne_out_N = np.array([not words.isdisjoint(table.borne_out_by[name]) for words in said])
        if borne_out_N.sum() >= LEAST_IMAGES:
            names.append(name)
            columns.append(borne_out_N)
    if not names:
        raise TrainerError(f"no thing is named of {LEAST_IMAGES} training images or more")
    label_NA = np.stack([*columns, np.ones(len(known_NW), bool)], 1)
    weight_AW, bias_A = _logistic(known_NW, label_NA.astype(np.float32))
    weight_AW[-1], bias_A[-1] = _photo(known_NW, drawn_MW)
    place = {name: index for index, name in enumerate(names)}
    word_attribute_V = [-1] * len(SPECIALS) + [place.get(group, -1) for group in groups]
    return Attributes((*names, PHOTO), weight_AW, bias_A, np.array(word_attribute_V, np.int64))


def _photo(known_NW: Floats, drawn_MW: Floats) -> tuple[Floats, float]:
    """Tell photos from pictures that are none."""
    inputs = np.concatenate((known_NW, drawn_MW))
    mean_W, std_W = inputs.mean(0), inputs.std(0) + 1e-2
    is_photo = np.repeat([True, False], [len(known_NW), len(drawn_MW)])
    fitted = LogisticRegression(C=_PHOTO_C, max_iter=1000, class_weight="balanced")
    fitted.fit((inputs - mean_W) / std_W, is_photo)
    weight_W = (fitted.coef_[0] / std_W).astype(np.float32)
    return weight_W, float(fitted.intercept_[0] - weight_W @ mean_W)


def _logistic(known_NW: Floats, label_NA: Floats) -> tuple[Floats, Floats]:
    """Fit all classifiers at once, by gradient descent on standardised inputs."""
    mean_W, std_W = known_NW.mean(0), known_NW.std(0) + 1e-3
    inputs_NW = torch.from_numpy((known_NW - mean_W) / std_W)
    labels_NA = torch.from_numpy(label_NA)
    frequency_A = labels_NA.mean(0).clamp(1e-4, 1 - 1e-4)
    weight_AW = torch.zeros(labels_NA.shape[1], inputs_NW.shape[1], requires_grad=True)
    bias_A = (frequency_A / (1 - frequency_A)).log().requires_grad_()
    optimiser = torch.optim.Adam([weight_AW, bias_A], lr=_RATE / 10)
    for _ in range(_STEPS):
        optimiser.zero_grad()
        logits_NA = F.linear(inputs_NW, weight_AW, bias_A)
        loss = F.binary_cross_entropy_with_logits(logits_NA, labels_NA, reduction="none").mean(0)
        (loss.sum() + _WEIGHT_DECAY * weight_AW.square().sum()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    weight = weight_AW.detach().numpy() / std_W
    return weight.astype(np.float32), (bias_A.detach().numpy() - weight @ mean_W).astype(np.float32)
