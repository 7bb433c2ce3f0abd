"""How captions are told: without gender, as alternative texts, or not at all; and tags."""

import math

import numpy as np
import pytest

from app.captioner.captions import Candidates, Caption, Word
from app.captioner.neutral import neutral, neutral_text
from app.captioner.presentation import LOW_CONFIDENCE, Presentation, told
from app.captioner.tags import Tag, tags


def caption(text, log_prob=-2.0, confidence=0.5):
    words = tuple(Word(word, -0.1) for word in text.split())
    return Caption(text, log_prob, log_prob / 2, words, confidence)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("a man in a hat", "a person in a hat"),
        ("two women and a boy", "two people and a child"),
        ("a man and a woman", "two people"),
        ("a girl with her dog", "a child with their dog"),
        ("a dog", "a dog"),
    ],
)
def test_gender_is_left_out(said, expected):
    assert neutral_text(said) == expected


def test_probabilities_of_candidates_that_say_the_same_add_up():
    found = neutral(
        Candidates(
            (
                caption("a dog", math.log(0.4)),
                caption("a man runs", math.log(0.3), 0.3),
                caption("a woman runs", math.log(0.2), 0.4),
            ),
            (Tag("dog", 0.5),),
        )
    )
    assert [each.text for each in found] == ["a person runs", "a dog"]
    assert found[0].log_prob == pytest.approx(math.log(0.5))
    assert found[0].score == pytest.approx(math.log(0.5) / 2)
    assert found[0].confidence == 0.4
    assert [word.text for word in found[0].words] == ["a", "person", "runs"]
    assert found.tags == (Tag("dog", 0.5),)


@pytest.mark.parametrize(("least", "withheld"), [(None, None), (0.5, None), (0.51, LOW_CONFIDENCE)])
def test_a_caption_below_the_least_confidence_is_withheld(least, withheld):
    found = told(Candidates([caption("a dog")]), Presentation(min_confidence=least))
    assert found.withheld == withheld
    assert found.text == (None if withheld else "a dog")
    assert [each.text for each in found] == ["a dog"]


def test_without_a_confidence_model_nothing_is_withheld():
    found = told(Candidates([caption("a dog", confidence=None)]), Presentation(min_confidence=1.0))
    assert found.text == "a dog"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("a dog runs", "A dog runs"),
        ("a photo of a dog", "A dog"),
        ("a close up of a dog", "A dog"),
        (" ".join(["word"] * 40), "W" + " ".join(["word"] * 25)[1:]),
    ],
)
def test_an_alternative_text_has_a_capital_and_an_end(said, expected):
    found = told(Candidates([caption(said)]), Presentation(style="alt"))
    assert found.text == expected
    assert len(expected) <= 125


def classes(**probabilities):
    found_C = np.zeros(1000, np.float32)
    for index, probability in probabilities.items():
        found_C[int(index[1:])] = probability
    return found_C


def test_a_clear_class_is_named_by_itself():
    assert tags(classes(c963=0.9, c923=0.06)) == (Tag("pizza", 0.9), Tag("plate", 0.06))


def test_a_kind_is_named_where_the_network_is_torn():
    torn = classes(c207=0.3, c208=0.3, c209=0.2, c852=0.1)
    assert tags(torn) == (Tag("dog", 0.8), Tag("tennis ball", 0.1))


def test_what_is_hardly_likely_is_no_tag():
    assert tags(np.full(1000, 0.001, np.float32)) == ()  # 118 breeds of dog together, and no dog
    assert tags(classes(c963=0.04)) == ()
