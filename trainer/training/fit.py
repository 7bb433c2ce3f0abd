"""A recipe and a data directory -> a run directory, see `trainer.training.run_directory`."""

from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

from app.captioner.model.network import Network
from trainer.data.flickr8k import check_counts, split_names
from trainer.errors import TrainerError
from trainer.training.context import TrainingContext
from trainer.training.distributed import Ranks, process_group
from trainer.training.features import AugmentedFeatures
from trainer.training.initial_weights import initial_classifier, initial_network
from trainer.training.recipe import Recipe
from trainer.training.run_directory import BEST, Progress, RunDirectory
from trainer.training.stages import run_stage
from trainer.training.training_data import TrainingData, read_data


def fit(
    recipe: Recipe,
    data_directory: Path,
    run: Path,
    *,
    cache: Path,
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
        recipe: what to train.
        data_directory: in Flickr8k's layout, with the splits ``train`` and ``dev``.
        run: new, or holding an unfinished run of this recipe.
        cache: for decoded images and features.
        initial: a checkpoint directory of the same architecture and vocabulary, to start a new run
            from; its score on dev is the first to beat. A run that goes on has its own weights.
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
        _refuse_idle_ranks(recipe, ranks)
        ranks.once(directory.claim, recipe)
        ranks.once(_log_findings, data_directory)
        torch.manual_seed(recipe.seed)
        with ranks.leader_first():
            data = read_data(recipe, data_directory, cache)
        random = random_encoder or not ranks.leads
        network = _network(recipe, data, initial, encoder_weights, random=random)
        progress = ranks.once(directory.resume, network)
        network.load_state_dict(ranks.once(network.state_dict))
        network.to(ranks.device).to(memory_format=torch.channels_last)
        context = TrainingContext(recipe, network, data, directory, ranks, precision)
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
    initial: Path | None,
    encoder_weights: Path | None,
    *,
    random: bool,
) -> Network:
    architecture = recipe.network.architecture(len(data.vocabulary))
    if initial:
        return initial_network(initial, architecture, data.vocabulary, recipe.image)
    classifier = initial_classifier(architecture.encoder, encoder_weights, random=random)
    return Network(architecture, classifier)


def _score_initial(context: TrainingContext, progress: Progress, initial: Path) -> None:
    """Score the checkpoint a run starts from, so that the run can only improve on it."""
    scores = context.dev_scores(AugmentedFeatures(context.data, context.network.encoder))
    row = {"stage": 0, "kind": "initial", "epoch": 0, "checkpoint": initial.name}
    context.record_epoch(progress, row, scores)
    context.save(progress)
