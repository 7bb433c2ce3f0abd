"""Wire schemas: what goes in and out as JSON."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.captioner.presentation import Presentation, Style
from app.clips.sampling import DEFAULT_FPS
from app.clips.shots import DEFAULT_THRESHOLD
from app.web import base64_text

ClipFormat = Literal["json", "ndjson", "vtt", "srt"]
NO_URLS = (
    "Web addresses are not fetched here: send the bytes of the image, or set CAPTION_FETCH_URLS"
)


def _from_base64(value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("expected a string of base64")  # noqa: TRY004 - pydantic reports ValueError
    return base64_text.decoded(value.encode("ascii", "replace"))


class Strict(BaseModel):
    """A schema that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Options(Strict):
    """What the caller may choose, as query parameters, form fields or members of the JSON body."""

    n_best: int = Field(1, ge=1, description="Candidates per image; at most the beam width.")
    words: bool = Field(default=False, description="Each word with its log-probability.")
    attention: bool = Field(
        default=False, description="Where the network looked for each word; implies words."
    )
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="A caption below this confidence is withheld; 0.5 is a good start.",
    )
    neutral: bool = Field(
        default=False, description="Person and child in place of man, woman, boy and girl."
    )
    style: Style = Field(
        "sentence",
        description="alt: for alternative texts, with a capital and at most 125 characters.",
    )
    tags: bool = Field(default=False, description="What the image may show, in single words.")
    model: str | None = Field(
        None,
        description="The checkpoint, where several are served: name@version, or name for its "
        "newest. One of `GET /v1/models`; the first of them unless told.",
    )

    def presentation(self, min_confidence: float | None) -> Presentation:
        """Say how to tell captions, with the service's own least confidence where none is given."""
        least = min_confidence if self.min_confidence is None else self.min_confidence
        return Presentation(neutral=self.neutral, style=self.style, min_confidence=least)


class ClipOptions(Strict):
    """What the caller may choose of a clip, as query parameters or form fields."""

    fps: float = Field(
        DEFAULT_FPS, gt=0, le=30, description="Frames looked at in a second; of images, their rate."
    )
    max_frames: int | None = Field(
        None, ge=1, description="Frames looked at in all, spread over the clip."
    )
    scene_threshold: float = Field(
        DEFAULT_THRESHOLD,
        gt=0,
        le=1,
        description="How different two frames of two shots are; lower finds more shots.",
    )
    n_best: int = Field(1, ge=1, description="Candidates per shot; at most the beam width.")
    min_confidence: float | None = Field(
        None, ge=0, le=1, description="A caption below this confidence is withheld."
    )
    neutral: bool = Field(
        default=False, description="Person and child in place of man, woman, boy and girl."
    )
    style: Style = Field(
        "sentence",
        description="alt: for alternative texts, with a capital and at most 125 characters.",
    )
    frames: bool = Field(
        default=False, description="The files are images, the frames of one clip in their order."
    )
    format: ClipFormat | None = Field(
        None, description="Of the answer, in place of what Accept asks for."
    )
    model: str | None = Field(
        None, description="The checkpoint, where several are served, as for `/v1/captions`."
    )

    def presentation(self, min_confidence: float | None) -> Presentation:
        """Say how to tell captions, with the service's own least confidence where none is given."""
        least = min_confidence if self.min_confidence is None else self.min_confidence
        return Presentation(neutral=self.neutral, style=self.style, min_confidence=least)


def given(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out the options that are there and empty, as forms send them: they have their default.

    Also the members of a JSON body, whose images are never empty strings.
    """
    return {
        name: value
        for name, value in fields.items()
        if not (value is None or (isinstance(value, str) and not value.strip()))
    }


class JsonImage(Strict):
    """One image of a JSON request: its bytes, or its web address. A bare string is either."""

    data: Annotated[bytes | None, BeforeValidator(_from_base64)] = None
    url: str | None = Field(None, max_length=2048)

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return {"url" if value[:8].lower().startswith(("http://", "https://")) else "data": value}

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.data is None) == (self.url is None):
            raise ValueError('expected {"data": "<base64>"}, or {"url": "https://..."}')
        return self


class JsonRequest(Options):
    """A JSON request. ``image``, or ``url``, is short for one image."""

    images: list[JsonImage] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _from_short_forms(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        members = given(value)
        images = members.get("images")
        if isinstance(images, str | dict):
            members["images"] = [images]
        if images is None and "image" in members:
            image = members.pop("image")
            members["images"] = image if isinstance(image, list) else [image]
        elif images is None and "url" in members:
            members["images"] = [{"url": members.pop("url")}]
        return members


_REQUEST_TIMEOUT: dict[str, Any] = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds the caller waits at most; more than the service's own limit is cut.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_OPTION_FIELDS = Options.model_json_schema()["properties"]
PARAMETERS: list[dict[str, Any]] = [
    *(
        {"name": name, "in": "query", "description": schema["description"], "schema": schema}
        for name, schema in _OPTION_FIELDS.items()
    ),
    _REQUEST_TIMEOUT,
]
_CLIP_OPTION_FIELDS = ClipOptions.model_json_schema()["properties"]
CLIP_PARAMETERS: list[dict[str, Any]] = [
    *(
        {"name": name, "in": "query", "description": schema["description"], "schema": schema}
        for name, schema in _CLIP_OPTION_FIELDS.items()
    ),
    _REQUEST_TIMEOUT,
]
VERSION: dict[str, Any] = {
    "name": "version",
    "in": "query",
    "description": "In place of the one that CAPTION_CHECKPOINT leads to, beside it.",
    "schema": {"type": "string"},
}
MODEL: dict[str, Any] = {
    "name": "model",
    "in": "query",
    "description": "Whose place is meant, where several are served: name, or name@version.",
    "schema": {"type": "string"},
}
SHARE: dict[str, Any] = {
    "name": "share",
    "in": "query",
    "required": True,
    "description": "Of the requests that ask for no checkpoint, what the last one gets.",
    "schema": {"type": "number", "minimum": 0, "maximum": 1},
}
SECURITY_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Where keys are set."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}, {}]
"""What an operation that may need a key says; the last one is none."""
_BINARY = {"type": "string", "format": "binary"}
_JSON_IMAGE: dict[str, Any] = {  # one model with two members: an anyOf is hard to use in a client
    "title": "ImageInput",
    "description": "Either data or url. A plain string of base64 is read too.",
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
    "properties": {
        "data": {"type": "string", "contentEncoding": "base64"},
        "url": {"type": "string", "format": "uri", "maxLength": 2048},
    },
}
# Options are in the query: in a form too, a generated client would have each of them twice.
# JSON comes first: clients of openapi-generator send what comes first, and say JSON if they can.
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "title": "CaptionRequest",
                "type": "object",
                "required": ["images"],
                "additionalProperties": False,
                "properties": {
                    "images": {"type": "array", "minItems": 1, "items": _JSON_IMAGE},
                    **_OPTION_FIELDS,
                },
            },
            "example": {"images": [{"data": "/9j/4AAQSkZJRgABAQ=="}], "n_best": 3, "words": True},
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "array", "items": _BINARY}},
            },
            "encoding": {"image": {"contentType": "image/*"}},
        },
        "application/octet-stream": {"schema": _BINARY},  # or image/*, which generators do not know
    },
}


CLIP_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "array", "items": _BINARY}},
            },
        },
        "application/octet-stream": {"schema": _BINARY},  # or video/*, image/*
    },
}


class Problem(Strict):
    """Problem details as in RFC 9457, with a stable code."""

    type: str = Field(examples=["urn:caption-service:problem:undecodable_image"])
    title: str = Field(examples=["Undecodable image"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["The image is damaged or cut short."])
    code: str = Field(examples=["undecodable_image"])
    request_id: str = Field(examples=["4f2c9b0e6d5a4c0f8f6f0d6a3b1c2d3e"])
    limit: int | None = Field(None, description="The limit that was passed.")
    retry_after: int | None = Field(None, description="Seconds, as in Retry-After.")
    reason: str | None = Field(None, description="The reason code of /readyz.")
    errors: list[dict[str, str]] | None = Field(None, description="Which values are wrong.")


class WordOut(Strict):
    """One word of a caption."""

    text: str
    log_prob: float = Field(description="Natural logarithm, given the words before.")
    attention: list[list[float]] | None = Field(
        None,
        description="Rows by columns over the image, only when asked for; null without attention.",
    )
    sentinel: float | None = Field(
        None, description="0..1: how much came from language instead of the image."
    )


class Candidate(Strict):
    """One caption of an image."""

    caption: str
    log_prob: float = Field(description="Natural logarithm of its probability.")
    score: float = Field(
        description="log_prob with length normalisation; candidates are in its order."
    )
    confidence: float | None = Field(
        None, description="0..1: calibrated probability that it is right; null if not known."
    )
    words: list[WordOut] | None = Field(None, description="Only when asked for.")


class TagOut(Strict):
    """What an image may show."""

    label: str = Field(examples=["pizza"])
    probability: float = Field(description="0..1")


class CaptionedImage(Strict):
    """The result for an image that could be read."""

    filename: str | None
    caption: str | None = Field(description="null where it is withheld.")
    log_prob: float
    confidence: float | None = Field(
        None, description="0..1: calibrated probability that it is right; null if not known."
    )
    withheld: Literal["low_confidence"] | None = Field(
        None, description="Why there is no caption; the candidates are there all the same."
    )
    tags: list[TagOut] | None = Field(
        None,
        description="When asked for, and where a caption is withheld; null if not known.",
    )
    candidates: list[Candidate]
    warning: str | None = Field(
        None, description="What to know about the caption; only where there is something."
    )


class RefusedImage(Strict):
    """The result for an image at fault among others."""

    filename: str | None
    problem: Problem


_EXAMPLE: Any = {
    "request_id": "4f2c9b0e6d5a4c0f8f6f0d6a3b1c2d3e",
    "model": {"name": "everyday-efficientnet-lite1", "version": "1"},
    "results": [
        {
            "filename": "surfing.jpg",
            "caption": "a man is surfing on a wave",
            "log_prob": -5.2,
            "confidence": 0.87,
            "candidates": [
                {
                    "caption": "a man is surfing on a wave",
                    "log_prob": -5.2,
                    "score": -0.65,
                    "confidence": 0.87,
                }
            ],
        },
        {
            "filename": "broken.jpg",
            "problem": {
                "type": "urn:caption-service:problem:undecodable_image",
                "title": "Undecodable image",
                "status": 422,
                "detail": "The image is damaged or cut short.",
                "code": "undecodable_image",
                "request_id": "4f2c9b0e6d5a4c0f8f6f0d6a3b1c2d3e",
            },
        },
    ],
}


class CheckpointName(Strict):
    """Which checkpoint answered."""

    name: str
    version: str


class CaptionResponse(Strict):
    """The answer: one result per image, in the order of the request."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    request_id: str
    model: CheckpointName
    results: list[CaptionedImage | RefusedImage]


class ClipShot(Strict):
    """A run of frames that show one thing, and its caption."""

    start_s: float = Field(description="When it begins, from the beginning of the clip.")
    end_s: float = Field(description="When the next one begins, or the clip ends.")
    keyframe_s: float = Field(description="The time of the frame nearest to its middle.")
    caption: str | None = Field(description="null where it is withheld.")
    log_prob: float
    confidence: float | None = Field(
        None, description="0..1: calibrated probability that it is right; null if not known."
    )
    withheld: Literal["low_confidence"] | None = Field(
        None, description="Why there is no caption; the candidates are there all the same."
    )
    candidates: list[Candidate]


class ClipEnd(Strict):
    """What is known of a clip once it is read to its end; the last line of NDJSON."""

    request_id: str
    model: CheckpointName
    duration_s: float = Field(description="0 of an image that does not move.")
    summary: str | None = Field(
        description=(
            "The caption of the shots that say the same for the longest time, weighed by "
            "confidence; null where all are withheld."
        )
    )
    warning: str | None = Field(
        None, description="What to know about the captions; only where there is something."
    )


class ClipResponse(ClipEnd):
    """The answer for a clip: its shots in their order."""

    shots: list[ClipShot]


class ListedCheckpoint(Strict):
    """A checkpoint as clients of OpenAI's API list models."""

    id: str = Field(examples=["everyday-efficientnet-lite1:1"])
    object: Literal["model"] = "model"
    created: int = Field(0, description="Always 0: a checkpoint does not say when it was made.")
    owned_by: str = "caption-service"


class RefusedCheckpoint(Strict):
    """The last checkpoint that should have been served and is not."""

    reason: str
    at: datetime


class ServedCheckpoint(Strict):
    """How a checkpoint is served."""

    name: str
    version: str
    share: float = Field(description="Of the requests that ask for no checkpoint.")
    refused: RefusedCheckpoint | None = Field(
        None, description="Why the one that is in its place now is not served; else null."
    )


class CheckpointList(Strict):
    """The checkpoints served: their manifests, and the list that OpenAI's clients read."""

    models: list[dict[str, Any]]
    served: list[ServedCheckpoint]
    object: Literal["list"] = "list"
    data: list[ListedCheckpoint]
    refused: RefusedCheckpoint | None = Field(
        None, description="The latest of those in `served`; else null."
    )


class Reloaded(Strict):
    """What came of a look for another checkpoint."""

    outcome: Literal["served", "unchanged"] = Field(
        description="served: it has taken over; unchanged: it was served already."
    )
    model: CheckpointName
    seconds: float


class CanaryShare(Strict):
    """What the last of two checkpoints gets of the requests that ask for none."""

    share: float
    model: CheckpointName = Field(description="The last one.")


class HealthReport(Strict):
    """What a probe answers."""

    status: str
    reason: str
