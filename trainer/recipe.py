"""Recipes: TOML files that say everything about a training run. Unknown keys are refused."""

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.captioner.beam import SearchOptions
from app.captioner.checkpoint import ImageGeometry
from app.captioner.network import Architecture
from trainer.errors import RecipeError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VocabularyOptions(_Part):
    """Which words the network knows.

    Attributes:
        at_least: a word is known when the training captions hold it so often.
        max_words: longer training captions are truncated there and never taught to end.
    """

    at_least: int = Field(default=5, ge=1)
    max_words: int = Field(default=20, ge=1)


class Stage(_Part):
    """A part of training with its own rates; a run goes through its stages in order.

    Attributes:
        kind: ``cached`` trains the decoder on features computed once; ``fine_tune`` trains the
            encoder's last blocks too, on augmented images.
        epochs: passes over the training images.
        batch_images: images of a step; each comes with its captions.
        learning_rate: peak rate of the decoder (Adam). It warms up over `warmup_steps`, then falls
            to zero along a half cosine (Loshchilov and Hutter 2017).
        encoder_learning_rate: peak rate of the encoder, ``fine_tune`` only.
        unfrozen_blocks: how many of the encoder's last blocks learn, ``fine_tune`` only. Their
            batch-norm statistics stay fixed.
        warmup_steps: steps until the peak rate.
        label_smoothing: Szegedy et al. 2016, section 7.
        weight_decay: decoupled (AdamW).
        max_gradient_norm: gradients are clipped to this 2-norm.
    """

    kind: Literal["cached", "fine_tune"]
    epochs: int = Field(ge=1)
    batch_images: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    encoder_learning_rate: float = Field(default=0.0, ge=0)
    unfrozen_blocks: int = Field(default=0, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=5.0, gt=0)

    @model_validator(mode="after")
    def _encoder_rates_fit_the_kind(self) -> Self:
        tunes = self.encoder_learning_rate > 0 and self.unfrozen_blocks > 0
        rests = self.encoder_learning_rate == 0 and self.unfrozen_blocks == 0
        if self.kind == "fine_tune" and not tunes:
            raise ValueError("fine_tune needs encoder_learning_rate and unfrozen_blocks above 0")
        if self.kind == "cached" and not rests:
            raise ValueError("cached trains no encoder: leave out its rate and unfrozen_blocks")
        return self


class Network(_Part):
    """The architecture, but for what the data decides (the number of words)."""

    encoder: str
    features: Literal["grid", "vector"] = "grid"
    decoder: Literal["merge", "inject", "attention"] = "attention"
    embedding_width: int = 512
    hidden_width: int = 512
    dropout: float = 0.5

    def architecture(self, words: int) -> Architecture:
        """Complete the architecture with the number of word ids."""
        return Architecture(words=words, **self.model_dump())


class Recipe(_Part):
    """A whole run.

    Attributes:
        name: of the checkpoint.
        seed: of weights, order, dropout and augmentation.
        captions_per_image: captions of an image per epoch; of more, a random choice is taken.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: int = Field(default=1, ge=0)
    captions_per_image: int = Field(default=5, ge=1)
    network: Network
    image: ImageGeometry
    vocabulary: VocabularyOptions = VocabularyOptions()
    search: SearchOptions = SearchOptions()
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _architecture_is_possible(self) -> Self:
        self.network.architecture(words=5)
        return self


def read_recipe(path: Path, *, changes: list[str] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: the TOML file.
        changes: ``key=value`` or ``stages.0.epochs=3``, values in TOML, applied on top.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, a value is out of range.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        for change in changes or []:
            _apply(fields, change)
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"recipe {path}: {_explain(error)}") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from None


def _apply(fields: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals:
        raise ValueError(f"expected key=value, got {change!r}")
    *parents, last = key.strip().split(".")
    place: Any = fields
    try:
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        place[last] = tomllib.loads(f"value = {value}")["value"]
    except (IndexError, AttributeError, TypeError):
        raise ValueError(f"{key!r} leads nowhere in this recipe") from None


def _explain(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'recipe'}: {item['msg']}" for item in error.errors()
    )
