"""Recipes: TOML files that say everything about a training run. Unknown keys are refused."""

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from app.captioner.architecture import Architecture
from app.captioner.manifest import BoundedSearch, ImageGeometry, Name
from app.captioner.model.torch_checkpoint import TorchCheckpoint
from app.captioner.search import SearchOptions
from trainer.errors import RecipeError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_RENAMED = {"at_least": "min_count", "whole_image": "global_feature"}
"""Keys of recipes before 0.2.0."""


class VocabularyOptions(_Part):
    """Which words the network knows.

    Attributes:
        min_count: a word is known when the training captions hold it so often.
        max_words: longer training captions are truncated there and never taught to end.
        tokeniser: what takes captions apart; ``lower-alphanumeric`` is for English and compares
            with papers, ``unicode-words-1`` is for all languages.
        written: captions are ``words`` in small letters, or ``sentences`` with the capitals and
            the mark at the end that most training captions have.
    """

    min_count: int = Field(default=5, ge=1, validation_alias=AliasChoices("min_count", "at_least"))
    max_words: int = Field(default=20, ge=1)
    tokeniser: Literal["lower-alphanumeric", "unicode-words-1"] = "lower-alphanumeric"
    written: Literal["words", "sentences"] = "words"


Weight = Annotated[float, Field(gt=0, le=100)]

_KIND_DEFAULTS: dict[str, dict[str, Any]] = {
    "self_critical": {"learning_rate": 5e-5, "label_smoothing": 0.0, "schedule": "constant"},
    "average": {"epochs": 1},
}
_KINDS_OF = {
    "samples_per_image": "self_critical",
    "temperature": "self_critical",
    "cross_entropy_share": "self_critical",
    "starts_from": "self_critical",
    "guard_margin": "self_critical",
    "averaged_epochs": "average",
    "averaged_by": "average",
}


class Stage(_Part):
    """A part of training with its own rates; a run goes through its stages in order.

    Attributes:
        kind: ``cached`` trains the decoder on features computed once; ``fine_tune`` trains the
            encoder's last blocks too, on augmented images; ``self_critical`` raises the CIDEr-D of
            captions it draws itself; ``language`` trains the decoder on sentences without images;
            ``average`` takes no step, it tries the mean of earlier epochs' weights.
        epochs: passes over the training images.
        patience: epochs without a better dev score after which the stage ends early; 0 for never.
        batch_images: images of a step; each comes with its captions.
        learning_rate: peak rate of the decoder (Adam), 5e-5 by default in ``self_critical``. It
            warms up over `warmup_steps`.
        schedule: after the warm-up, ``cosine`` falls to zero along half a cosine (Loshchilov and
            Hutter 2017), ``constant`` stays, the default of ``self_critical``.
        encoder_learning_rate: peak rate of the encoder, ``fine_tune`` and ``self_critical`` only.
        unfrozen_blocks: how many of the encoder's last blocks learn, likewise. Their batch-norm
            statistics stay fixed. A ``self_critical`` stage with 0 works on cached features.
        warmup_steps: steps until the peak rate.
        label_smoothing: Szegedy et al. 2016, section 7; 0 by default in ``self_critical``.
        class_weight: weight in the loss of the cross-entropy towards the ImageNet classes that the
            encoder saw before training (Li and Hoiem 2016, "Learning without forgetting"); for a
            network with ``classes`` and stages that train the encoder.
        dropout: in place of the network's own.
        weight_decay: decoupled (AdamW).
        max_gradient_norm: gradients are clipped to this 2-norm.
        ema_decay: above 0, dev sees the exponential moving average of the weights with this decay
            per step, and so do the best checkpoint and the next stage.
        samples_per_image: captions drawn per image and step, ``self_critical`` only.
        temperature: of the distribution that they are drawn from, likewise.
        cross_entropy_share: share of the cross-entropy on a reference per image, likewise.
        starts_from: the ``best`` weights so far by dev CIDEr, or the ``last``, likewise.
        guard_margin: where dev CIDEr falls further than this below the best, likewise, the best
            weights come back and the rate is halved.
        averaged_epochs: how many epochs to average, ``average`` only.
        averaged_by: the ``best`` ones by dev CIDEr, the ``last`` ones, or the last ones of as many
            ``stages``, ``average`` only. The checkpoint a run started from counts as a stage.
    """

    kind: Literal["cached", "fine_tune", "self_critical", "language", "average"]
    epochs: int = Field(ge=1)
    patience: int = Field(default=0, ge=0)
    batch_images: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    encoder_learning_rate: float = Field(default=0.0, ge=0)
    unfrozen_blocks: int = Field(default=0, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    class_weight: float = Field(default=0.0, ge=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=5.0, gt=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    samples_per_image: int = Field(default=5, ge=2)
    temperature: float = Field(default=1.0, gt=0)
    cross_entropy_share: float = Field(default=0.1, ge=0, lt=1)
    starts_from: Literal["best", "last"] = "best"
    guard_margin: float = Field(default=0.03, gt=0)
    averaged_epochs: int = Field(default=3, ge=2)
    averaged_by: Literal["best", "last", "stages"] = "best"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {**_KIND_DEFAULTS.get(fields.get("kind", ""), {}), **fields}

    @model_validator(mode="after")
    def _encoder_rates_fit_the_kind(self) -> Self:
        tunes = self.encoder_learning_rate > 0 and self.unfrozen_blocks > 0
        rests = self.encoder_learning_rate == 0 and self.unfrozen_blocks == 0
        if self.kind == "fine_tune" and not tunes:
            raise ValueError("fine_tune needs encoder_learning_rate and unfrozen_blocks above 0")
        if self.kind == "self_critical" and not (tunes or rests):
            raise ValueError("give encoder_learning_rate and unfrozen_blocks together, or neither")
        if self.class_weight and not tunes:
            raise ValueError("class_weight belongs to stages that train the encoder: leave it out")
        if self.kind in {"cached", "language", "average"} and not rests:
            raise ValueError(
                f"{self.kind} trains no encoder: leave out its rate and unfrozen_blocks"
            )
        return self

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> Self:
        fields = type(self).model_fields
        for name, kind in _KINDS_OF.items():
            if self.kind != kind and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} belongs to {kind}, not to {self.kind}: leave it out")
        if self.kind == "average" and self.epochs != 1:
            raise ValueError("average takes one look, not epochs: leave them out")
        return self


class Network(_Part):
    """The architecture, but for what the data decides (the number of words)."""

    encoder: str
    features: Literal["grid", "vector"] = "grid"
    decoder: Literal["merge", "inject", "attention"] = "attention"
    embedding_width: int = 512
    hidden_width: int = 512
    global_feature: bool = Field(
        default=False,
        validation_alias=AliasChoices("global_feature", "whole_image"),  # its name until 0.2.0
    )
    tied_words: bool = False
    classes: bool = False
    frames: Literal["mean", "lstm"] | None = None
    frames_per_clip: int | None = None
    dropout: float = 0.5

    @property
    def clip_frames(self) -> int | None:
        """Say how many frames of a clip are read; None of a network that reads images."""
        return self.architecture(words=5).frames_per_clip

    def architecture(self, words: int) -> Architecture:
        """Complete the architecture with the number of word ids."""
        return Architecture(words=words, **self.model_dump())


class PartialRecipe(_Part):
    """A whole run, perhaps without the network: then it is that of a checkpoint to start from.

    Attributes:
        name: of the checkpoint.
        seed: of weights, order, dropout and augmentation.
        captions_per_image: captions of an image per epoch; of more, a random choice is taken.
        data_weights: how often an epoch sees each image of the first data directory with a split
            ``train``, of the second and so on; 1 each by default.
        dev_weights: share of each data directory with a split ``dev`` in the dev score that epochs
            are chosen by; alike by default.
    """

    name: Name
    seed: int = Field(default=1, ge=0)
    captions_per_image: int = Field(default=5, ge=1)
    data_weights: tuple[Weight, ...] = ()
    dev_weights: tuple[Weight, ...] = ()
    network: Network | None = None
    image: ImageGeometry | None = None
    vocabulary: VocabularyOptions = VocabularyOptions()
    search: BoundedSearch | None = None
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _architecture_is_possible(self) -> Self:
        if self.network is None or self.image is None:
            if (self.network, self.image) != (None, None):
                raise ValueError("give network and image together, or neither")
            return self
        self.network.architecture(words=5)
        if not self.network.classes and any(stage.class_weight for stage in self.stages):
            raise ValueError("class_weight needs network.classes: set it to true")
        return self


class Recipe(PartialRecipe):
    """A whole run, with its network."""

    network: Network
    image: ImageGeometry
    search: BoundedSearch = SearchOptions()


def completed(recipe: PartialRecipe, start: TorchCheckpoint | None) -> Recipe:
    """Take from a checkpoint what the recipe leaves open.

    Raises:
        RecipeError: there is neither a network nor a checkpoint.
    """
    fields = recipe.model_dump()
    if recipe.network is None:
        if start is None:
            raise RecipeError(
                f"recipe {recipe.name} has no network: give the checkpoint to start from with "
                "--initial, or a recipe with [network] and [image]"
            )
        about = start.manifest.architecture.model_dump(exclude={"words", "mean", "std"})
        fields |= {"network": about, "image": start.manifest.image}
    if recipe.search is None:
        fields["search"] = start.manifest.search if start else SearchOptions()
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"recipe {recipe.name}: {_explain(error)}") from None


def read_recipe(path: Path, *, changes: list[str] | None = None) -> PartialRecipe:
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
        kind = Recipe if "network" in fields or "image" in fields else PartialRecipe
        return kind.model_validate(fields)
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
        place[_RENAMED.get(last, last)] = _value(value)
    except (IndexError, AttributeError, TypeError):
        raise ValueError(f"{key!r} leads nowhere in this recipe") from None


def _value(text: str) -> Any:
    """Read a value in TOML; a shell takes the quotes of a text away, so what is none is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _explain(error: ValidationError) -> str:
    items = error.errors()
    own = [item for item in items if item["type"] != "too_short"]  # stages that were refused
    return "; ".join(_explain_one(item) for item in own) or "stages: expected one or more"


def _explain_one(item: ErrorDetails) -> str:
    place = ".".join(map(str, item["loc"]))
    if item["type"] != "extra_forbidden":
        return f"{place or 'recipe'}: {item['msg']}"
    *parents, key = map(str, item["loc"])
    known = [*_part(parents).model_fields]
    meant = nearest_key(key, known)
    hint = f"did you mean {'.'.join([*parents, meant])}" if meant else f"known: {', '.join(known)}"
    return f"{place} is no key of a recipe: {hint}"


def _part(parents: Sequence[str]) -> type[BaseModel]:
    """Give the part of a recipe that a key was looked for in."""
    parts: dict[str, type[BaseModel]] = {
        "network": Network,
        "image": ImageGeometry,
        "vocabulary": VocabularyOptions,
        "stages": Stage,
    }
    return parts.get(parents[0], Recipe) if parents else Recipe


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """Give the key that is most likely meant: by its letters, its first letters, or its words."""
    initials = {"".join(word[0] for word in name.split("_")): name for name in reversed(known)}
    if key in initials:
        return initials[key]
    alike = get_close_matches(key, known, n=1)
    words = [name for name in known if set(key.split("_")) & set(name.split("_"))]
    return next(iter([*alike, *words]), None)
