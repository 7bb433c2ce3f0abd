"""Words <-> ids, and ids <-> text: a vocabulary knows the tokeniser that its words come from."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from app.captioner.tokenisers import LOWER_ALPHANUMERIC, TOKENISERS, Tokeniser, tokeniser

TOKENISER = LOWER_ALPHANUMERIC
"""The tokeniser of English captions: scores of papers compare with it (docs/scoring.md)."""

PAD, BOS, EOS, UNK = range(4)
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")

MOST_WORDS = 2**18
"""More than any language's captions have; each costs memory in every beam."""
MOST_LETTERS = 100
"""In a word: the longest in use anywhere has fewer."""

tokenise = TOKENISERS[TOKENISER].tokenise
"""Lower-case the text and keep the runs of letters and digits.

On English captions this scores like coco-caption's PTB tokeniser to the fourth digit
(docs/scoring.md), without Java.
"""


@dataclass(frozen=True)
class Sentences:
    """How captions are written, where a reader expects sentences instead of words.

    Attributes:
        capital: begin with a capital letter.
        end: the mark that a sentence ends with; may be empty.
        forms: word -> how it is written within a sentence, where that differs: ``Hund``.

    Raises:
        ValueError: the end is more than a mark, or a form is that of another word.
    """

    capital: bool
    end: str
    forms: Mapping[str, str]

    def __post_init__(self) -> None:
        if len(self.end) > 1 or (self.end and not unicodedata.category(self.end).startswith("P")):
            raise ValueError(f"{self.end[:20]!r} ends no sentence: expected one punctuation mark")
        for word, form in self.forms.items():
            if not isinstance(form, str) or unicodedata.normalize("NFC", form.lower()) != word:
                raise ValueError(f"{str(form)[:MOST_LETTERS]!r} is no form of {word[:100]!r}")

    def write(self, words: Sequence[str], of: Tokeniser) -> str:
        """Write words as a sentence, from which the tokeniser gives the same words."""
        text = of.join([self.forms.get(word, word) for word in words])
        if self.capital:
            text = text[:1].upper() + text[1:]
        return text + self.end if text else text

    @classmethod
    def learn(cls, texts: Iterable[str], of: Tokeniser) -> Self:
        """See how people write: what most sentences begin and end with, how a word mostly is."""
        capital, ends = Counter[bool](), Counter[str]()
        seen: dict[str, Counter[str]] = {}
        for text in texts:
            first, *others = of.pieces(unicodedata.normalize("NFC", text)) or [""]
            capital[first[:1].isupper()] += bool(first[:1].upper() != first[:1].lower())
            ends[_end_of(text)] += 1
            for piece in others:
                seen.setdefault(piece.lower(), Counter())[piece] += 1
        mostly = {word: forms.most_common(1)[0][0] for word, forms in seen.items()}
        forms = {
            word: form
            for word, form in sorted(mostly.items())
            if form != word and of.tokenise(form) == [word]
        }
        end = ends.most_common(1)[0][0] if ends else ""
        return cls(capital[True] > capital[False], end, forms)


def _end_of(text: str) -> str:
    last = text.rstrip()[-1:]
    return last if last and unicodedata.category(last) == "Po" else ""


@dataclass(frozen=True)
class Vocabulary:
    """The closed set of words of one checkpoint.

    Ids 0 to 3 are PAD, BOS, EOS and UNK; the word ``words[i]`` has id ``i + 4``.

    Attributes:
        words: in the order of their ids.
        tokeniser: name of what gave them.
        sentences: how captions are written; None writes words as they are.

    Raises:
        ValueError: the tokeniser is unknown, a word is none that it gives, too long, or named
            twice.
    """

    words: tuple[str, ...]
    tokeniser: str = TOKENISER
    sentences: Sentences | None = None
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        of = tokeniser(self.tokeniser)
        for word in self.words:
            if not _is_word(word, of):
                raise ValueError(f"{str(word)[:MOST_LETTERS]!r} is no word of {of.name}")
        ids = {word: index for index, word in enumerate(self.words, start=len(SPECIALS))}
        if len(ids) != len(self.words):
            raise ValueError("a vocabulary names a word twice: each word has one id")
        object.__setattr__(self, "_ids", ids)

    def tokenise(self, text: str) -> list[str]:
        """Take a text apart as the words of this vocabulary were."""
        return tokeniser(self.tokeniser).tokenise(text)

    def text(self, words: Sequence[str]) -> str:
        """Write words as a caption."""
        of = tokeniser(self.tokeniser)
        return self.sentences.write(words, of) if self.sentences else of.join(words)

    def __len__(self) -> int:
        """Count the ids, the four special ones included."""
        return len(self.words) + len(SPECIALS)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Map tokens to ids; a token outside the vocabulary becomes UNK."""
        return [self._ids.get(token, UNK) for token in tokens]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Map ids to words.

        Raises:
            ValueError: an id is special or out of range; a caption never holds one.
        """
        return [self._word(index) for index in ids]

    def _word(self, index: int) -> str:
        if not len(SPECIALS) <= index < len(self):
            raise ValueError(
                f"id {index} is no word: words have ids {len(SPECIALS)}..{len(self) - 1}"
            )
        return self.words[index - len(SPECIALS)]

    @classmethod
    def build(
        cls,
        captions: Iterable[Sequence[str]],
        *,
        at_least: int,
        tokeniser_name: str = TOKENISER,
        sentences: Sentences | None = None,
    ) -> "Vocabulary":
        """Keep the words that occur ``at_least`` times, most frequent first, ties by spelling."""
        counts = Counter(token for tokens in captions for token in tokens)
        of = tokeniser(tokeniser_name)
        kept = (item for item in counts.items() if item[1] >= at_least and _is_word(item[0], of))
        words = tuple(word for word, _ in sorted(kept, key=lambda item: (-item[1], item[0])))
        if sentences:
            of_words = set(words)
            known = {word: form for word, form in sentences.forms.items() if word in of_words}
            sentences = Sentences(sentences.capital, sentences.end, known)
        return cls(words, tokeniser_name, sentences)

    @classmethod
    def learn(
        cls,
        texts: Iterable[str],
        *,
        at_least: int,
        tokeniser_name: str = TOKENISER,
        sentences: bool = False,
    ) -> "Vocabulary":
        """Build the vocabulary of captions, and see how they are written if ``sentences``."""
        texts, of = list(texts), tokeniser(tokeniser_name)
        return cls.build(
            map(of.tokenise, texts),
            at_least=at_least,
            tokeniser_name=tokeniser_name,
            sentences=Sentences.learn(texts, of) if sentences else None,
        )


def _is_word(word: object, of: Tokeniser) -> bool:
    """Say whether captions may be made of it."""
    return isinstance(word, str) and len(word) <= MOST_LETTERS and of.is_word(word)
