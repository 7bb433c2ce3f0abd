"""What a network is, in numbers: enough to build one, and to bound its memory before that."""

import math
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from app.captioner.vocabulary import MOST_WORDS, SPECIALS

MOST_WIDE = 8192
"""Of embeddings and of the LSTM: several times what any captioner has."""
MOST_FRAMES = 32
"""Of a clip that a network reads: a graph has some operators for each."""
QUARTERS = 4
"""Of a frame that an LSTM reads: where in it something is, is told by them."""
_Mean = Annotated[float, Field(ge=-1000, le=1000)]
_Std = Annotated[float, Field(ge=1e-4, le=1000)]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LITE_MEAN = (127 / 255,) * 3
LITE_STD = (128 / 255,) * 3
"""What the pre-trained EfficientNet-Lites take: ``(pixel - 127) / 128``."""
IMAGENET_CLASSES = 1000


class EncoderShape(NamedTuple):
    """What comes out of an encoder, and what it takes on the way.

    Attributes:
        grid_width: D of a region of the last convolution.
        vector_width: D of the penultimate layer.
        stride_px: from region to region.
        floats_per_pixel: into and out of its largest layer, for each pixel of an image.
    """

    grid_width: int
    vector_width: int
    stride_px: int
    floats_per_pixel: int


ENCODER_SHAPES: Final = {
    "vgg16": EncoderShape(512, 4096, 16, 128),
    "resnet50": EncoderShape(2048, 2048, 32, 32),
    "resnet101": EncoderShape(2048, 2048, 32, 32),
    "mobilenet_v2": EncoderShape(1280, 1280, 32, 48),
    "mobilenet_v3_large": EncoderShape(960, 1280, 32, 32),
    "efficientnet_b0": EncoderShape(1280, 1280, 32, 48),
    "efficientnet_lite0": EncoderShape(1280, 1280, 32, 48),
    "efficientnet_lite1": EncoderShape(1280, 1280, 32, 48),
    "efficientnet_lite2": EncoderShape(1280, 1280, 32, 48),
    "convnext_tiny": EncoderShape(768, 768, 32, 48),
}

_CLASSES_OF_THE_MEAN = ENCODER_SHAPES.keys() - {"vgg16", "mobilenet_v3_large", "convnext_tiny"}
"""Encoders that score their classes by the mean of the regions, with nothing between."""


class Architecture(BaseModel):
    """What the network is: enough to build it with random weights.

    Attributes:
        encoder: a name of `ENCODER_SHAPES`.
        features: ``grid`` keeps the regions of the last convolution, ``vector`` is the
            penultimate layer (VGG16's fc2).
        decoder: ``merge``, ``inject`` or ``attention``.
        words: V, the ids of the vocabulary.
        embedding_width: E.
        hidden_width: width of the LSTM.
        global_feature: the mean of the features has its say on each word too, ``attention`` only
            (``merge`` and ``inject`` see nothing else).
        tied_words: words are scored by their embeddings, ``attention`` only (Press and Wolf 2017,
            "Using the output embedding to improve language models").
        classes: the classifier of the encoder's 1000 ImageNet classes is kept, ``grid`` only.
        frames: what makes one image of the frames of a clip, see `app.captioner.model.frames`:
            ``mean``, or ``lstm``, which reads them in their order. None is a network of photos.
        frames_per_clip: F, how many frames it was trained to read; 8 by default, None of photos.
        dropout: probability, on embeddings, features and LSTM output; never on recurrent state.
        mean: per channel, of pixels in 0..1; by default what the pre-trained encoder takes.
        std: per channel, of pixels in 0..1, likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str
    features: Literal["grid", "vector"]
    decoder: Literal["merge", "inject", "attention"]
    words: int = Field(gt=4, le=MOST_WORDS + len(SPECIALS))
    embedding_width: int = Field(default=512, gt=0, le=MOST_WIDE)
    hidden_width: int = Field(default=512, gt=0, le=MOST_WIDE)
    global_feature: bool = Field(
        default=False,
        validation_alias=AliasChoices("global_feature", "whole_image"),  # its name until 0.2.0
    )
    tied_words: bool = False
    classes: bool = False
    frames: Literal["mean", "lstm"] | None = None
    frames_per_clip: int | None = Field(default=None, ge=2, le=MOST_FRAMES)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    mean: tuple[_Mean, _Mean, _Mean] = IMAGENET_MEAN
    std: tuple[_Std, _Std, _Std] = IMAGENET_STD

    @model_validator(mode="before")
    @classmethod
    def _pixels_of_the_encoder(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and str(fields.get("encoder")).startswith("efficientnet_lite"):
            return {"mean": LITE_MEAN, "std": LITE_STD, **fields}
        return fields

    @model_validator(mode="before")
    @classmethod
    def _frames_of_a_clip(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("frames") and not fields.get("frames_per_clip"):
            return {**fields, "frames_per_clip": 8}
        return fields

    @model_validator(mode="after")
    def _known_and_compatible(self) -> Self:
        if self.encoder not in ENCODER_SHAPES:
            raise ValueError(f"encoder {self.encoder!r} is none of {', '.join(ENCODER_SHAPES)}")
        if self.decoder == "attention" and self.features != "grid":
            raise ValueError("decoder 'attention' looks at regions: set features to 'grid'")
        if self.global_feature and self.decoder != "attention":
            raise ValueError("global_feature is an option of decoder 'attention': leave it out")
        if self.tied_words and self.decoder != "attention":
            raise ValueError("tied_words is an option of decoder 'attention': leave it out")
        if self.tied_words and self.embedding_width != self.hidden_width:
            raise ValueError("tied_words expects embedding_width and hidden_width alike")
        if self.classes and self.features != "grid":
            raise ValueError("classes are told from regions: set features to 'grid'")
        if self.classes and self.encoder not in _CLASSES_OF_THE_MEAN:
            names = ", ".join(sorted(_CLASSES_OF_THE_MEAN))
            raise ValueError(f"classes can be kept of {names}, not of {self.encoder!r}")
        if self.frames_per_clip and not self.frames:
            raise ValueError("frames_per_clip is of a network with frames: set frames too")
        if self.classes and self.frames:
            raise ValueError("classes are told of photos: leave out classes, or frames")
        return self


def regions(about: Architecture, size_px: int) -> int:
    """Count R, the regions that the encoder gives of a square of this side."""
    if about.features == "vector":
        return 1
    if about.frames == "lstm":
        return QUARTERS
    return math.ceil(size_px / ENCODER_SHAPES[about.encoder].stride_px) ** 2


def feature_width(about: Architecture) -> int:
    """Give D, the width of the encoder's features."""
    shape = ENCODER_SHAPES[about.encoder]
    return shape.grid_width if about.features == "grid" else shape.vector_width


def parts_by_region(about: Architecture) -> int:
    """Count what a decoder keeps of an image by region: attention's values and keys.

    They come first. Of the frames of a shot they are put side by side, and all else is averaged.
    """
    return 2 if about.decoder == "attention" else 0


def attention_rows(about: Architecture) -> int | None:
    """Say in how many rows the regions lie; one, if they are frames; None: they are a square."""
    return 1 if about.frames == "lstm" else None


def summary_part(about: Architecture) -> int | None:
    """Say which of what a decoder keeps of an image sums it up; None: the state it starts from.

    It is what each word is chosen by: the global feature, or the regions, or merge's vector.
    """
    if about.decoder == "inject":
        return None
    return 3 if about.global_feature else 0
