"""A recipe and a data directory -> a run directory, see `trainer.training.run_directory`."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from app.captioner.architecture import IMAGENET_CLASSES
from app.captioner.model import torch_checkpoint
from app.captioner.model.network import Encoder, Network
from app.captioner.model.torch_checkpoint import TorchCheckpoint
from trainer.data.arrays import class_probabilities
from trainer.data.flickr8k import check_counts, split_names
from trainer.errors import TrainerError
from trainer.training.context import TrainingContext
from trainer.training.distributed import Ranks, process_group
from trainer.training.features import AugmentedFeatures
from trainer.training.initial_weights import initial_classifier, initial_network
from trainer.training.recipe import PartialRecipe, Recipe, completed
from trainer.training.run_directory import BEST, Progress, RunDirectory
from trainer.training.stages import run_stage
from trainer.training.training_data import TrainingData, read_data


def fit(
    asked: PartialRecipe,
    data_directories: Sequence[Path],
    run: Path,
    *,
    cache: Path,
    sentences: Path | None = None,
    initial: Path | None = None,
    encoder_weights: Path | None = None,
    random_encoder: bool = False,
    device: str = "cpu",
    precision: str = "float32",
) -> Path:
    """Run a recipe's stages, or go on where a run of the same recipe was stopped.

    A run that was killed and resumed gives the same weights as one that was not, on the same
    machine and library versions: every epoch draws its random numbers from seed, stage and epoch.
    Under ``torchrun`` each rank takes its share of every batch; the recipe means the same.

    Args:
        asked: what to train; one without a network takes that of ``initial``.
        data_directories: in Flickr8k's layout, with the splits ``train`` and ``dev``; of several
            each has one of them or both.
        run: new, or holding an unfinished run of this recipe.
        cache: for decoded images and features.
        sentences: text file with a sentence per line, for stages of the kind ``language``.
        initial: a checkpoint directory of the same architecture, to start a new run from; its
            score on dev is the first to beat. It keeps its words, and words of the data that it
            lacks are added. A run that goes on has its own weights.
        encoder_weights: a state dict of the torchvision classifier, or a checkpoint directory to
            take the encoder of; torchvision's own download without it.
        random_encoder: start from random weights, download nothing.
        device: a torch device string.
        precision: ``bfloat16`` computes the steps in it; weights and optimiser stay in float32.

    Returns:
        The directory of the best checkpoint.

    Raises:
        TrainerError: recipe, data, weights or run directory do not fit.
    """
    directory = RunDirectory(run)
    with process_group(device) as ranks, closing(directory):
        start = torch_checkpoint.load(initial) if initial else None
        recipe = completed(asked, start)
        _refuse_idle_ranks(recipe, ranks)
        ranks.once(directory.claim, recipe)
        for each in data_directories:
            ranks.once(_log_findings, each)
        torch.manual_seed(recipe.seed)
        with ranks.leader_first():
            data = read_data(
                recipe,
                data_directories,
                cache,
                sentences=sentences,
                known=start.vocabulary if start else None,
            )
        ranks.once(directory.claim_data, data.identity)
        random = random_encoder or not ranks.leads
        network = _network(recipe, data, start, encoder_weights, random=random)
        known = ranks.once(
            _class_probabilities, recipe, data, encoder_weights, random=random_encoder
        )
        progress = ranks.once(directory.resume, network)
        network.load_state_dict(ranks.once(network.state_dict))
        network.to(ranks.device).to(memory_format=torch.channels_last)
        context = TrainingContext(recipe, network, data, directory, ranks, precision, known)
        if initial and not progress.history:
            _score_initial(context, progress, initial)
        while progress.stage < len(recipe.stages):
            run_stage(context, progress)
    return run / BEST


def _refuse_idle_ranks(recipe: Recipe, ranks: Ranks) -> None:
    for index, stage in enumerate(recipe.stages):
        if stage.kind != "average" and stage.batch_images < ranks.count:
            raise TrainerError(
                f"stages.{index} takes {stage.batch_images} images a step, expected one or more "
                f"for each of {ranks.count} ranks: raise its batch_images, or start fewer ranks"
            )


def _log_findings(data_directory: Path) -> None:
    for finding in check_counts(data_directory) if split_names(data_directory) else ():
        tqdm.write(f"note: {finding}")


def _network(
    recipe: Recipe,
    data: TrainingData,
    start: TorchCheckpoint | None,
    encoder_weights: Path | None,
    *,
    random: bool,
) -> Network:
    architecture = recipe.network.architecture(len(data.vocabulary))
    if start:
        return initial_network(start, architecture, data.vocabulary, recipe.image)
    classifier = initial_classifier(architecture.encoder, encoder_weights, random=random)
    return Network(architecture, classifier)


def _class_probabilities(
    recipe: Recipe, data: TrainingData, encoder_weights: Path | None, *, random: bool
) -> npt.NDArray[np.float16]:
    """Ask the encoder as it comes, before any training here, what it sees in training images."""
    if not any(stage.class_weight for stage in recipe.stages):
        return np.empty((0, IMAGENET_CLASSES), np.float16)
    architecture = recipe.network.architecture(len(data.vocabulary))
    classifier = initial_classifier(architecture.encoder, encoder_weights, random=random)
    encoder = Encoder(architecture, classifier)
    return class_probabilities(data.train_images, encoder, data.train, data.cache)


def _score_initial(context: TrainingContext, progress: Progress, initial: Path) -> None:
    """Score the checkpoint a run starts from, so that the run can only improve on it."""
    scores = context.dev_scores(AugmentedFeatures(context.data, context.network.encoder))
    row = {"stage": 0, "kind": "initial", "epoch": 0, "checkpoint": initial.name}
    context.record_epoch(progress, row, scores)
    context.save(progress)
