"""How far a caption can be trusted: signals of the search and of the image -> a probability.

A checkpoint may carry ``confidence.safetensors``, made by ``python -m trainer calibrate``: a few
hundred attributes that are told from the image ("dog", "water", "two"), which words say them, what
images of training look like, and a logistic regression over the signals below. The last attribute
is that the image is a photo at all.

B images, K candidates, T words, V words of the vocabulary, C classes, A attributes, W width of what
is known of an image (its summary, and its classes where the network has some), P principal
components, S signals
"""

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from app.captioner import tensors
from app.captioner.search import BeamArrays

FILE = "confidence.safetensors"
MOST_BYTES = 8 * 2**20
SIGNALS: Final = (
    "mean log-probability of its words",
    "least log-probability of its words",
    "log-probability of its end",
    "least log-probability of a thing",
    "its share among the candidates",
    "how far the next candidate is",
    "least attribute",
    "mean of its attributes",
    "share of the candidates that say its things",
    "least share of them",
    "largest attribute of the image",
    "strongest attributes of the image",
    "attributes that it leaves out",
    "number of things",
    "number of words",
    "mean of the sentinel",
    "least of what things saw",
    "distance of the image",
    "distance off the components",
    "likeness to a photo",
    "largest class",
    "entropy of the classes",
)
_STRONGEST = 5
_LEAST_ATTRIBUTES = 2  # one that words say, and the photo
_LEAST_LOG = -20.0
_LEAST_CLASS = 1e-4
_LOG_SCALE = 0.1  # so that classes weigh about what the rest of the summary does

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class ConfidenceModel(NamedTuple):
    """What was fitted, as arrays.

    Attributes:
        attribute_AW: weights of each attribute, and ``attribute_bias_A``.
        word_attribute_V: which attribute a word says; -1 for words that say none.
        mean_W: of the summaries of training images, and their ``component_PW``, each scaled so that
            a training image has variance 1 along it; ``residual_scale`` is their root mean square
            off the components.
        signal_mean_S: with ``signal_std_S`` and ``weight_S``, ``bias`` the logistic regression.
    """

    attribute_AW: Floats
    attribute_bias_A: Floats
    word_attribute_V: Integers
    mean_W: Floats
    component_PW: Floats
    component_scale_P: Floats
    residual_scale: Floats
    signal_mean_S: Floats
    signal_std_S: Floats
    weight_S: Floats
    bias: Floats

    @classmethod
    def read(cls, content: bytes, words: int) -> "ConfidenceModel":
        """Read the bytes of ``confidence.safetensors``.

        Args:
            content: the file.
            words: V of the network.

        Raises:
            ValueError: it is none, or belongs to another network.
        """
        places = tensors.layout(content)
        if places.keys() != set(cls._fields):
            raise ValueError("it holds other arrays than a confidence model has")
        tensors.check_finite(content, places)
        arrays: dict[str, Any] = {name: tensors.array(content, at) for name, at in places.items()}
        for name, each in arrays.items():
            arrays[name] = each.copy() if each.dtype == np.int64 else each.astype(np.float32)
        model = cls(**arrays)
        model._check(words)
        return model

    def _check(self, words: int) -> None:
        if self.attribute_AW.ndim != 2 or self.component_PW.ndim != 2:
            raise ValueError("its matrices are none")
        if len(self.attribute_AW) < _LEAST_ATTRIBUTES:
            raise ValueError("it has no attributes")
        (A, W), P, S = self.attribute_AW.shape, len(self.component_PW), len(SIGNALS)
        expected = {
            "attribute_bias_A": (A,),
            "word_attribute_V": (words,),
            "mean_W": (W,),
            "component_PW": (P, W),
            "component_scale_P": (P,),
            "residual_scale": (1,),
            "signal_mean_S": (S,),
            "signal_std_S": (S,),
            "weight_S": (S,),
            "bias": (1,),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"its {name} has the shape {found}, expected {shape}")
        said = self.word_attribute_V
        if said.dtype != np.int64 or not ((said >= -1) & (said < A - 1)).all():
            raise ValueError("its words say attributes that it does not have")
        positive = (self.component_scale_P, self.residual_scale, self.signal_std_S)
        if not all((each > 0).all() for each in positive):
            raise ValueError("its scales are not positive")

    @property
    def width(self) -> int:
        """Give W, the width of what it wants to know of an image."""
        return int(self.attribute_AW.shape[1])

    def confidences(self, found: BeamArrays) -> Floats:
        """Give ``confidence_BK``, 0 to 1: how probably each candidate is right."""
        signals_BKS = (self.signals(found) - self.signal_mean_S) / self.signal_std_S
        logits_BK = np.clip(signals_BKS, -8, 8) @ self.weight_S + self.bias
        return _sigmoid(logits_BK)

    def signals(self, found: BeamArrays) -> Floats:
        """Give ``signals_BKS``, see `SIGNALS`; finite for slots that hold no candidate too."""
        known_BW = known(found)
        T = found.words_BKT.shape[2]
        is_word_BKT = np.arange(T) < found.lengths_BK[..., None]
        said_BKT = np.where(is_word_BKT, self.word_attribute_V[found.words_BKT], -1)
        is_thing_BKT = said_BKT >= 0
        word_BKT = np.maximum(found.word_log_probs_BKT, _LEAST_LOG)
        all_BA = known_BW @ self.attribute_AW.T + self.attribute_bias_A
        attribute_BA, photo_B1 = all_BA[:, :-1], all_BA[:, -1:]
        images = np.arange(len(known_BW))[:, None, None]
        told_BKT = attribute_BA[images, said_BKT]
        share_BK, next_BK = _shares(found.log_probs_BK, found.scores_BK)
        says_BKA = _says(said_BKT, len(self.attribute_AW) - 1)
        agreed_BA = np.einsum("bk,bka->ba", share_BK, says_BKA)
        agreed_BKT = agreed_BA[images, said_BKT]
        chance_BA = _sigmoid(attribute_BA)
        strongest_BN = np.sort(chance_BA, axis=1)[:, -_STRONGEST:]
        left_out_BK = np.where(says_BKA > 0, 0, chance_BA[:, None]).max(-1)
        words_BK = np.maximum(found.lengths_BK, 1)
        whole_BK = np.where(np.isfinite(found.log_probs_BK), found.log_probs_BK, _LEAST_LOG)
        end_BK = np.clip(whole_BK - _sum(word_BKT, is_word_BKT), _LEAST_LOG, 0)
        sentinel_BKT, saw_BKT = _looked(found, is_thing_BKT)
        near_B, off_B = self._distances(known_BW)
        columns = [
            _sum(word_BKT, is_word_BKT) / words_BK,
            _least(word_BKT, is_word_BKT),
            end_BK,
            _least(word_BKT, is_thing_BKT),
            share_BK,
            next_BK,
            _least(told_BKT, is_thing_BKT, otherwise=-5.0),
            _sum(told_BKT, is_thing_BKT) / np.maximum(is_thing_BKT.sum(-1), 1),
            _sum(agreed_BKT, is_thing_BKT) / np.maximum(is_thing_BKT.sum(-1), 1),
            _least(agreed_BKT, is_thing_BKT),
            strongest_BN[:, -1:],
            strongest_BN.sum(1, keepdims=True),
            left_out_BK,
            is_thing_BKT.sum(-1),
            found.lengths_BK,
            _sum(sentinel_BKT, is_word_BKT) / words_BK,
            _least(saw_BKT, is_thing_BKT),
            near_B[:, None],
            off_B[:, None],
            np.clip(photo_B1, -20, 20),
            *_classes(found),
        ]
        signals_BKS = np.empty((*found.lengths_BK.shape, len(columns)), np.float32)
        for number, column in enumerate(columns):
            signals_BKS[..., number] = column
        return signals_BKS

    def _distances(self, known_BW: Floats) -> tuple[Floats, Floats]:
        """Say how far images are from those of training, along the components and off them.

        Reference: Lee et al. 2018, "A simple unified framework for detecting out-of-distribution
        samples", eq. 2, in a space of few dimensions; the rest as in Wang et al. 2022, "ViM".
        """
        centred_BW = known_BW - self.mean_W
        along_BP = centred_BW @ self.component_PW.T
        near_B = np.sqrt(((along_BP / self.component_scale_P) ** 2).mean(1))
        off_B = np.sqrt(np.maximum((centred_BW**2).sum(1) - (along_BP**2).sum(1), 0))
        return np.log(near_B + 1e-3), np.log(off_B / self.residual_scale + 1e-3)


def known(found: BeamArrays) -> Floats:
    """Give ``known_BW``, what is known of each image besides its captions.

    Raises:
        ValueError: nothing is.
    """
    if found.summary_BW is None:
        raise ValueError("these beams have no summary of their images")
    if found.classes_BC is None:
        return found.summary_BW
    return np.concatenate((found.summary_BW, _LOG_SCALE * _logs(found.classes_BC)), axis=1)


def _logs(classes_BC: Floats) -> Floats:
    logs_BC: Floats = np.log(classes_BC + _LEAST_CLASS).astype(np.float32)
    return logs_BC


def _classes(found: BeamArrays) -> tuple[Floats, Floats]:
    """Give the largest probability of a class, and the entropy of all."""
    if found.classes_BC is None:
        nothing_B1 = np.zeros((len(found.words_BKT), 1), np.float32)
        return nothing_B1, nothing_B1
    largest_B1 = found.classes_BC.max(1, keepdims=True)
    return largest_B1, -(found.classes_BC * _logs(found.classes_BC)).sum(1, keepdims=True)


def _sigmoid(values: Floats) -> Floats:
    return (1 / (1 + np.exp(-np.clip(values, -30, 30)))).astype(np.float32)


def _shares(log_probs_BK: Floats, scores_BK: Floats) -> tuple[Floats, Floats]:
    """Give each candidate's part of their probability, and how far it is from the next."""
    there_BK = np.isfinite(log_probs_BK)
    safe_BK = np.where(there_BK, log_probs_BK, -1e3)
    weight_BK = np.exp(safe_BK - safe_BK.max(1, keepdims=True)) * there_BK
    share_BK = weight_BK / np.maximum(weight_BK.sum(1, keepdims=True), 1e-9)
    scores_BK = np.where(np.isfinite(scores_BK), scores_BK, _LEAST_LOG)
    K = scores_BK.shape[1]
    if K == 1:
        return share_BK, np.zeros_like(scores_BK)
    best_B1 = scores_BK[:, :1]
    behind_BK = scores_BK - best_B1
    behind_BK[:, 0] = scores_BK[:, 0] - scores_BK[:, 1]
    return share_BK, np.clip(behind_BK, -5, 5)


def _says(said_BKT: Integers, attributes: int) -> Floats:
    """Give ``says_BKA``: 1 where a candidate says an attribute."""
    B, K, _ = said_BKT.shape
    says_BKA = np.zeros((B, K, attributes + 1), np.float32)
    np.put_along_axis(says_BKA, np.where(said_BKT < 0, attributes, said_BKT), 1, axis=2)
    return says_BKA[..., :attributes]


def _looked(found: BeamArrays, is_thing_BKT: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Give each word's sentinel, and what of it came from the image."""
    if found.attention_BKTR is None:
        nothing_BKT = np.zeros(is_thing_BKT.shape, np.float32)
        return nothing_BKT, nothing_BKT
    sentinel_BKT = found.attention_BKTR[..., -1]
    return sentinel_BKT, 1 - sentinel_BKT


def _sum(values: Floats, where: npt.NDArray[np.bool_]) -> Floats:
    total: Floats = np.where(where, values, 0).sum(-1)
    return total


def _least(
    values: Floats, where: npt.NDArray[np.bool_], *, otherwise: float = _LEAST_LOG / 2
) -> Floats:
    least = np.where(where, values, math.inf).min(-1)
    return np.where(np.isfinite(least), least, otherwise)
