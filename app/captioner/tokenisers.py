"""Text -> words, and words -> text: named ways that never change once a checkpoint has the name.

A change of what a tokeniser gives is a new name: scores and vocabularies of two names do not
compare.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

LOWER_ALPHANUMERIC = "lower-alphanumeric"
UNICODE_WORDS = "unicode-words-1"


@dataclass(frozen=True)
class Tokeniser:
    """One way to take text apart.

    Attributes:
        name: written into recipes, manifests and score tables.
        pieces: gives the words of text in composed form (NFC), in the letters they have there.
        join: writes words as text, from which `tokenise` gives the same words again.
    """

    name: str
    pieces: Callable[[str], list[str]]
    join: Callable[[Sequence[str]], str]

    def tokenise(self, text: str) -> list[str]:
        """Give the words of a text in small letters."""
        return self.pieces(unicodedata.normalize("NFC", text.lower()))

    def is_word(self, word: str) -> bool:
        """Say whether texts may be made of a word, an article such as ``l'`` among them."""
        return self.tokenise(word) == [word] or (
            word.endswith("'") and self.tokenise(f"{word}a") == [word, "a"]
        )


def tokeniser(name: str) -> Tokeniser:
    """Give a tokeniser by its name.

    Raises:
        ValueError: there is none; the message names those that there are.
    """
    try:
        return TOKENISERS[name]
    except KeyError:
        raise ValueError(
            f"tokeniser {name[:100]!r} is unknown, expected {' or '.join(map(repr, TOKENISERS))}"
        ) from None


def fitting(texts: Iterable[str]) -> str:
    """Name the tokeniser for texts: the one of English, unless it would cut their words.

    It would where letters carry marks that Unicode keeps apart, as in Hindi and Thai, where words
    are elided, as in French, and where sentences have no spaces; one text in twenty of that kind
    decides.
    """
    cut = [_is_cut(_nfc(text)) for text in texts]
    return UNICODE_WORDS if sum(cut) * 20 > len(cut) else LOWER_ALPHANUMERIC


_ALPHANUMERIC = re.compile(r"[^\W_]+")

# Scripts that set no spaces between words: Han with kana, Thai, Lao, Burmese, Khmer
_UNSPACED = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff"
    "\uaa60-\uaa7f\u1780-\u17ff"
)
_JOINERS = "\u200c\u200d"  # between letters of one word in Persian and in Indian scripts
_APOSTROPHES = str.maketrans("\u2018\u2019\uff07", "'''")
_VOWELS = "aeiouhàáâãäåæèéêëìíîïòóôõöøœùúûü"
# l'herbe, qu'il, dell'albero: an article or pronoun whose vowel is left out before another
_ELISION = re.compile(
    rf"(?<=[bcdfgjklmnpqrstvxz]')(?=[{_VOWELS}])|(?<=qu')(?=[{_VOWELS}])", re.IGNORECASE
)
_ENDS_UNSPACED = re.compile(rf"[{_UNSPACED}]")


@cache
def _marks() -> str:
    """Give all combining marks as part of a character class; a few milliseconds, once."""
    places = (*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0))
    marks = [place for place in places if unicodedata.category(chr(place)).startswith("M")]
    runs: list[list[int]] = []
    for place in marks:
        if runs and runs[-1][1] == place - 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in runs)


@cache
def _words() -> re.Pattern[str]:
    letter = r"[^\W_]"
    inside = f"[{_marks()}{_JOINERS}]"
    alone = f"(?={letter})[{_UNSPACED}]{inside}*"
    spaced = f"(?={letter})[^{_UNSPACED}](?:(?={letter})[^{_UNSPACED}]|{inside})*"
    return re.compile(f"{alone}|{spaced}(?:'{spaced})*")


@cache
def _cut_by_alphanumeric() -> re.Pattern[str]:
    return re.compile(f"[{_marks()}{_UNSPACED}{_JOINERS}]")


def _is_cut(text: str) -> bool:
    """Tell whether `LOWER_ALPHANUMERIC` would cut words of a text, or not find them."""
    plain = text.translate(_APOSTROPHES)
    return bool(_cut_by_alphanumeric().search(text) or _ELISION.search(plain))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _unicode_pieces(text: str) -> list[str]:
    """Keep marks and apostrophes within words; split elisions, and scripts without spaces."""
    runs: list[str] = _words().findall(text.translate(_APOSTROPHES))
    return [piece for run in runs for piece in _ELISION.split(run) if piece]


def _join_unicode(words: Sequence[str]) -> str:
    """Set spaces where a reader expects them."""
    text = ""
    for word in words:
        glued = text.endswith("'") or (_ENDS_UNSPACED.match(word) and text and _is_unspaced(text))
        text += word if glued or not text else f" {word}"
    return text


def _is_unspaced(text: str) -> bool:
    """Tell whether a text ends in a script without spaces, its marks aside."""
    last = next((c for c in reversed(text) if unicodedata.category(c)[0] not in "MC"), "")
    return bool(_ENDS_UNSPACED.match(last))


TOKENISERS = {
    each.name: each
    for each in (
        Tokeniser(LOWER_ALPHANUMERIC, _ALPHANUMERIC.findall, " ".join),
        Tokeniser(UNICODE_WORDS, _unicode_pieces, _join_unicode),
    )
}
