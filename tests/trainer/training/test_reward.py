"""The reward against coco-caption's own CIDEr-D, on the same strings."""

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from app.captioner.vocabulary import EOS, Vocabulary
from trainer.data.flickr8k import Example, Split
from trainer.errors import DataError
from trainer.training.reward import CiderD, reference_ids

WORDS = tuple(f"w{index}" for index in range(12))
IMAGES, SAMPLES = 25, 4


def some_ids(generator: np.random.Generator, *, longest: int) -> list[int]:
    length = int(generator.integers(1, longest))
    return [*(int(index) for index in generator.integers(4, 4 + len(WORDS), length)), EOS]


def text(ids: list[int]) -> str:
    return " ".join("<eos>" if index == EOS else f"x{index}" for index in ids)


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(row) for row in rows])
    words = np.full((len(rows), lengths.max()), 99_999)  # what follows a caption is not read
    for row, ids in zip(words, rows, strict=True):
        row[: len(ids)] = ids
    return words, lengths


@pytest.fixture
def references() -> list[list[list[int]]]:
    generator = np.random.default_rng(0)
    return [
        [some_ids(generator, longest=14) for _ in range(generator.integers(1, 6))]
        for _ in range(IMAGES)
    ]


def expected(references: list[list[list[int]]], candidates: list[list[int]]) -> np.ndarray:
    known = {str(index): [text(ids) for ids in image] for index, image in enumerate(references)}
    said = {str(index): [text(ids)] for index, ids in enumerate(candidates)}
    return Cider().compute_score(known, said)[1]


def test_it_equals_coco_captions_cider_d(references):
    generator = np.random.default_rng(1)
    scorer = CiderD(references)
    for round_ in range(SAMPLES):
        candidates = [some_ids(generator, longest=20) for _ in references]
        candidates[round_] = references[round_][0]  # a perfect one among the bad ones
        found = scorer.rewards(np.arange(IMAGES), *padded(candidates))
        np.testing.assert_allclose(found, expected(references, candidates), rtol=0, atol=1e-9)
        assert found[round_] > 1


def test_candidates_are_scored_in_any_order_and_number(references):
    scorer = CiderD(references)
    rows = [references[7][0], references[3][0], references[7][-1], [EOS], references[3][0]]
    found = scorer.rewards(np.array([7, 3, 7, 3, 4]), *padded(rows))
    alone = [
        scorer.rewards(np.array([image]), *padded([row]))[0]
        for image, row in zip([7, 3, 7, 3, 4], rows, strict=True)
    ]
    np.testing.assert_allclose(found, alone)
    assert found[1] > found[4]


def test_a_caption_that_does_not_end_earns_less():
    ended, other = [4, 5, 6, EOS], [7, 8, EOS]
    scorer = CiderD([[ended], [other], [[9, EOS]]])
    whole, cut = scorer.rewards(np.zeros(2, dtype=int), *padded([ended, ended[:-1]]))
    assert whole == pytest.approx(10)
    assert cut < whole


def test_words_outside_the_vocabulary_keep_their_weight():
    captions = ("A zebra runs.", "A dog runs with a zebra and an okapi")
    split = Split("train", (Example("one.png", None, captions),))
    vocabulary = Vocabulary(("a", "dog", "runs"))
    first, second = reference_ids(split, vocabulary)[0]
    assert first == [4, 7, 6, EOS]
    assert second == [4, 5, 6, 8, 4, 7, 9, 10, 11, EOS]


def test_too_many_words_are_refused():
    with pytest.raises(DataError, match="at most 55000 different words"):
        CiderD([[[60_000, EOS]]])
