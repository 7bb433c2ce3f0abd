"""The scores equal independent computations, hold still, and refuse what cannot be compared."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from app.captioner.vocabulary import TOKENISER
from trainer.data.flickr8k import read_split
from trainer.errors import ScoringError
from trainer.scoring.scores import score

SHARED = Path(__file__).parents[4] / "shared" / "flickr8k"

CANDIDATES = {
    "beach": "A dog is running on the beach .",
    "bike": "a man in a red shirt is riding a bike",
    "girl": "Two girls are playing .",
    "snow": "a man is standing on a snow-covered mountain with a",
    "water": "a boy is jumping into the water",
}
REFERENCES = {
    "beach": [
        "A brown dog is running along the beach .",
        "The dog runs on the wet sand .",
        "a dog is running on a beach",
    ],
    "bike": ["A man in a red jacket rides a bike down a dirt trail .", "A mountain-biker, alone ."],
    "girl": ["Two girls play with a ball in the grass .", "2 girls are playing soccer"],
    "snow": [
        "A skier stands on top of a snow covered mountain .",
        "A man looks at the mountains .",
        "someone is standing on a mountain with a pair of skis",
    ],
    "water": ["A child jumps into a pool .", "The boy is jumping into the water .", "Splash !"],
}
# The formulae below agree with these: a change of scorer or tokeniser must show here.
FROZEN = {
    "bleu_1": 0.8099541,
    "bleu_2": 0.7758866,
    "bleu_3": 0.6692553,
    "bleu_4": 0.5643726,
    "rouge_l": 0.7197857,
    "cider": 2.6600053,
}


def words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def grams(tokens: list[str], n: int) -> Counter:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def plain_bleu(order: int) -> float:
    """Papineni et al. 2002, formulae of section 2.3, over the corpus above."""
    pairs = [(words(CANDIDATES[i]), [words(r) for r in REFERENCES[i]]) for i in CANDIDATES]
    log_precision = 0.0
    for n in range(1, order + 1):
        hits = total = 0
        for said, references in pairs:
            for gram, count in grams(said, n).items():
                hits += min(count, max(grams(each, n)[gram] for each in references))
                total += count
        log_precision += math.log(hits / total) / order
    length = sum(len(said) for said, _ in pairs)
    closest = [min((abs(len(r) - len(said)), len(r)) for r in refs)[1] for said, refs in pairs]
    return math.exp(min(0, 1 - sum(closest) / length) + log_precision)


def common_length(one: list[str], two: list[str]) -> int:
    if not one or not two:
        return 0
    if one[-1] == two[-1]:
        return 1 + common_length(one[:-1], two[:-1])
    return max(common_length(one[:-1], two), common_length(one, two[:-1]))


def plain_rouge(said: list[str], references: list[list[str]]) -> float:
    """Lin 2004, equations 2 to 4, with the best precision and the best recall of all references."""
    precision = max(common_length(said, each) / len(said) for each in references)
    recall = max(common_length(said, each) / len(each) for each in references)
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def plain_cider(image: str) -> float:
    """Vedantam et al. 2015, CIDEr-D: clipped tf-idf cosine, Gaussian length penalty, times ten."""
    total = 0.0
    for n in range(1, 5):
        seen = Counter(
            gram
            for references in REFERENCES.values()
            for gram in {gram for each in references for gram in grams(words(each), n)}
        )

        def weigh(text, n=n, seen=seen):
            counts = grams(words(text), n)
            return {g: c * math.log(len(REFERENCES) / max(1, seen[g])) for g, c in counts.items()}

        said = weigh(CANDIDATES[image])
        for reference in REFERENCES[image]:
            expected = weigh(reference)
            dot = sum(min(w, expected.get(g, 0)) * expected.get(g, 0) for g, w in said.items())
            norm = math.hypot(*said.values()) * math.hypot(*expected.values())
            gap = len(words(CANDIDATES[image])) - len(words(reference))
            penalty = math.exp(-(gap**2) / (2 * 6**2))
            total += penalty * dot / norm / len(REFERENCES[image]) if norm else 0
    return 10 * total / 4


def test_bleu_equals_the_plain_formulae():
    scores = score(CANDIDATES, REFERENCES)
    found = [scores.bleu_1.value, scores.bleu_2.value, scores.bleu_3.value, scores.bleu_4.value]
    assert found == pytest.approx([plain_bleu(order) for order in range(1, 5)], abs=1e-8)


def test_rouge_equals_the_plain_formulae():
    expected = [
        plain_rouge(words(CANDIDATES[image]), [words(each) for each in REFERENCES[image]])
        for image in CANDIDATES
    ]
    assert score(CANDIDATES, REFERENCES).rouge_l.value == pytest.approx(sum(expected) / 5)


def test_cider_equals_the_plain_formulae():
    expected = sum(plain_cider(image) for image in CANDIDATES) / len(CANDIDATES)
    assert score(CANDIDATES, REFERENCES).cider.value == pytest.approx(expected)


def test_the_scores_of_a_fixed_corpus_are_frozen():
    scores = score(CANDIDATES, REFERENCES)
    found = {name: getattr(scores, name).value for name in FROZEN}
    assert found == pytest.approx(FROZEN, abs=1e-6)


def test_rouge_worked_by_hand():
    # Best precision 3/3 (against the first), best recall 2/3 (against the second).
    scores = score({"x": "a dog runs"}, {"x": ["a brown dog runs fast", "the dog runs"]})
    assert scores.rouge_l.value == pytest.approx(2.44 * (2 / 3) / (2 / 3 + 1.44))


def test_cider_worked_by_hand():
    # Every n-gram has the same weight ln 3, which cancels; orders 3 and 4 have no n-grams.
    candidates = {"dog": "dog runs", "cat": "cat sleeps", "bird": "bird bird"}
    references = {"dog": ["dog runs"], "cat": ["cat sleeps quietly"], "bird": ["bird flies"]}
    exact = 10 * (1 + 1) / 4
    shorter_by_one = 10 * (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    clipped = 10 * (1 / (2 * math.sqrt(2))) / 4
    expected = (exact + shorter_by_one + clipped) / 3
    assert score(candidates, references).cider.value == pytest.approx(expected)


def test_perfect_captions_have_bleu_and_rouge_one():
    perfect = {image: texts[0] for image, texts in REFERENCES.items()}
    scores = score(perfect, REFERENCES)
    assert scores.bleu_1.value == pytest.approx(1)
    assert scores.bleu_4.value == pytest.approx(1)
    assert scores.rouge_l.value == pytest.approx(1)


def test_case_and_punctuation_do_not_count():
    loud = {image: f"{text.upper()}!!" for image, text in CANDIDATES.items()}
    assert score(loud, REFERENCES) == score(CANDIDATES, REFERENCES)


def test_the_order_of_images_does_not_matter():
    backwards = dict(reversed(CANDIDATES.items()))
    assert score(backwards, REFERENCES) == score(CANDIDATES, REFERENCES)


def test_a_caption_without_a_word_scores_nothing():
    scores = score(dict.fromkeys(CANDIDATES, " . "), REFERENCES)
    assert scores.bleu_1.value == scores.rouge_l.value == scores.cider.value == 0


def test_the_interval_contains_the_score_and_is_reproducible():
    first, second = score(CANDIDATES, REFERENCES), score(CANDIDATES, REFERENCES)
    assert first == second
    for name in FROZEN:
        estimate = getattr(first, name)
        assert estimate.low < estimate.value < estimate.high


def test_the_interval_of_a_mean_has_the_width_of_theory():
    # Half of the captions are perfect, half are wrong: standard error .5 / sqrt(400).
    candidates = {f"{n}": "a dog runs" if n % 2 else "cats" for n in range(400)}
    rouge = score(candidates, dict.fromkeys(candidates, ("a dog runs",))).rouge_l
    assert rouge.value == pytest.approx(0.5)
    assert rouge.high - rouge.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)


def test_caption_statistics_are_counted_after_tokenisation():
    candidates = {"a": "A dog .", "b": "a dog", "c": "a cat on a"}
    references = dict.fromkeys(candidates, ("a dog",))
    statistics = score(candidates, references, training=["A DOG", "a bird"]).caption_statistics
    assert statistics.distinct_captions == 2
    assert statistics.words_used == 4
    assert statistics.mean_length_words == pytest.approx(8 / 3)
    assert statistics.bad_endings_percent == pytest.approx(100 / 3)
    assert statistics.copied_percent == pytest.approx(200 / 3)


def test_copies_are_not_counted_without_training_captions():
    scores = score(CANDIDATES, REFERENCES)
    assert scores.caption_statistics.copied_percent is None
    assert "copied" not in scores.table()
    assert "copied from training 0.0 %" in score(CANDIDATES, REFERENCES, training=[]).table()


def test_the_table_names_metrics_tokeniser_and_images():
    table = score(CANDIDATES, REFERENCES).table()
    for words_of_table in ("BLEU-4", "ROUGE-L", "CIDEr", TOKENISER, "5 images", "95 %"):
        assert words_of_table in table


def test_the_dictionary_survives_json():
    found = score(CANDIDATES, REFERENCES).as_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["tokeniser"] == TOKENISER
    assert found["cider"].keys() == {"value", "low", "high"}
    assert found["interval"]["resamples"] >= 1000


def test_scoring_prints_nothing(capsys):
    score(CANDIDATES, REFERENCES)
    assert capsys.readouterr() == ("", "")


def test_nothing_to_score_is_refused():
    with pytest.raises(ScoringError, match="at least one"):
        score({}, {})


def test_missing_and_extra_images_are_named():
    candidates = {**CANDIDATES, "moon": "a moon"}
    del candidates["girl"]
    with pytest.raises(ScoringError, match="without a caption: girl; without references: moon"):
        score(candidates, REFERENCES)


@pytest.mark.parametrize("references", [[], [" . "]])
def test_an_image_without_references_is_refused(references):
    with pytest.raises(ScoringError, match="girl"):
        score(CANDIDATES, {**REFERENCES, "girl": references})


@pytest.mark.skipif(not SHARED.is_dir(), reason="Flickr8k is not here")
def test_a_person_scores_against_the_other_four_as_published():
    examples = read_split(SHARED, "dev").examples
    person = {example.image: example.captions[0] for example in examples}
    others = {example.image: example.captions[1:] for example in examples}
    assert score(person, others).cider.value == pytest.approx(0.82, abs=0.05)
