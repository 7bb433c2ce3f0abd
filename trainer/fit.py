"""A recipe and a data directory -> a run directory with the best checkpoint of the run.

    <run>/recipe.json    what was asked for, changes applied
    <run>/state.pt       everything needed to go on after the last finished epoch
    <run>/best/          checkpoint of the epoch with the highest free-running dev CIDEr
    <run>/log.jsonl      one line per epoch
    <run>/tensorboard/   the same as curves

B images of a step, K captions of an image, T steps, R regions, D feature width, V words
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from app.captioner import checkpoint
from app.captioner.checkpoint import Checkpoint, Manifest
from app.captioner.network import Network
from app.captioner.pipeline import Captioner
from app.captioner.vocabulary import PAD, Vocabulary, tokenise
from trainer.batches import Captions, augment, targets
from trainer.data import Split, check_counts, data_sha256, read_split
from trainer.devices import available_device
from trainer.encoders import initial_classifier
from trainer.errors import TrainerError
from trainer.origin import source_commit, versions
from trainer.prepare import encode, encoded_features, fitted_images
from trainer.recipe import Recipe, Stage, read_recipe
from trainer.scoring import Scores, score

STATE = "state.pt"
BEST = "best"
DEV_BATCH = 50
FEW_DISTINCT_PERCENT = 10


@dataclass
class Progress:
    """How far a run is: the only thing that changes besides the weights."""

    stage: int = 0
    epoch: int = 0
    best_cider: float = -1.0
    optimiser: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Data:
    """What a run reads: splits, their images as arrays, training captions as ids."""

    train: Split
    dev: Split
    train_images: npt.NDArray[np.uint8]
    dev_images: npt.NDArray[np.uint8]
    captions: Captions
    vocabulary: Vocabulary
    cache: Path


class _Output(NamedTuple):
    run: Path
    writer: SummaryWriter


FeaturesOf = Callable[[Tensor, Generator], Tensor]


def fit(
    recipe: Recipe,
    data_directory: Path,
    run: Path,
    *,
    cache: Path,
    encoder_weights: Path | None = None,
    random_encoder: bool = False,
    device: str = "cpu",
) -> Path:
    """Run a recipe's stages, or go on where a run of the same recipe was stopped.

    A run that was killed and resumed gives the same weights as one that was not, on the same
    machine and library versions: every epoch draws its random numbers from seed, stage and epoch.

    Args:
        recipe: what to train.
        data_directory: in Flickr8k's layout, with the splits ``train`` and ``dev``.
        run: new, or holding an unfinished run of this recipe.
        cache: for decoded images and features.
        encoder_weights: a state dict of the torchvision classifier; torchvision's own download
            without it.
        random_encoder: start from random weights, download nothing.
        device: a torch device string.

    Returns:
        The directory of the best checkpoint.

    Raises:
        TrainerError: recipe, data, weights or run directory do not fit.
    """
    _claim(run, recipe)
    torch.manual_seed(recipe.seed)
    data = _read_data(recipe, data_directory, cache)
    architecture = recipe.network.architecture(len(data.vocabulary))
    classifier = initial_classifier(architecture.encoder, encoder_weights, random=random_encoder)
    network = Network(architecture, classifier).to(device)
    network.to(memory_format=torch.channels_last)
    progress = _resume(run, network)
    writer = SummaryWriter(run / "tensorboard")
    try:
        for index in range(progress.stage, len(recipe.stages)):
            _Stage(recipe, index, network, data, _Output(run, writer)).train(progress)
            progress.stage, progress.epoch, progress.optimiser = index + 1, 0, None
    finally:
        writer.close()
    return run / BEST


class _Stage:
    """One stage of a run: its rates, its source of features, its epochs."""

    def __init__(
        self, recipe: Recipe, index: int, network: Network, data: Data, output: "_Output"
    ) -> None:
        self.recipe, self.index, self.network = recipe, index, network
        self.data, self.output = data, output
        self.stage: Stage = recipe.stages[index]
        self.device = network.encoder.mean.device
        groups = self._trainable(network)
        self.rates = [group["lr"] for group in groups]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=self.stage.weight_decay)
        self.features_of, self.dev_features = self._sources()

    def train(self, progress: Progress) -> None:
        """Go through the epochs that are left."""
        if progress.optimiser:
            self.optimiser.load_state_dict(progress.optimiser)
        for epoch in range(progress.epoch, self.stage.epochs):
            started = time.monotonic()
            loss = self._train_epoch(epoch)
            scores = self._dev_scores()
            row = self._row(epoch, loss, scores, time.monotonic() - started)
            self._keep(progress, row, scores)

    def _trainable(self, network: Network) -> list[dict[str, Any]]:
        network.requires_grad_(requires_grad=False)
        network.decoder.requires_grad_(requires_grad=True)
        groups: list[dict[str, Any]] = [
            {"params": list(network.decoder.parameters()), "lr": self.stage.learning_rate}
        ]
        if self.stage.kind == "fine_tune":
            blocks = network.encoder.blocks[-self.stage.unfrozen_blocks :]
            parts = nn.ModuleList([blocks, network.encoder.head])
            parts.requires_grad_(requires_grad=True)
            groups.append(
                {"params": list(parts.parameters()), "lr": self.stage.encoder_learning_rate}
            )
        return groups

    def _sources(self) -> tuple[FeaturesOf, Callable[[], Iterator[Tensor]]]:
        if self.stage.kind == "fine_tune":
            return self._encode_augmented, lambda: self._encoded(self.data.dev_images)
        data, encoder = self.data, self.network.encoder
        train = encoded_features(data.train_images, encoder, data.train, data.cache)
        dev = encoded_features(data.dev_images, encoder, data.dev, data.cache)

        def cached(indices_B: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
            return torch.from_numpy(train[indices_B.numpy()]).to(self.device).float()

        def dev_cached() -> Iterator[Tensor]:
            for start in range(0, len(dev), DEV_BATCH):
                block = np.array(dev[start : start + DEV_BATCH])
                yield torch.from_numpy(block).to(self.device).float()

        return cached, dev_cached

    def _encode_augmented(self, indices_B: Tensor, generator: Generator) -> Tensor:
        images = self.data.train_images
        mirrorable = self.data.captions.mirrorable_N
        augmented = [
            augment(
                torch.from_numpy(images[index].copy()),
                mirrorable=bool(mirrorable[index]),
                generator=generator,
            )
            for index in indices_B.tolist()
        ]
        features: Tensor = self.network.encoder(torch.stack(augmented).to(self.device))
        return features

    def _encoded(self, images: npt.NDArray[np.uint8]) -> Iterator[Tensor]:
        for start in range(0, len(images), DEV_BATCH):
            yield encode(self.network.encoder, images[start : start + DEV_BATCH])

    def _train_epoch(self, epoch: int) -> float:
        """Train one epoch and return the mean loss per step, in nats."""
        seed = (self.recipe.seed * 1009 + self.index) * 1009 + epoch
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        captions, per_image = self.data.captions, self.recipe.captions_per_image
        steps = captions.steps(self.stage.batch_images)
        batches = captions.batches(self.stage.batch_images, per_image, generator)
        self.network.train()
        self.network.encoder.eval()  # batch-norm statistics stay those of ImageNet
        losses = []
        title = f"stage {self.index + 1} epoch {epoch + 1}"
        for step, (indices_B, words_BKT) in enumerate(
            tqdm(batches, title, total=steps, unit="step")
        ):
            self._set_rates(epoch * steps + step, self.stage.epochs * steps)
            features_BRD = self.features_of(indices_B, generator)
            losses.append(self._train_step(features_BRD, words_BKT.to(self.device)))
        return sum(losses) / len(losses)

    def _train_step(self, features_BRD: Tensor, words_BKT: Tensor) -> float:
        logits_BKTV, _ = self.network.decoder(features_BRD, words_BKT[..., :-1])
        loss = F.cross_entropy(
            logits_BKTV.flatten(0, 2),
            targets(words_BKT).flatten(),
            ignore_index=PAD,
            label_smoothing=self.stage.label_smoothing,
        )
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.stage.max_gradient_norm)
        self.optimiser.step()
        return loss.item()

    def _set_rates(self, step: int, steps: int) -> None:
        share = rate_share(step, steps, self.stage.warmup_steps)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    def _dev_scores(self) -> Scores:
        captioner = Captioner(
            _unpublished(self.recipe, self.network, self.data), device=str(self.device)
        )
        said = [
            candidates[0].text
            for features_BRD in self.dev_features()
            for candidates in captioner.caption_features(features_BRD)
        ]
        examples = self.data.dev.examples
        candidates = {item.image: text for item, text in zip(examples, said, strict=True)}
        return score(candidates, {item.image: item.captions for item in examples})

    def _row(self, epoch: int, loss: float, scores: Scores, seconds: float) -> dict[str, Any]:
        return {
            "stage": self.index,
            "kind": self.stage.kind,
            "epoch": epoch,
            "train_loss": round(loss, 4),
            "dev_cider": round(scores.cider.value, 4),
            "dev_bleu_4": round(scores.bleu_4.value, 4),
            "dev_distinct_captions": scores.habits.distinct_captions,
            "seconds": round(seconds, 1),
        }

    def _keep(self, progress: Progress, row: dict[str, Any], scores: Scores) -> None:
        """Write down the epoch: best checkpoint first, state last, so that a kill loses nothing."""
        progress.history.append(row)
        progress.epoch = row["epoch"] + 1
        progress.optimiser = self.optimiser.state_dict()
        if scores.cider.value > progress.best_cider:
            progress.best_cider = scores.cider.value
            unpublished = _unpublished(self.recipe, self.network, self.data, progress.history)
            _replace_best(self.output.run, unpublished)
        _save_state(self.output.run, self.network, progress)
        (self.output.run / "log.jsonl").write_text(
            "".join(json.dumps(entry) + "\n" for entry in progress.history)
        )
        for name in ("train_loss", "dev_cider", "dev_bleu_4"):
            self.output.writer.add_scalar(name, row[name], len(progress.history))
        tqdm.write(json.dumps(row))
        if scores.habits.distinct_captions * 100 < scores.images * FEW_DISTINCT_PERCENT:
            tqdm.write(f"warning: only {scores.habits.distinct_captions} different dev captions")


def rate_share(step: int, steps: int, warmup_steps: int) -> float:
    """Return the share of the peak rate at a step: a linear warm-up, then half a cosine to zero."""
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _claim(run: Path, recipe: Recipe) -> None:
    """Make the run directory, or make sure that it holds a run of the same recipe."""
    path = run / "recipe.json"
    asked = recipe.model_dump(mode="json")
    if path.exists():
        if json.loads(path.read_text()) != asked:
            raise TrainerError(f"{run} holds a run of another recipe: name another directory")
        return
    run.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked, indent=2) + "\n")


def _read_data(recipe: Recipe, directory: Path, cache: Path) -> Data:
    for finding in check_counts(directory):
        tqdm.write(f"note: {finding}")
    train, dev = read_split(directory, "train"), read_split(directory, "dev")
    tokens = (tokenise(text) for example in train.examples for text in example.captions)
    vocabulary = Vocabulary.build(tokens, at_least=recipe.vocabulary.at_least)
    if not vocabulary.words:
        raise TrainerError(
            f"no word occurs {recipe.vocabulary.at_least} times in {directory}: lower "
            "vocabulary.at_least or add captions"
        )
    return Data(
        train,
        dev,
        fitted_images(train, recipe.image, cache),
        fitted_images(dev, recipe.image, cache),
        Captions.of(train, vocabulary, recipe.vocabulary),
        vocabulary,
        cache,
    )


def _unpublished(
    recipe: Recipe, network: Network, data: Data, history: list[dict[str, Any]] | None = None
) -> Checkpoint:
    manifest = Manifest(
        name=recipe.name,
        version="0",
        architecture=network.architecture,
        image=recipe.image,
        search=recipe.search,
        recipe=recipe.model_dump(mode="json"),
        data={split.name: _about(split) for split in (data.train, data.dev)},
        history=history or [],
        versions=versions(),
        source_commit=source_commit(),
    )
    return Checkpoint(network, data.vocabulary, manifest)


def _about(split: Split) -> dict[str, Any]:
    captions = sum(len(example.captions) for example in split.examples)
    return {"images": len(split.examples), "captions": captions, "sha256": data_sha256(split)}


def _replace_best(run: Path, unpublished: Checkpoint) -> None:
    fresh, best = run / "best.unfinished", run / BEST
    shutil.rmtree(fresh, ignore_errors=True)
    checkpoint.save(fresh, unpublished)
    shutil.rmtree(best, ignore_errors=True)
    fresh.rename(best)


def _save_state(run: Path, network: Network, progress: Progress) -> None:
    unfinished = run / "state.unfinished"
    torch.save({"network": network.state_dict(), "progress": vars(progress)}, unfinished)
    unfinished.rename(run / STATE)


def _resume(run: Path, network: Network) -> Progress:
    path = run / STATE
    if not path.exists():
        return Progress()
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    return Progress(**state["progress"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fit``."""
    parser.add_argument("recipe", type=Path, help="TOML file, see trainer/recipes")
    parser.add_argument("--data", type=Path, required=True, help="directory in Flickr8k's layout")
    parser.add_argument("--run", type=Path, required=True, help="new directory, or one to resume")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where arrays go")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--encoder-weights", type=Path, help="safetensors file of the classifier")
    parser.add_argument("--random-encoder", action="store_true", help="start from random weights")
    parser.add_argument("--device", default=available_device())


def run(args: argparse.Namespace) -> int:
    """Train, and say where the best checkpoint is."""
    best = fit(
        read_recipe(args.recipe, changes=args.set),
        args.data,
        args.run,
        cache=args.cache,
        encoder_weights=args.encoder_weights,
        random_encoder=args.random_encoder,
        device=args.device,
    )
    print(best)
    return 0
