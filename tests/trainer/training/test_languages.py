"""Captions of other languages, from the recipe's tokeniser to what a published checkpoint says."""

import json
from pathlib import Path

import pytest

from app.captioner import checkpoint
from app.captioner.pipeline import Captioner
from support.runs import fit
from support.tiny import photo
from trainer.__main__ import main
from trainer.data.flickr8k import Example, Split
from trainer.training.recipe import VocabularyOptions
from trainer.training.words import learn_vocabulary

GERMAN = ["Ein brauner Hund schläft auf der Wiese .", "Zwei Kinder sehen den Hund ."]
FAST = ["stages.0.epochs=1", "stages.1.epochs=1", "search.min_words=3"]
WORDS = ["vocabulary.tokeniser=unicode-words-1", "vocabulary.written=sentences"]


def write_captions(place: Path, captions: list[str]) -> None:
    tokens = place / "data" / "Flickr8k.token.txt"
    names = list(dict.fromkeys(line.split("#")[0] for line in tokens.read_text().splitlines()))
    lines = [f"{name}#{n}\t{text}\n" for name in names for n, text in enumerate(captions)]
    tokens.write_text("".join(lines), encoding="utf-8")


def split(*captions: str) -> Split:
    return Split("train", (Example("a.jpg", Path("a.jpg"), captions),))


def test_a_recipes_tokeniser_is_told_when_it_would_cut_words(capsys):
    hindi = split("एक कुत्ता दौड़ता है ।", "एक बिल्ली")
    options = VocabularyOptions(min_count=1)
    learn_vocabulary(options, hindi)
    said = capsys.readouterr().out
    assert "--set vocabulary.tokeniser=unicode-words-1" in said
    kept = learn_vocabulary(options.model_copy(update={"tokeniser": "unicode-words-1"}), hindi)
    assert {"कुत्ता", "बिल्ली"} <= set(kept.words)
    assert capsys.readouterr().out == ""


def test_english_keeps_its_words_and_hears_nothing(capsys):
    found = learn_vocabulary(VocabularyOptions(min_count=1), split("A dog's ball .", "A dog"))
    assert found.words == ("a", "dog", "ball", "s")
    assert capsys.readouterr().out == ""


@pytest.mark.long
def test_german_sentences_are_trained_scored_published_and_said(place):
    write_captions(place, GERMAN)
    assert fit(place, "run", *FAST, *WORDS) == 0
    best = checkpoint.load(place / "run" / "best")
    assert best.manifest.tokeniser == "unicode-words-1"
    assert best.vocabulary.sentences.forms == {"hund": "Hund", "kinder": "Kinder", "wiese": "Wiese"}
    scores, lines = place / "scores.json", place / "captions.jsonl"
    files = ["--json", str(scores), "--captions", str(lines)]
    assert main(["evaluate", str(place / "run"), "--data", str(place / "data"), *files]) == 0
    assert json.loads(scores.read_text())["tokeniser"] == "unicode-words-1"
    store = ["--version", "1", "--store", str(place / "store")]
    assert main(["publish", str(place / "run"), *store, "--degenerate"]) == 0
    captioner = Captioner.load(place / "store" / "tiny" / "1")
    captioner.check_golden()
    (said, *_), *_ = captioner.caption([captioner.read(photo(0), max_pixels=10_000)]).captions
    words = [word.text for word in said.words]
    assert captioner.vocabulary.tokenise(said.text) == words
    assert said.text.endswith(".")
    assert said.text[0].isupper()
    assert words == [word.lower() for word in words]
