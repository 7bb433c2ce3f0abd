"""Whether captions say what is there: right captions, hallucinated things, wrong genders."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.scoring.things import NUMBERS, gender_error, is_person, things, unsupported_gender

_FEWEST_NAMED = 0.5


@dataclass(frozen=True)
class Faithfulness:
    """What captions say that references do not.

    Attributes:
        captions: how many.
        named: share of captions with a word of our table. It is English: where fewer than half have
            one the captions are in another language, and the other figures mean nothing.
        right: share of captions that name something, and nothing that no reference bears out.
        hallucinating: share that names a thing, animal or place which no reference bears out;
            people and numbers are not counted here. CHAIR_s of Rohrbach et al. 2018, "Object
            hallucination in image captioning", with our table of words.
        wrong_number: share that says a number which no reference bears out.
        gender_said: share that gives one gender where all references that give one agree.
        gender_wrong: share of these that give the other one; None where there are none.
        gender_unsupported: share of all captions that give a gender which no reference gives.
    """

    captions: int
    named: float
    right: float
    hallucinating: float
    wrong_number: float
    gender_said: float
    gender_wrong: float | None
    gender_unsupported: float

    def as_dict(self) -> dict[str, Any]:
        """Give numbers for JSON."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }

    def as_text(self) -> str:
        """Give one line."""
        if self.named < _FEWEST_NAMED:
            return (
                "right captions: not judged; the table of things is English, and "
                f"{self.named:.0%} of the captions have a word of it"
            )
        gender = "none to judge" if self.gender_wrong is None else f"{self.gender_wrong:.1%}"
        return (
            f"right captions {self.right:.1%}, with a hallucinated thing {self.hallucinating:.1%}, "
            f"with a wrong number {self.wrong_number:.1%}; genders wrong {gender} "
            f"(judged {self.gender_said:.1%}), given by no reference {self.gender_unsupported:.1%}"
        )


def faithfulness(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> Faithfulness:
    """Hold one caption per image against that image's references; docs/scoring.md says how."""
    table = things()
    wrong = {image: table.wrong(text, references[image]) for image, text in candidates.items()}
    right = [table.is_right(text, references[image]) for image, text in candidates.items()]
    judged = [gender_error(text, references[image]) for image, text in candidates.items()]
    given = [each for each in judged if each is not None]
    return Faithfulness(
        captions=len(candidates),
        named=_share([bool(table.named(text)) for text in candidates.values()]),
        right=_share(right),
        hallucinating=_share([any(map(_is_thing, words)) for words in wrong.values()]),
        wrong_number=_share([any(word in NUMBERS for word in words) for words in wrong.values()]),
        gender_said=_share([each is not None for each in judged]),
        gender_wrong=_share(given) if given else None,
        gender_unsupported=_share(
            [unsupported_gender(text, references[image]) for image, text in candidates.items()]
        ),
    )


def _is_thing(word: str) -> bool:
    return word not in NUMBERS and not is_person(word)


def _share(found: Sequence[bool]) -> float:
    return sum(found) / max(len(found), 1)
