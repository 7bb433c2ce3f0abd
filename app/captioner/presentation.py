"""What is told of an image's candidates: without gender, in a style, or not at all."""

from dataclasses import dataclass, replace
from typing import Final, Literal

from app.captioner.captions import Candidates, Caption
from app.captioner.image import formats
from app.captioner.neutral import neutral

Style = Literal["sentence", "alt"]
LOW_CONFIDENCE: Final = "low_confidence"
MOST_ALT_CHARACTERS = 125
"""Screen readers cut longer alternative texts, or read them in pieces."""
_CUT: Final = "The file ends early: the caption is of the part that is there."
_ONE_COLOUR: Final = "The image is all of one colour: the caption is a guess at nothing."
_EMPTY_BEGINNINGS: Final = tuple(
    f"{article} {kind} of "
    for article in ("a", "an", "the")
    for kind in ("photo", "photograph", "picture", "image", "close up", "closeup", "view", "shot")
)


@dataclass(frozen=True)
class Presentation:
    """How a caller wants to be told.

    Attributes:
        neutral: person and child in place of man, woman, boy and girl.
        style: ``sentence`` as the network says it; ``alt`` for alternative texts: a capital, no
            "a photo of", at most `MOST_ALT_CHARACTERS`.
        min_confidence: a caption below it is withheld.
    """

    neutral: bool = False
    style: Style = "sentence"
    min_confidence: float | None = None


class Told(Candidates):
    """The candidates as they are told.

    Attributes:
        withheld: why the caption is not told, `LOW_CONFIDENCE`, or None.
    """

    withheld: str | None

    @property
    def text(self) -> str | None:
        """Give the caption, None where it is withheld."""
        return None if self.withheld else self[0].text


def told(candidates: Candidates, how: Presentation) -> Told:
    """Give what is told of an image with one candidate or more.

    A checkpoint that has no confidence model withholds nothing.
    """
    chosen = neutral(candidates) if how.neutral else candidates
    captions = [_alt(each) for each in chosen] if how.style == "alt" else chosen
    found = Told(captions, candidates.tags, one_colour=candidates.one_colour)
    confidence = found[0].confidence
    below = None not in (how.min_confidence, confidence) and confidence < how.min_confidence  # type: ignore[operator]
    found.withheld = LOW_CONFIDENCE if below else None
    return found


def warning(found: Told, data: bytes) -> str | None:
    """Say what to know about the captions of a file; None where there is nothing."""
    said = [_CUT] if formats.ends_early(data) else []
    said += [_ONE_COLOUR] if found.one_colour else []
    return " ".join(said) or None


def _alt(caption: Caption) -> Caption:
    text = caption.text
    for beginning in _EMPTY_BEGINNINGS:
        text = text.removeprefix(beginning)
    if len(text) > MOST_ALT_CHARACTERS:
        text = text[: MOST_ALT_CHARACTERS + 1].rsplit(" ", 1)[0]
    return replace(caption, text=text[:1].upper() + text[1:])
