"""What a caption says is there, and whether people said so too.

The words lie in ``things.txt``, which says how it was made. It is English.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from app.captioner.vocabulary import tokenise

_TABLE = Path(__file__).with_name("things.txt")
NUMBERS = {
    "two": ("two", "2", "couple", "pair", "both", "twins"),
    "three": ("three", "3", "trio"),
    "four": ("four", "4"),
    "five": ("five", "5"),
    "six": ("six", "6"),
}
"""A number, and the words of a reference that bear it out."""
_SIBILANTS = ("s", "x", "ch", "sh", "z")
_VOWELS = "aeiou"
WOMEN = frozenset({"woman", "women", "girl", "girls", "lady", "ladies", "female", "females", "her"})
MEN = frozenset({"man", "men", "boy", "boys", "guy", "guys", "male", "males", "his"})


@dataclass(frozen=True)
class Things:
    """Words that name things, animals, kinds of people, places and numbers.

    Attributes:
        borne_out_by: word -> what a reference may say so that the word is right; the word itself
            and its plural or singular are among them.
        group_of: word -> the name of its group.
        people: words for a person or several.
    """

    borne_out_by: dict[str, frozenset[str]]
    group_of: dict[str, str]
    people: frozenset[str]

    def named(self, text: str) -> list[str]:
        """Give the things and numbers that a caption names, in its order, each once."""
        return list(dict.fromkeys(word for word in tokenise(text) if word in self.borne_out_by))

    def wrong(self, text: str, references: Iterable[str]) -> list[str]:
        """Give the things and numbers of a caption that no reference bears out."""
        said = {word for reference in references for word in tokenise(reference)}
        return [word for word in self.named(text) if said.isdisjoint(self.borne_out_by[word])]

    def is_right(self, text: str, references: Sequence[str]) -> bool:
        """Say whether a caption names something, and nothing that no reference bears out."""
        return bool(self.named(text)) and not self.wrong(text, references)


def is_person(word: str) -> bool:
    """Say whether a word is one for a person or several."""
    return word in things().people


def gender_error(text: str, references: Sequence[str]) -> bool | None:
    """Say whether a caption gives a gender that the references, which agree, do not.

    Returns:
        None where the caption gives no gender, or two, or where references disagree or give none.
    """
    said = _genders(text)
    written = set().union(*map(_genders, references)) if references else set()
    if len(said) != 1 or len(written) != 1:
        return None
    return said != written


def unsupported_gender(text: str, references: Iterable[str]) -> bool:
    """Say whether a caption gives a gender that no reference gives."""
    return not _genders(text) <= set().union(*map(_genders, references))


def _genders(text: str) -> set[str]:
    words = set(tokenise(text))
    return {name for name, of in (("women", WOMEN), ("men", MEN)) if words & of}


@lru_cache(maxsize=1)
def things() -> Things:
    """Read the table."""
    members: dict[str, tuple[str, ...]] = {}
    evidence: dict[str, tuple[str, ...]] = {}
    parents: dict[str, str] = {}
    for line in _TABLE.read_text(encoding="utf-8").splitlines():
        head, colon, tail = line.partition(":")
        if not colon or line.startswith("#"):
            continue
        name, _, parent = (part.strip() for part in head.partition("<"))
        words = tail.split()
        members[name] = (name, *(word for word in words if word[0] != "+"))
        evidence[name] = tuple(word[1:] for word in words if word[0] == "+")
        if parent:
            parents[name] = parent
    return _closed(members, evidence, parents)


def _closed(
    members: dict[str, tuple[str, ...]],
    evidence: dict[str, tuple[str, ...]],
    parents: dict[str, str],
) -> Things:
    groups_of: dict[str, list[str]] = {}
    for name, words in members.items():
        for word in _forms(words):
            groups_of.setdefault(word, []).append(name)
    names = {form: name for name in members for form in _forms([name])}
    group_of = {word: names.get(word, groups[0]) for word, groups in groups_of.items()}
    below: dict[str, set[str]] = {name: {name} for name in members}
    for name in members:
        above = parents.get(name)
        while above:
            below[above].add(name)
            above = parents.get(above)
    borne_out = {
        word: frozenset(
            form
            for name in ([names[word]] if word in names else groups)
            for each in below[name]
            for form in (*_forms(members[each]), *evidence[each])
        )
        for word, groups in groups_of.items()
    }
    borne_out |= {number: frozenset(words) for number, words in NUMBERS.items()}
    people = {word for word, name in group_of.items() if name in below["person"]}
    numbers = {number: number for number in NUMBERS}
    return Things(borne_out, group_of | numbers, frozenset(people))


def _forms(words: Iterable[str]) -> set[str]:
    """Give words with their regular plurals."""
    return {form for word in words for form in (word, _plural(word))}


def _plural(word: str) -> str:
    if word.endswith(_SIBILANTS):
        return f"{word}es"
    if word.endswith("y") and word[-2] not in _VOWELS:
        return f"{word[:-1]}ies"
    return f"{word}s"
