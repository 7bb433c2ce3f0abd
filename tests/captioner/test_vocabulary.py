import pytest

from app.captioner.vocabulary import BOS, EOS, PAD, SPECIALS, UNK, Sentences, Vocabulary, tokenise


def test_the_tokeniser_keeps_letters_and_digits_of_any_language():
    assert tokenise("A dog's T-shirt, 2 cafés_und Bäume .") == (
        ["a", "dog", "s", "t", "shirt", "2", "cafés", "und", "bäume"]
    )


def test_words_go_to_ids_and_back():
    vocabulary = Vocabulary(("a", "dog"))
    assert vocabulary.encode(["a", "cat", "dog"]) == [4, UNK, 5]
    assert vocabulary.decode([5, 4]) == ["dog", "a"]
    assert len(vocabulary) == len(SPECIALS) + 2


@pytest.mark.parametrize("index", [PAD, BOS, EOS, UNK, 6, -1])
def test_an_id_that_is_no_word_is_refused(index):
    with pytest.raises(ValueError, match="is no word"):
        Vocabulary(("a", "dog")).decode([index])


def test_the_frequent_words_are_kept_most_frequent_first():
    captions = [["b", "a"], ["b", "c"], ["c"], ["rare"]]
    assert Vocabulary.build(captions, at_least=2).words == ("b", "c")


def test_a_word_named_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        Vocabulary(("a", "a"))


NO_WORDS = [
    7,
    None,
    "",
    "A",
    "two words",
    "it's",
    "a_b",
    "<b>",
    "a\n",
    "\x1b[31m",
    "\ud800",
    "a" * 101,
]


@pytest.mark.parametrize("word", NO_WORDS, ids=ascii)
def test_what_no_caption_could_hold_is_no_word(word):
    with pytest.raises(ValueError, match="is no word of lower-alphanumeric"):
        Vocabulary(("a", word))


def test_a_token_without_end_does_not_become_a_word():
    endless = "a" * 101
    assert Vocabulary.build([["b", endless]], at_least=1).words == ("b",)


GERMAN = [
    "Ein Hund läuft über die Wiese .",
    "Zwei Kinder sehen den Hund .",
    "Der Junge und sein Hund schlafen auf der Wiese",
]


def test_captions_are_written_as_most_people_wrote_them():
    vocabulary = Vocabulary.learn(GERMAN, at_least=1, sentences=True)
    said = vocabulary.text(["der", "hund", "läuft", "über", "die", "wiese"])
    assert said == "Der Hund läuft über die Wiese."
    assert vocabulary.tokenise(said) == ["der", "hund", "läuft", "über", "die", "wiese"]
    assert Vocabulary.learn(GERMAN, at_least=1).text(["der", "hund"]) == "der hund"


def test_no_capital_and_no_mark_is_made_up():
    vocabulary = Vocabulary.learn(["a dog runs", "a cat"], at_least=1, sentences=True)
    assert vocabulary.text(["a", "dog"]) == "a dog"


def test_sentences_end_with_the_mark_of_their_language():
    hindi = ["एक कुत्ता दौड़ता है ।", "एक बिल्ली सोती है ।"]
    vocabulary = Vocabulary.learn(
        hindi, at_least=1, tokeniser_name="unicode-words-1", sentences=True
    )
    assert vocabulary.text(["एक", "बिल्ली"]) == "एक बिल्ली।"


@pytest.mark.parametrize(
    ("end", "forms"), [("..", {}), ("x", {}), ("\n", {}), (".", {"dog": "Cat"}), ("", {"dog": 7})]
)
def test_what_no_caption_is_written_like_is_refused(end, forms):
    with pytest.raises(ValueError, match=r"no sentence|no form"):
        Sentences(capital=True, end=end, forms=forms)
