"""Tokenisers by their names: what they give never changes, in any language."""

# ruff: noqa: RUF001 - words of many scripts look alike

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.captioner.tokenisers import (
    LOWER_ALPHANUMERIC,
    TOKENISERS,
    UNICODE_WORDS,
    fitting,
    tokeniser,
)

WORDS = {
    "English": ("I don't see Tom's dogs' T-shirt .", "i don't see tom's dogs t shirt"),
    "Hindi": ("एक भूरा कुत्ता दौड़ता है ।", "एक भूरा कुत्ता दौड़ता है"),
    "Bengali": ("একটি কুকুর দৌড়াচ্ছে ।", "একটি কুকুর দৌড়াচ্ছে"),
    "Arabic with vowels": ("كَلْبٌ أَسْوَدُ", "كَلْبٌ أَسْوَدُ"),
    "Persian": ("می‌دود سگ", "می‌دود سگ"),
    "French": ("L’ours qu'il n'a pas vu .", "l' ours qu' il n' a pas vu"),
    "Italian": ("Un'altra foto dell'albero", "un' altra foto dell' albero"),
    "Ukrainian": ("М'яч у дворі", "м'яч у дворі"),
    "German": ("Der Hund läuft über die Straße .", "der hund läuft über die straße"),
    "Chinese": ("一只2岁的狗。", "一 只 2 岁 的 狗"),
    "Japanese": ("犬がボールで遊ぶ", "犬 が ボ ー ル で 遊 ぶ"),
    "Thai": ("หมาวิ่ง", "ห ม า วิ่ ง"),
    "Korean": ("개가 잔디에서 달린다 .", "개가 잔디에서 달린다"),
}


@pytest.mark.parametrize("language", WORDS)
def test_words_of_all_languages_stay_whole(language):
    text, words = WORDS[language]
    composed = unicodedata.normalize("NFC", words)
    assert tokeniser(UNICODE_WORDS).tokenise(text) == composed.split(" ")


def test_the_tokeniser_of_english_is_what_it_was():
    tokenise = tokeniser(LOWER_ALPHANUMERIC).tokenise
    assert tokenise("A dog's T-shirt, 2 cafés_und .") == (
        ["a", "dog", "s", "t", "shirt", "2", "cafés", "und"]
    )


@pytest.mark.parametrize("name", TOKENISERS)
def test_composed_and_decomposed_letters_are_the_same_word(name):
    apart = unicodedata.normalize("NFD", "café läuft")
    assert tokeniser(name).tokenise(apart) == ["café", "läuft"]


WRITTEN = {
    "French": ("l'ours n'a pas", "l'ours n'a pas"),
    "Chinese": ("一只2岁的狗", "一只 2 岁的狗"),
    "Thai": ("หมา วิ่ง", "หมาวิ่ง"),
    "Hindi": ("एक कुत्ता", "एक कुत्ता"),
    "two languages": ("dog 狗 和 cat", "dog 狗和 cat"),
}


@pytest.mark.parametrize("language", WRITTEN)
def test_words_are_written_with_the_spaces_of_their_script(language):
    text, written = WRITTEN[language]
    unicode_words = tokeniser(UNICODE_WORDS)
    assert unicode_words.join(unicode_words.tokenise(text)) == written


@pytest.mark.parametrize("name", TOKENISERS)
@given(text=st.text(max_size=40))
def test_what_is_written_is_taken_apart_into_the_same_words(name, text):
    of = tokeniser(name)
    words = [word for word in of.tokenise(text) if of.is_word(word)]
    assert of.tokenise(of.join(words)) == words


def test_english_keeps_its_tokeniser_and_others_get_theirs():
    english = ["A dog runs .", "Two cats ."] * 20
    assert fitting(english) == LOWER_ALPHANUMERIC
    assert fitting([*english, "狗"]) == LOWER_ALPHANUMERIC
    assert fitting([WORDS[language][0] for language in ("English", "German", "Korean")]) == (
        LOWER_ALPHANUMERIC
    )
    for language in ("Hindi", "Arabic with vowels", "Persian", "French", "Chinese", "Thai"):
        assert fitting([WORDS[language][0]] * 3) == UNICODE_WORDS


def test_an_unknown_name_is_answered_with_those_that_are_known():
    with pytest.raises(ValueError, match="'lower-alphanumeric' or 'unicode-words-1'"):
        tokeniser("ptb")
