"""The Keras tutorial's scoring, worked by hand; beside ours and never mixed with it."""

import json
import math

import pytest

from trainer.__main__ import main
from trainer.errors import ScoringError
from trainer.scoring.keras_tutorial import clean, tutorial_score
from trainer.scoring.scores import score


def test_words_are_those_of_the_tutorial():
    text = "A snow-covered dog's ball, 2 k9 dogs run !"
    assert clean(text) == ["startseq", "snowcovered", "dogs", "ball", "dogs", "run", "endseq"]


def test_a_caption_worked_by_hand():
    # startseq dog runs fast endseq against startseq dog runs endseq: length 5 against 4.
    scores = tutorial_score({"x": "a dog runs fast"}, {"x": ["A dog runs ."]})
    one, two, three = 4 / 5, 2 / 4, 1 / 3
    assert scores.bleu_1 == pytest.approx(one)
    assert scores.bleu_2 == pytest.approx(math.sqrt(one * two))
    assert scores.bleu_3 == pytest.approx((one * two * three) ** 0.3)
    assert scores.bleu_4 == 0


def test_counts_are_summed_over_images_and_clipped_to_the_reference_that_has_most():
    candidates = {"x": "dog dog runs", "y": "cat"}
    references = {"x": ["dog runs", "the dog and dog sleep"], "y": ["cat sleeps"]}
    # x: startseq dog dog runs endseq, all 5 words are found; of its 4 pairs startseq-dog,
    # dog-runs and runs-endseq. y: startseq cat endseq: 3 words, startseq-cat of 2 pairs.
    # Lengths 5 + 3; closest references 4 (of 4 and 7) + 4, so there is no penalty.
    scores = tutorial_score(candidates, references)
    assert scores.bleu_1 == pytest.approx(8 / 8)
    assert scores.bleu_2 == pytest.approx(math.sqrt(8 / 8 * 4 / 6))


def test_a_short_caption_pays_for_its_length():
    # startseq dog endseq against startseq dog runs fast endseq: all 3 words, 3 of 5 long.
    scores = tutorial_score({"x": "dog"}, {"x": ["dog runs fast"]})
    assert scores.bleu_1 == pytest.approx(math.exp(1 - 5 / 3))


def test_a_caption_too_short_for_an_order_counts_as_one_miss_as_in_nltk():
    candidates = {"x": "dog runs fast", "y": "cat"}
    references = {"x": ["dog runs fast"], "y": ["cat"]}
    # Orders of 5 and 3 words: 8 of 8, 6 of 6, 4 of 4, and 2 of 2 + 1.
    assert tutorial_score(candidates, references).bleu_4 == pytest.approx((2 / 3) ** 0.25)


def test_a_perfect_caption_has_one_everywhere():
    scores = tutorial_score({"x": "dog runs very fast"}, {"x": ["Dog runs very fast!"]})
    assert [scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4] == [1, 1, 1, 1]


def test_markers_raise_the_figure_of_the_same_caption():
    candidates, references = {"x": "dog sleeps"}, {"x": ["cat runs"]}
    assert tutorial_score(candidates, references).bleu_1 == pytest.approx(0.5)
    assert score(candidates, references).bleu_1.value == pytest.approx(0)


def test_the_dictionary_names_its_rules():
    found = tutorial_score({"x": "dog"}, {"x": ["dog"]}).as_dict()
    assert found["rules"] == "tutorial"
    assert found["tokeniser"] == "keras-tutorial"
    assert "cider" not in found


def test_different_images_are_refused():
    with pytest.raises(ScoringError, match="same images"):
        tutorial_score({"x": "dog"}, {"y": ["dog"]})
    with pytest.raises(ScoringError, match="same images"):
        tutorial_score({}, {})


@pytest.mark.parametrize("text", ["startseq dog runs endseq", "<start> a dog", "a dog <unk>"])
def test_texts_with_markers_are_of_another_tokenisation_and_refused(text):
    with pytest.raises(ScoringError, match=r"caption of x: it is of another tokenisation"):
        score({"x": text}, {"x": ["a dog runs"]})
    with pytest.raises(ScoringError, match=r"reference of x: it is of another tokenisation"):
        score({"x": "a dog runs"}, {"x": ["a dog", text]})


def test_words_that_only_look_like_markers_are_welcome():
    assert score({"x": "runners at the start"}, {"x": ["the start and the end"]}).images == 1


@pytest.fixture
def files(tmp_path):
    (tmp_path / "tokens.txt").write_text("x.jpg#0\tA dog runs .\n")
    line = json.dumps({"image": "x.jpg", "caption": "a dog runs fast"})
    (tmp_path / "captions.jsonl").write_text(line + "\n")
    return [str(tmp_path / "captions.jsonl"), "--references", str(tmp_path / "tokens.txt")]


def test_the_verb_shows_the_tutorials_table_under_ours_only_when_asked(files, capsys):
    assert main(["score", *files]) == 0
    assert "tutorial" not in capsys.readouterr().out
    assert main(["score", *files, "--rules", "tutorial"]) == 0
    ours, theirs = capsys.readouterr().out.split("by the tutorial's rules")
    assert "BLEU-1   0.7500" in ours
    assert "lower-alphanumeric" in ours
    assert "BLEU-1   0.8000   0.579" in theirs
    assert "keras-tutorial" in theirs
    assert "compared with no other table" in theirs
