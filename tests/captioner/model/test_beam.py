"""The search on hand-written tables, where every caption can be tried."""

import itertools
import math

import pytest
import torch

from app.captioner.model.beam import search, steps_between_checks
from app.captioner.search import SearchOptions, always_waiting
from support.tables import BOS, EOS, PAD, UNK, Table, V, ends_after, log_prob
from support.tiny import tiny_network


def run(table, images, *, still_waiting=always_waiting, **options):
    features = torch.tensor(images, dtype=torch.float).view(-1, 1, 1)
    options = SearchOptions(**options)
    return search(
        table, features, options, bos=BOS, eos=EOS, banned=(PAD, UNK), still_waiting=still_waiting
    )


def runs_of(batches):
    """Give how many steps in a row each batch of images had."""
    return [(images, len(list(steps))) for images, steps in itertools.groupby(batches)]


def every_caption(max_words, min_words=0):
    for length in range(min_words, max_words + 1):
        yield from itertools.product(range(4, V), repeat=length)


def words_of(beams, b, k):
    return tuple(beams.words_BKT[b, k, : beams.lengths_BK[b, k]].tolist())


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_that_holds_every_caption_agrees_with_brute_force(alpha, seed):
    table = Table(2, 4, seed)
    beams = run(table, [0, 1], beam_width=40, min_words=0, max_words=3, length_penalty=alpha)
    for image in (0, 1):
        ranked = sorted(
            every_caption(3),
            key=lambda words: -log_prob(table, image, words) / (len(words) + 1) ** alpha,
        )
        assert [words_of(beams, image, k) for k in range(40)] == ranked
        expected = [log_prob(table, image, words) for words in ranked]
        torch.testing.assert_close(beams.log_probs_BK[image], torch.tensor(expected))


def sequences(words, size):
    return [words[start : start + size] for start in range(len(words) - size + 1)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_no_sequence_comes_twice_where_that_is_asked_for(size, seed):
    table = Table(2, 12, seed, sharpness=4.0)
    table.logits[..., EOS] = -20  # long captions, out of three words
    free = run(table, [0, 1], max_words=11)
    blocked = run(table, [0, 1], max_words=11, no_repeat_ngram_size=size)
    for beams, repeats in ((free, True), (blocked, False)):
        all_words = [words_of(beams, b, k) for b, k in itertools.product(range(2), range(3))]
        twice = [len(set(sequences(w, size))) < len(sequences(w, size)) for w in all_words]
        assert any(twice) == repeats
    assert_each_beam_paid_its_own_attention(blocked)


def test_what_is_never_repeated_is_searched_as_before():
    table = Table(3, 4, seed=5)
    free, blocked = (
        run(table, [0, 1, 2], max_words=3, no_repeat_ngram_size=size) for size in (0, 4)
    )
    pairs = zip(free, blocked, strict=True)
    assert all(one is other is None or torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("size", [-1, 1])
def test_a_size_that_leaves_no_language_is_refused(size):
    with pytest.raises(ValueError, match="no_repeat_ngram_size"):
        SearchOptions(no_repeat_ngram_size=size)


@pytest.mark.parametrize("seed", range(8))
def test_beam_of_one_is_greedy(seed):
    table = Table(1, 7, seed)
    words, last = [], BOS
    for step in range(6):
        allowed = table.logits[0, step, last].clone()
        allowed[[PAD, BOS, UNK] + ([EOS] if step < 1 else [])] = -torch.inf
        last = int(allowed.argmax())
        if last == EOS:
            break
        words.append(last)
    beams = run(table, [0], beam_width=1, max_words=6)
    assert words_of(beams, 0, 0) == tuple(words)


def test_an_image_alone_and_in_any_batch_gives_the_same():
    table = Table(6, 9, seed=3)
    together = run(table, [0, 1, 2, 3, 4, 5], max_words=8)
    backwards = run(table, [5, 4, 3, 2, 1, 0], max_words=8)
    for image in range(6):
        alone = run(table, [image], max_words=8)
        for batch, b in ((together, image), (backwards, 5 - image)):
            for k in range(3):
                assert words_of(batch, b, k) == words_of(alone, 0, k)
                assert batch.log_probs_BK[b, k].item() == alone.log_probs_BK[0, k].item()


def assert_each_beam_paid_its_own_attention(beams):
    for b, k in itertools.product(*map(range, beams.scores_BK.shape)):
        words, history = (BOS, *words_of(beams, b, k)), 0
        for t, last in enumerate(words):
            expected = torch.tensor([history, last]).float()
            assert torch.equal(beams.attention_BKTR[b, k, t], expected)
            history = history * V + last


def assert_same(batch, b, alone):
    T = alone.words_BKT.shape[-1]
    for name, value in alone._asdict().items():
        if name == "attention_BKTR" or value is None:
            continue  # after the end mark it means nothing; a table knows no classes
        own = getattr(batch, name)[b]
        if name in {"words_BKT", "word_log_probs_BKT"}:
            own = own[:, :T]
        assert torch.equal(own, value[0]), name


def test_a_finished_image_leaves_the_batch_with_the_caption_it_has_alone():
    table = ends_after([9, 2, 7, 3], of=9)
    together = run(table, [0, 1, 2, 3], max_words=9)
    assert runs_of(table.batches) == [([0, 1, 2, 3], 3), ([0, 2, 3], 1), ([0, 2], 4), ([0], 2)]
    for image in range(4):
        assert_same(together, image, run(table, [image], max_words=9))
    assert_each_beam_paid_its_own_attention(together)


def test_an_image_that_nobody_waits_for_leaves_and_the_others_say_the_same():
    table, asked = ends_after([13, 13, 13], of=13), []

    def still_waiting(image):
        asked.append(image)
        return image != 1 or len(asked) <= 3

    together = run(table, [0, 1, 2], max_words=13, still_waiting=still_waiting)
    assert runs_of(table.batches) == [([0, 1, 2], 2), ([0, 2], 12)]
    assert asked == [0, 1, 2, 0, 1, 2, *[0, 2] * 11]
    assert together.scores_BK[1].isneginf().all()
    for image in (0, 2):
        assert_same(together, image, run(table, [image], max_words=13))


def test_a_gpu_is_asked_rarely():
    assert steps_between_checks(torch.device("cpu")) == 1
    assert steps_between_checks(torch.device("cuda")) == 4


def test_a_search_that_nobody_waits_for_ends():
    table = ends_after([9, 2], of=9)
    beams = run(table, [0, 1], max_words=9, still_waiting=lambda image: image == 1)
    assert table.batches == [[0, 1], [1], [1]]
    assert beams.scores_BK[0].isneginf().all()
    assert words_of(beams, 1, 0)


def test_special_ids_are_never_emitted():
    table = Table(1, 6, seed=1)
    table.logits[..., [PAD, BOS, UNK]] = 50.0
    beams = run(table, [0], beam_width=5, max_words=5)
    for k in range(5):
        assert not {PAD, BOS, UNK, EOS} & set(words_of(beams, 0, k))


def test_no_caption_is_shorter_than_the_minimum_or_longer_than_the_maximum():
    table = Table(3, 7, seed=2)
    table.logits[..., EOS] += 6
    beams = run(table, [0, 1, 2], min_words=3, max_words=6)
    assert beams.lengths_BK.min() == 3
    table.logits[..., EOS] -= 12
    beams = run(table, [0, 1, 2], min_words=3, max_words=6)
    assert beams.lengths_BK.max() == 6


def test_the_best_partial_caption_is_given_when_none_can_end():
    table = Table(1, 5, seed=4)
    table.logits[..., EOS] = -torch.inf
    beams = run(table, [0], beam_width=2, max_words=4)
    assert words_of(beams, 0, 0)
    assert beams.lengths_BK.tolist() == [[4, 4]]
    assert torch.isfinite(beams.scores_BK).all()


def test_a_slot_without_a_caption_is_marked():
    beams = run(Table(1, 2, seed=5), [0], beam_width=10, min_words=0, max_words=1)
    assert torch.isfinite(beams.scores_BK).sum() == 4  # "", and three captions of one word


def test_word_log_probs_add_up_to_the_caption():
    beams = run(Table(2, 7, seed=6), [0, 1], max_words=6)
    torch.testing.assert_close(beams.word_log_probs_BKT.sum(-1), beams.log_probs_BK)


def test_attention_follows_the_beam_that_paid_it():
    assert_each_beam_paid_its_own_attention(run(Table(3, 7, seed=7), [0, 1, 2], max_words=6))


def test_impossible_options_are_refused():
    for wrong in ({"beam_width": 0}, {"min_words": 9, "max_words": 5}, {"max_words": 0}):
        with pytest.raises(ValueError, match="no search is possible"):
            SearchOptions(**wrong)


@pytest.mark.parametrize("decoder", ["merge", "inject", "attention"])
def test_a_network_says_the_same_alone_and_in_a_batch(decoder):
    """The tolerance on the score that the docs state: 1e-4 nats in float32."""
    network = tiny_network(decoder)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 64, 64), generator=generator, dtype=torch.uint8)
    with torch.inference_mode():
        features = network.encoder(images)
        options = {"bos": BOS, "eos": EOS, "banned": (PAD, UNK)}
        batch = search(network.decoder, features, SearchOptions(), **options)
        for b in range(5):
            own = network.encoder(images[b : b + 1])
            alone = search(network.decoder, own, SearchOptions(), **options)
            assert words_of(alone, 0, 0) == words_of(batch, b, 0)
            assert math.isclose(alone.log_probs_BK[0, 0], batch.log_probs_BK[b, 0], abs_tol=1e-4)


@pytest.mark.parametrize("decoder", ["merge", "inject", "attention"])
def test_a_network_goes_on_with_the_images_that_stay(decoder):
    network = tiny_network(decoder)
    features = torch.randn(5, 4, network.encoder.width, generator=torch.Generator().manual_seed(0))
    options = {"options": SearchOptions(min_words=9, max_words=9), "bos": BOS, "eos": EOS}
    still_waiting = [False, True, False, True, True]
    everyone = search(network.decoder, features, banned=(PAD, UNK), **options)
    fewer = search(
        network.decoder,
        features,
        banned=(PAD, UNK),
        still_waiting=still_waiting.__getitem__,
        **options,
    )
    assert fewer.scores_BK.isfinite().all(1).tolist() == still_waiting
    for b in (1, 3, 4):
        assert words_of(fewer, b, 0) == words_of(everyone, b, 0)
        assert math.isclose(fewer.log_probs_BK[b, 0], everyone.log_probs_BK[b, 0], abs_tol=1e-4)
