"""What ``manifest.json`` and ``golden/caption.json`` may say, every number within bounds.

A manifest comes from whoever made the checkpoint. What it asks for is held against these bounds
before any memory is taken for it; they lie well above what a captioner has use for.

B images, K beams, T steps, V words, R regions, D feature width, H width of the LSTM, F frames
"""

import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from app.captioner.architecture import (
    ENCODER_SHAPES,
    Architecture,
    feature_width,
    regions,
)
from app.captioner.image.fit import Fit, Resampling
from app.captioner.search import SearchOptions
from app.captioner.vocabulary import TOKENISER

FORMAT_VERSION: Final = 2
WEIGHTS = "weights.safetensors"

MOST_BEAMS = 32
MOST_CAPTION_WORDS = 128
MOST_PENALTY = 4.0
MOST_FILES = 64
MOST_WORKING_BYTES = 512 * 2**20
"""Of a batch of 8 images beside the weights, see `working_bytes`."""
MOST_TABLE_BYTES = 512 * 2**20
"""Of what the LSTM takes of each word, which an engine keeps."""
MOST_PUBLIC_BYTES = 64 * 2**10
"""Of what ``/v1/models`` shows to everybody who asks."""
_BATCH = 8

NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
FileName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$", max_length=200),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _within_bounds(search: SearchOptions) -> SearchOptions:
    bounds = {
        "beam_width": (1, MOST_BEAMS),
        "max_words": (1, MOST_CAPTION_WORDS),
        "length_penalty": (-MOST_PENALTY, MOST_PENALTY),
        "no_repeat_ngram_size": (0, MOST_CAPTION_WORDS),
    }
    for name, (least, most) in bounds.items():
        value = getattr(search, name)
        if not least <= value <= most:  # nor is NaN
            raise ValueError(f"{name} is {value}, expected {least} to {most}")
    return search


BoundedSearch = Annotated[SearchOptions, AfterValidator(_within_bounds)]
"""Search options that a service agrees to."""


class ImageGeometry(BaseModel):
    """How an image becomes the network's square.

    Attributes:
        size_px: side of the square.
        fit: ``squeeze``, ``crop`` or ``pad``, see `app.captioner.image.fit`.
        resampling: the filter that resizes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_px: int = Field(ge=32, le=1024)
    fit: Fit
    resampling: Resampling = "bilinear"


class Manifest(BaseModel):
    """What the network is and where it comes from. What a machine may do stands in CAPTION_*."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = FORMAT_VERSION
    name: Name
    version: Name
    architecture: Architecture
    image: ImageGeometry
    search: BoundedSearch
    tokeniser: str = TOKENISER
    files: dict[FileName, Sha256] = Field(default={}, max_length=MOST_FILES)
    scores: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    versions: dict[str, str] = {}
    source_commit: str = Field(default="", max_length=100)

    @model_validator(mode="after")
    def _fits_into_memory(self) -> Self:
        needs = {
            "a batch of 8 images": (working_bytes(self), MOST_WORKING_BYTES),
            "the table of words": (table_bytes(self.architecture), MOST_TABLE_BYTES),
            "scores": (len(json.dumps(self.scores)), MOST_PUBLIC_BYTES),
        }
        for what, (needed, most) in needs.items():
            if needed > most:
                raise ValueError(f"{what} would take {needed} bytes, expected at most {most}")
        return self

    def public(self) -> dict[str, Any]:
        """Return what a client may know, JSON-ready."""
        hidden = {"recipe", "data", "versions", "files", "history"}
        return {**self.model_dump(mode="json", exclude=hidden), "sha256": self.files.get(WEIGHTS)}


def working_bytes(manifest: Manifest) -> int:
    """Estimate what a batch of 8 images takes beside the weights, in float32."""
    return 4 * _BATCH * max(_encoder_floats(manifest), _search_floats(manifest))


def _encoder_floats(manifest: Manifest) -> int:
    """Count what goes into and comes out of an image's largest layer."""
    spec = ENCODER_SHAPES[manifest.architecture.encoder]
    return spec.floats_per_pixel * manifest.image.size_px**2


def _search_floats(manifest: Manifest) -> int:
    """Count what a search keeps of an image: its regions, and for each beam words and attention.

    Of a clip there are the features of all frames too. The scores of all words are there twice,
    the attention of all steps three times while it is put in order.
    """
    about = manifest.architecture
    K, T = manifest.search.beam_width, manifest.search.max_words + 1
    V, H, D = about.words, about.hidden_width, feature_width(about)
    R, F = regions(about, manifest.image.size_px), about.frames_per_clip or 1
    read = F * (2 * R * D + 12 * H) if about.frames else 0
    R = F if about.frames == "lstm" else R
    return read + R * (2 * D + 3 * H) + K * (2 * V + 12 * H + T * (3 * (R + 1) + 12))


def table_bytes(architecture: Architecture) -> int:
    """Give the size of the table that an engine makes of embedding and LSTM, in float32."""
    return 4 * architecture.words * 5 * architecture.hidden_width


def _said(caption: str) -> str:
    caption.encode()  # half a character raises a ValueError
    if caption != " ".join(caption.split()):
        raise ValueError("expected words with a space between them")
    return caption


class Said(BaseModel):
    """What a network said about an image.

    Attributes:
        caption: the best caption, word for word.
        log_prob: its log-probability, in nats.
    """

    model_config = ConfigDict(extra="forbid")

    caption: Annotated[str, Field(max_length=10_000), AfterValidator(_said)]
    log_prob: float = Field(allow_inf_nan=False)


class Golden(Said):
    """What the network must say about the golden image in float32.

    Attributes:
        tolerance: how far, in nats, another CPU or a GPU may be from it in float32.
        int8: what it says with its encoder in int8, if it has one.
    """

    tolerance: float = Field(default=0.05, ge=0, le=1)
    int8: Said | None = None
