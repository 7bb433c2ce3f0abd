"""What goes in and comes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, BinaryIO, Generic, Self, TypeVar

from caption_client.errors import CaptionError

File = str | PathLike[str] | bytes | BinaryIO
"""A path, the bytes of a file, or a file that is open for reading bytes."""
Image = File

Of = TypeVar("Of")


@dataclass(frozen=True)
class Word:
    """One word of a caption.

    Attributes:
        text: The word.
        log_prob: Its log-probability given the words before, in nats.
        attention: Rows by columns over the image: how much the network looked at each region.
        sentinel: 0..1, how much of the word came from language instead of the image.
    """

    text: str
    log_prob: float
    attention: Sequence[Sequence[float]] | None = None
    sentinel: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One caption of an image.

    Attributes:
        text: The sentence.
        log_prob: Its log-probability, in nats.
        score: ``log_prob`` with length normalisation; candidates are in its order.
        words: Empty unless asked for.
        confidence: 0..1, how probably it is right; None where the service cannot tell.
    """

    text: str
    log_prob: float
    score: float
    words: tuple[Word, ...] = ()
    confidence: float | None = None


@dataclass(frozen=True)
class Caption:
    """What the service says of an image.

    Attributes:
        text: The best sentence; None where it is withheld.
        log_prob: Its log-probability, in nats.
        candidates: As many as were asked for, best first.
        model: Which checkpoint answered, as ``name/version``.
        request_id: What the service's log calls the request.
        confidence: 0..1, how probably it is right; None where the service cannot tell.
        withheld: Why there is no sentence.
        tags: What the image may show, with probabilities; None where it was not asked, or the
            service cannot tell.
        warning: What to know about the sentence; None where there is nothing.
    """

    text: str | None
    log_prob: float
    candidates: tuple[Candidate, ...]
    model: str
    request_id: str
    confidence: float | None = None
    withheld: str | None = None
    tags: tuple[tuple[str, float], ...] | None = None
    warning: str | None = None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """Read the answer to one image."""
        (result,) = answer["results"]
        return cls(
            text=result["caption"],
            log_prob=result["log_prob"],
            candidates=tuple(_candidate(each) for each in result["candidates"]),
            model=_model(answer),
            request_id=answer["request_id"],
            confidence=result.get("confidence"),
            withheld=result.get("withheld"),
            tags=_tags(result.get("tags")),
            warning=result.get("warning"),
        )


@dataclass(frozen=True)
class Shot:
    """A part of a clip without a cut, and what the service says of it.

    Attributes:
        start_s: When it begins, in seconds from the start of the clip.
        end_s: When it ends; with ``start_s`` where the clip does not move.
        keyframe_s: The time of the frame nearest to its middle.
        caption: The best sentence; None where it is withheld.
        confidence: 0..1, how probably it is right; None where the service cannot tell.
        candidates: As many as were asked for, best first.
        withheld: Why there is no sentence.
    """

    start_s: float
    end_s: float
    keyframe_s: float
    caption: str | None
    confidence: float | None
    candidates: tuple[Candidate, ...]
    withheld: str | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """Read one shot of an answer."""
        return cls(
            start_s=told["start_s"],
            end_s=told["end_s"],
            keyframe_s=told["keyframe_s"],
            caption=told["caption"],
            confidence=told.get("confidence"),
            candidates=tuple(_candidate(each) for each in told["candidates"]),
            withheld=told.get("withheld"),
        )


@dataclass(frozen=True)
class Clip:
    """What the service says of a clip.

    Attributes:
        duration_s: How long it is, in seconds; 0 where it does not move.
        summary: The caption that is told for the longest time; None where all are withheld.
        shots: In their order.
        model: Which checkpoint answered, as ``name/version``.
        request_id: What the service's log calls the request.
        warning: What to know about the clip; None where there is nothing.
    """

    duration_s: float
    summary: str | None
    shots: tuple[Shot, ...]
    model: str
    request_id: str
    warning: str | None = None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """Read the answer to one clip."""
        return cls(
            duration_s=answer["duration_s"],
            summary=answer["summary"],
            shots=tuple(Shot.of(each) for each in answer["shots"]),
            model=_model(answer),
            request_id=answer["request_id"],
            warning=answer.get("warning"),
        )


def _model(answer: Mapping[str, Any]) -> str:
    return f"{answer['model']['name']}/{answer['model']['version']}"


def _tags(told: Sequence[Mapping[str, Any]] | None) -> tuple[tuple[str, float], ...] | None:
    return None if told is None else tuple((each["label"], each["probability"]) for each in told)


def _candidate(told: Mapping[str, Any]) -> Candidate:
    words = tuple(_word(each) for each in told.get("words", ()))
    return Candidate(
        told["caption"], told["log_prob"], told["score"], words, told.get("confidence")
    )


def _word(told: Mapping[str, Any]) -> Word:
    return Word(told["text"], told["log_prob"], told.get("attention"), told.get("sentinel"))


@dataclass(frozen=True)
class Result(Generic[Of]):
    """What became of one image of several: a caption, or an error.

    Attributes:
        image: As it was given.
        caption: None where there is an error.
        error: None where there is a caption.
    """

    image: Of
    caption: Caption | None = None
    error: CaptionError | OSError | None = None

    @property
    def text(self) -> str | None:
        """Give the sentence, if there is one."""
        return self.caption.text if self.caption else None
