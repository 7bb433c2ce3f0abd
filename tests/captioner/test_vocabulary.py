import pytest

from app.captioner.vocabulary import BOS, EOS, PAD, SPECIALS, UNK, Vocabulary, tokenise


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
