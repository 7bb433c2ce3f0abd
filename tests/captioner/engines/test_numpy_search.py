"""The search on numpy finds what torch's finds, and what trying every caption finds."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.captioner.model import beam
from app.captioner.search import SearchOptions, always_waiting
from support.tables import BOS, EOS, PAD, UNK, NumpyTable, Table, V, ends_after, log_prob


def run(table, images, *, still_waiting=always_waiting, **options):
    return NumpyTable(table, SearchOptions(**options)).search(images, still_waiting)


def run_torch(table, images, *, still_waiting=always_waiting, **options):
    features_BRD = torch.tensor(images, dtype=torch.float).view(-1, 1, 1)
    marks = {"bos": BOS, "eos": EOS, "banned": (PAD, UNK)}
    asked = SearchOptions(**options)
    found = beam.search(table, features_BRD, asked, **marks, still_waiting=still_waiting)
    return found.arrays()


def assert_same(found, expected):
    """All that a caption is made of; what lies behind its end means nothing."""
    assert np.array_equal(np.isfinite(found.scores_BK), np.isfinite(expected.scores_BK))
    for b, k in np.argwhere(np.isfinite(expected.scores_BK)):
        length = expected.lengths_BK[b, k]
        assert found.lengths_BK[b, k] == length
        for name in ("log_probs_BK", "scores_BK"):
            theirs = getattr(expected, name)[b, k]
            assert getattr(found, name)[b, k] == pytest.approx(theirs, rel=1e-5, abs=1e-5), name
        for name in ("words_BKT", "word_log_probs_BKT", "attention_BKTR"):
            ours, theirs = (getattr(each, name)[b, k, :length] for each in (found, expected))
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=name)


def words_of(beams, b, k):
    return tuple(beams.words_BKT[b, k, : beams.lengths_BK[b, k]].tolist())


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_that_holds_every_caption_agrees_with_brute_force(alpha, seed):
    table = Table(2, 4, seed)
    found = run(table, [0, 1], beam_width=40, min_words=0, max_words=3, length_penalty=alpha)
    captions = [
        words for length in range(4) for words in itertools.product(range(4, V), repeat=length)
    ]
    for image in (0, 1):
        ranked = sorted(
            captions, key=lambda words: -log_prob(table, image, words) / (len(words) + 1) ** alpha
        )
        assert [words_of(found, image, k) for k in range(40)] == ranked
        expected = [log_prob(table, image, words) for words in ranked]
        np.testing.assert_allclose(found.log_probs_BK[image], expected, rtol=1e-5)


@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 4),
    width=st.integers(1, 9),
    max_words=st.integers(1, 7),
    shorter=st.integers(0, 7),
    alpha=st.sampled_from([0.0, 0.7, 1.5, -0.5]),
    no_repeat=st.sampled_from([0, 2, 3]),
    ends=st.floats(-6, 6),
    sharpness=st.floats(0.5, 4),
    leaving=st.lists(st.integers(1, 8), min_size=4, max_size=4),
)
@settings(max_examples=120, deadline=None)
def test_what_torch_finds_in_any_table_is_found(  # noqa: PLR0917 - hypothesis names them
    seed, images, width, max_words, shorter, alpha, no_repeat, ends, sharpness, leaving
):
    table = Table(images, max_words + 1, seed, sharpness)
    table.logits[..., EOS] += ends
    options = {
        "beam_width": width,
        "max_words": max_words,
        "min_words": max(0, max_words - shorter),
        "length_penalty": alpha,
        "no_repeat_ngram_size": no_repeat,
    }

    def patience():
        asked = [0] * images

        def still_waiting(image):
            asked[image] += 1
            return asked[image] < leaving[image]

        return still_waiting

    numbers = list(range(images))
    assert_same(
        run(table, numbers, still_waiting=patience(), **options),
        run_torch(table, numbers, still_waiting=patience(), **options),
    )


@pytest.mark.parametrize("size", [2, 3])
def test_no_sequence_comes_twice_where_that_is_asked_for(size):
    table = Table(2, 12, seed=1, sharpness=4.0)
    table.logits[..., EOS] = -20  # long captions, out of three words
    for asked, repeats in ((0, True), (size, False)):
        found = run(table, [0, 1], max_words=11, no_repeat_ngram_size=asked)
        all_words = [words_of(found, b, k) for b, k in itertools.product(range(2), range(3))]
        sequences = [[w[n : n + size] for n in range(len(w) - size + 1)] for w in all_words]
        assert any(len(set(each)) < len(each) for each in sequences) == repeats


def test_an_image_alone_and_in_any_batch_gives_the_same():
    table = Table(6, 9, seed=3)
    together = run(table, [5, 4, 3, 2, 1, 0], max_words=8)
    for image in range(6):
        alone = run(table, [image], max_words=8)
        for k in range(3):
            assert words_of(together, 5 - image, k) == words_of(alone, 0, k)
            assert together.log_probs_BK[5 - image, k] == alone.log_probs_BK[0, k]


def test_only_what_still_grows_is_computed():
    step = NumpyTable(ends_after([9, 2, 7, 3], of=9), SearchOptions(max_words=9))
    step.search([0, 1, 2, 3], always_waiting)
    runs = [(images, len(list(steps))) for images, steps in itertools.groupby(step.batches)]
    assert runs == [([0, 1, 2, 3], 3), ([0, 2, 3], 1), ([0, 2], 4), ([0], 2)]
    assert step.beams[0] == 1  # all beams of an image begin with the same word
    assert max(step.beams) == 3


def test_an_image_that_nobody_waits_for_leaves_and_is_not_asked_for_again():
    asked = []

    def still_waiting(image):
        asked.append(image)
        return image != 1 or len(asked) <= 3

    step = NumpyTable(ends_after([5, 5, 5], of=5), SearchOptions(max_words=5))
    found = step.search([0, 1, 2], still_waiting)
    assert asked == [0, 1, 2, 0, 1, 2, *[0, 2] * 3]
    assert np.isneginf(found.scores_BK[1]).all()
    assert np.isneginf(found.log_probs_BK[1]).all()
    assert np.isfinite(found.scores_BK[[0, 2]]).all()


def test_the_best_partial_caption_is_given_when_none_can_end():
    table = Table(1, 5, seed=4)
    table.logits[..., EOS] = -torch.inf
    found = run(table, [0], beam_width=2, max_words=4)
    assert found.lengths_BK.tolist() == [[4, 4]]
    assert np.isfinite(found.scores_BK).all()


def test_a_slot_without_a_caption_is_marked():
    found = run(Table(1, 2, seed=5), [0], beam_width=10, min_words=0, max_words=1)
    assert np.isfinite(found.scores_BK).sum() == 4  # "", and three captions of one word


def test_word_log_probs_add_up_to_the_caption():
    found = run(Table(2, 7, seed=6), [0, 1], max_words=6)
    np.testing.assert_allclose(found.word_log_probs_BKT.sum(-1), found.log_probs_BK, rtol=1e-5)
