"""Words <-> ids, and the one tokeniser that training, references and candidates share."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

TOKENISER = "lower-alphanumeric"
"""The name of `tokenise`, written into manifests and score tables."""

PAD, BOS, EOS, UNK = range(4)
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")

MOST_WORDS = 2**18
"""More than any language's captions have; each costs memory in every beam."""
MOST_LETTERS = 100
"""In a word: the longest in use anywhere has fewer."""

_TOKEN = re.compile(r"[^\W_]+")


def tokenise(text: str) -> list[str]:
    """Lower-case the text and keep the runs of letters and digits.

    On English captions this scores like coco-caption's PTB tokeniser to the fourth digit
    (docs/scoring.md), without Java.
    """
    return _TOKEN.findall(text.lower())


def _is_word(word: object) -> bool:
    """Say whether captions may be made of it."""
    return isinstance(word, str) and len(word) <= MOST_LETTERS and tokenise(word) == [word]


@dataclass(frozen=True)
class Vocabulary:
    """The closed set of words of one checkpoint.

    Ids 0 to 3 are PAD, BOS, EOS and UNK; the word ``words[i]`` has id ``i + 4``.

    Raises:
        ValueError: a word is none that `tokenise` gives, too long, or named twice.
    """

    words: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for word in self.words:
            if not _is_word(word):
                raise ValueError(f"{str(word)[:MOST_LETTERS]!r} is no word of {TOKENISER}")
        ids = {word: index for index, word in enumerate(self.words, start=len(SPECIALS))}
        if len(ids) != len(self.words):
            raise ValueError("a vocabulary names a word twice: each word has one id")
        object.__setattr__(self, "_ids", ids)

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
    def build(cls, captions: Iterable[Sequence[str]], *, at_least: int) -> "Vocabulary":
        """Keep the words that occur ``at_least`` times, most frequent first, ties by spelling."""
        counts = Counter(token for tokens in captions for token in tokens)
        kept = (item for item in counts.items() if item[1] >= at_least and _is_word(item[0]))
        return cls(tuple(word for word, _ in sorted(kept, key=lambda item: (-item[1], item[0]))))
