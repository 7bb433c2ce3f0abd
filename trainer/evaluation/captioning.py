"""A checkpoint captions a split the way the service does, and the captions are scored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from app.captioner.captions import Candidates, Caption
from app.captioner.errors import ImageError
from app.captioner.image.decode import Pixels
from app.captioner.pipeline import Captioner
from app.captioner.presentation import Presentation, told
from app.captioner.vocabulary import TOKENISER
from trainer.data.clips import frame_files
from trainer.data.flickr8k import TOKEN_FILE, Example, Split, is_clip, list_path, split_names
from trainer.data.pixels import MAX_PIXELS
from trainer.data.shards import Member
from trainer.data.text_files import read_captions, read_list
from trainer.errors import DataError
from trainer.scoring.faithfulness import faithfulness
from trainer.scoring.scores import Scores, score
from trainer.scoring.things import things

BATCH_IMAGES = 16
AS_IT_IS = Presentation()


def evaluate(
    captioner: Captioner, split: Split, *, training: Sequence[str] | None = None
) -> tuple[Scores, dict[str, str]]:
    """Caption every image of a split the way the service does, and score the best captions.

    Args:
        captioner: the checkpoint, loaded.
        split: images and references.
        training: captions of the training split; where given, those copied from it are counted.

    Returns:
        The scores, and image -> caption.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    candidates = caption_texts(caption_split(captioner, split))
    name = captioner.vocabulary.tokeniser
    return score_split(candidates, split, training=training, tokeniser_name=name), candidates


def caption_split(
    captioner: Captioner, split: Split, how: Presentation = AS_IT_IS
) -> dict[str, Caption]:
    """Give the best caption of every image of a split, as it is told.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    return {image: told(found, how)[0] for image, found in _candidates(captioner, split)}


def caption_texts(captions: Mapping[str, Caption]) -> dict[str, str]:
    """Take the words of captions."""
    return {image: caption.text for image, caption in captions.items()}


def score_split(
    candidates: Mapping[str, str],
    split: Split,
    *,
    training: Sequence[str] | None,
    tokeniser_name: str = TOKENISER,
) -> Scores:
    """Score captions of all images of a split, and whether they say what is there."""
    references = references_of(split)
    scores = score(candidates, references, training=training, tokeniser_name=tokeniser_name)
    return replace(scores, faithfulness=faithfulness(candidates, references))


def references_of(split: Split) -> dict[str, tuple[str, ...]]:
    """Give the captions people wrote for each image."""
    return {example.image: example.captions for example in split.examples}


def confidence_and_right(
    captions: Mapping[str, Caption], references: Mapping[str, Sequence[str]]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]] | None:
    """Give each caption's confidence, and whether it is right; None where a checkpoint has none."""
    confidences = [caption.confidence for caption in captions.values()]
    if not confidences or None in confidences:
        return None
    table = things()
    right = [table.is_right(each.text, references[image]) for image, each in captions.items()]
    return np.array(confidences, np.float64), np.array(right)


def _candidates(captioner: Captioner, split: Split) -> Iterator[tuple[str, Candidates]]:
    examples = split.examples
    starts = range(0, len(examples), BATCH_IMAGES)
    for start in tqdm(starts, f"captions {split.name}", unit="batch"):
        batch = examples[start : start + BATCH_IMAGES]
        found = captioner.caption([_read(captioner, example) for example in batch]).captions
        for example, candidates in zip(batch, found, strict=True):
            yield example.image, candidates


def _read(captioner: Captioner, example: Example) -> Pixels:
    if isinstance(example.path, Path) and is_clip(example):
        return captioner.shot([_square(captioner, path) for path in frame_files(example.path)])
    return _square(captioner, example.path)


def _square(captioner: Captioner, path: Path | Member) -> Pixels:
    try:
        return captioner.read(path.read_bytes(), max_pixels=MAX_PIXELS)
    except ImageError as error:
        raise DataError(f"{path} cannot be used: {error}") from None


def training_captions(data: Path, *, evaluated: str) -> list[str] | None:
    """Read what training was told, if the directory has the list and it is not what is evaluated.

    The training images need not be there: whoever scores held-back images has no use for them.
    """
    if evaluated == "train" or "train" not in split_names(data):
        return None
    captions = read_captions(data / TOKEN_FILE)
    return [text for name in read_list(list_path(data, "train")) for text in captions.get(name, ())]
