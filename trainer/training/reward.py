"""CIDEr-D of many sampled captions at once, against the training references: the reward.

S candidates, R references, T words, E distinct n-grams of a text; an n-gram is one int64, its key.

Reference: Vedantam et al. 2015, section 4 (CIDEr) and 4.1 (CIDEr-D), as coco-caption counts it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.captioner.vocabulary import EOS, Vocabulary
from trainer.data.flickr8k import Split
from trainer.errors import DataError

ORDERS = 4
SIGMA_WORDS = 6.0

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


class _Texts(NamedTuple):
    """Distinct n-grams of some texts, sorted by text, then key."""

    row_E: _Ints
    key_E: _Ints
    order_E: _Ints
    count_E: _Ints
    length_S: _Ints


class CiderD:
    """The score of a candidate against the references of one image.

    Args:
        references: per image, per reference: ids of any words, the end mark among them. Document
            frequencies are counted over these images.

    Raises:
        DataError: there are too many different words for four of them to fit one integer.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[int]]]) -> None:
        rows = [ids for image in references for ids in image]
        self._base = 2 + max(max(ids) for ids in rows)
        if self._base**ORDERS > np.iinfo(np.int64).max:
            raise DataError(f"expected at most 55000 different words, got {self._base}: use fewer")
        self._image_R = np.repeat(np.arange(len(references)), [len(image) for image in references])
        self._references_of = np.bincount(self._image_R, minlength=len(references))
        texts = _texts(*_padded(rows), self._base)
        self._length_R = texts.length_S
        self._keys, self._idf = _inverse_document_frequencies(texts, self._image_R)
        self._rare_idf = np.log(len(references))
        weight_E = texts.count_E * self._idf_of(texts.key_E)[1]
        self._norm_RO = _norms(texts, weight_E)
        self._index(texts, weight_E)

    def rewards(self, images_S: _Ints, words_ST: _Ints, lengths_S: _Ints) -> _Floats:
        """Score candidates.

        Args:
            images_S: the image of each, by its place in ``references``.
            words_ST: ids; the end mark counts as a word where it is there.
            lengths_S: how many of them belong to the candidate, the end mark included.

        Returns:
            Per candidate its CIDEr-D, 0 to 10.
        """
        texts = _texts(words_ST, lengths_S, self._base)
        known_E, idf_E = self._idf_of(texts.key_E)
        weight_E = texts.count_E * idf_E
        entry_M, reference_M = self._matches(images_S[texts.row_E], known_E)
        row_M, order_M = texts.row_E[entry_M], texts.order_E[entry_M]
        their_M = self._weight_E[reference_M]
        product_M = np.minimum(weight_E[entry_M], their_M) * their_M
        with_M = self._row_E[reference_M]
        norms_M = _norms(texts, weight_E)[row_M, order_M] * self._norm_RO[with_M, order_M]
        away_M = (texts.length_S[row_M] - self._length_R[with_M]) / SIGMA_WORDS
        similarity_M = product_M / norms_M * np.exp(-(away_M**2) / 2)
        sums_S = np.bincount(row_M, weights=similarity_M, minlength=len(images_S))
        return 10 * sums_S / ORDERS / self._references_of[images_S]

    def _idf_of(self, key_E: _Ints) -> tuple[_Ints, _Floats]:
        """Give the place of each n-gram among those known, or -1, and its weight."""
        place_E = np.searchsorted(self._keys, key_E).clip(max=len(self._keys) - 1)
        known_E = self._keys[place_E] == key_E
        return np.where(known_E, place_E, -1), np.where(known_E, self._idf[place_E], self._rare_idf)

    def _index(self, texts: _Texts, weight_E: _Floats) -> None:
        """Sort what the references hold by image and n-gram. N-grams without weight never count."""
        heavy_E = np.flatnonzero(weight_E > 0)
        place_E = np.searchsorted(self._keys, texts.key_E[heavy_E])
        pair_E = self._image_R[texts.row_E[heavy_E]] * len(self._keys) + place_E
        order_E = np.argsort(pair_E, kind="stable")
        self._pair_E = pair_E[order_E]
        self._row_E, self._weight_E = texts.row_E[heavy_E][order_E], weight_E[heavy_E][order_E]

    def _matches(self, image_E: _Ints, known_E: _Ints) -> tuple[_Ints, _Ints]:
        """Pair each n-gram of the candidates with its like in the references of its image."""
        pair_E = np.where(known_E < 0, -1, image_E * len(self._keys) + known_E)
        first_E = np.searchsorted(self._pair_E, pair_E, side="left")
        found_E = np.searchsorted(self._pair_E, pair_E, side="right") - first_E
        entry_M = np.repeat(np.arange(len(pair_E)), found_E)
        before_E = np.cumsum(found_E) - found_E
        return entry_M, np.arange(len(entry_M)) + (first_E - before_E)[entry_M]


def reference_ids(split: Split, vocabulary: Vocabulary) -> list[list[list[int]]]:
    """Give every caption of a split as ids, the end mark at its end.

    Without the end mark a caption that stops after "with a" costs nothing, and training finds out.
    Words outside the vocabulary keep ids of their own beyond it: they are never said, but they
    weigh in the references, as they do in the score on dev.
    """
    beyond: dict[str, int] = {}
    known = {word: vocabulary.encode([word])[0] for word in vocabulary.words}

    def index(word: str) -> int:
        found = known.get(word)
        return beyond.setdefault(word, len(vocabulary) + len(beyond)) if found is None else found

    return [
        [[*map(index, vocabulary.tokenise(text)), EOS] for text in example.captions]
        for example in split.examples
    ]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[_Ints, _Ints]:
    length_S = np.array([len(ids) for ids in rows], dtype=np.int64)
    words_ST = np.zeros((len(rows), length_S.max()), dtype=np.int64)
    words_ST[np.arange(words_ST.shape[1]) < length_S[:, None]] = np.concatenate(rows)
    return words_ST, length_S


def _texts(words_ST: _Ints, length_S: _Ints, base: int) -> _Texts:
    """Count the n-grams of each text; orders do not share keys, since no word counts as 0."""
    rows, keys, orders = [], [], []
    key_ST = np.zeros_like(words_ST)
    for order in range(min(ORDERS, words_ST.shape[1])):
        key_ST = key_ST[:, : words_ST.shape[1] - order] * base + words_ST[:, order:] + 1
        row_E, start_E = np.nonzero(np.arange(key_ST.shape[1]) + order < length_S[:, None])
        rows.append(row_E)
        keys.append(key_ST[row_E, start_E])
        orders.append(np.full(len(row_E), order))
    counted = _count(np.concatenate(rows), np.concatenate(keys), np.concatenate(orders))
    return _Texts(*counted, length_S)


def _count(row_E: _Ints, key_E: _Ints, order_E: _Ints) -> tuple[_Ints, _Ints, _Ints, _Ints]:
    sorted_E = np.lexsort((key_E, row_E))
    row_E, key_E, order_E = row_E[sorted_E], key_E[sorted_E], order_E[sorted_E]
    new_E = np.ones(len(row_E), dtype=bool)
    new_E[1:] = (row_E[1:] != row_E[:-1]) | (key_E[1:] != key_E[:-1])
    first_E = np.flatnonzero(new_E)
    return row_E[first_E], key_E[first_E], order_E[first_E], np.diff(first_E, append=len(row_E))


def _inverse_document_frequencies(texts: _Texts, image_R: _Ints) -> tuple[_Ints, _Floats]:
    """Give the n-grams of the references, sorted, with log(images / images that have them)."""
    image_E = image_R[texts.row_E]
    _, key_P, _, _ = _count(image_E, texts.key_E, texts.order_E)
    keys, images = np.unique(key_P, return_counts=True)
    return keys, np.log(image_R[-1] + 1) - np.log(images)


def _norms(texts: _Texts, weight_E: _Floats) -> _Floats:
    """Give the 2-norm of each text's weights, per order; 1 where it is 0, for a sum of nothing."""
    bins = len(texts.length_S) * ORDERS
    squares = np.bincount(texts.row_E * ORDERS + texts.order_E, weight_E**2, minlength=bins)
    norms_SO: _Floats = np.sqrt(squares).reshape(-1, ORDERS)
    return np.where(norms_SO == 0, 1.0, norms_SO)
