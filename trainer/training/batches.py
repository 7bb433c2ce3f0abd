"""Captions of a split as id tensors, and the order of the images of an epoch.

N images, K captions of an image, T steps, B images of a step
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from app.captioner.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from trainer.data.flickr8k import Split
from trainer.training.recipe import VocabularyOptions

SIDE_WORDS = frozenset({"left", "right"})
"""An image whose captions hold one of these words is never mirrored."""

_BATCHES_SORTED_TOGETHER = 16


@dataclass(frozen=True)
class Captions:
    """All captions of a split.

    Attributes:
        ids: per image, per caption: word ids, EOS where it was not truncated.
        mirrorable_N: bool, whether the image may be mirrored.
    """

    ids: tuple[tuple[tuple[int, ...], ...], ...]
    mirrorable_N: Tensor

    @classmethod
    def of(cls, split: Split, vocabulary: Vocabulary, options: VocabularyOptions) -> "Captions":
        """Tokenise and encode a split."""
        tokens = [
            [vocabulary.tokenise(text) for text in example.captions] for example in split.examples
        ]
        ids = tuple(
            tuple(_ids(words, vocabulary, options.max_words) for words in captions)
            for captions in tokens
        )
        mirrorable = [
            all(SIDE_WORDS.isdisjoint(words) for words in captions) for captions in tokens
        ]
        return cls(ids, torch.tensor(mirrorable))

    def batches(
        self, batch_images: int, captions_per_image: int, generator: Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go once through the images, in an order that puts captions of like length together.

        Yields:
            ``indices_B`` of the images, and ``words_BKT``: BOS, words, EOS, then PAD.
        """
        chosen = [_choose(captions, captions_per_image, generator) for captions in self.ids]
        lengths = torch.tensor([max(map(len, captions)) for captions in chosen])
        for indices_B in _length_ordered(lengths, batch_images, generator):
            captions = [chosen[index] for index in indices_B.tolist()]
            yield indices_B, _padded(captions, captions_per_image)

    def steps(self, batch_images: int) -> int:
        """Count the steps of an epoch."""
        return -(-len(self.ids) // batch_images)


def targets(words_BKT: Tensor) -> Tensor:
    """Return what should be said after each word but the last: PAD where nothing is taught.

    UNK is not taught, since it is never said.
    """
    after = words_BKT[..., 1:]
    return after.masked_fill(after == UNK, PAD)


def _ids(words: list[str], vocabulary: Vocabulary, max_words: int) -> tuple[int, ...]:
    if len(words) > max_words:
        return tuple(vocabulary.encode(words[:max_words]))
    return (*vocabulary.encode(words), EOS)


def _choose(
    captions: tuple[tuple[int, ...], ...], count: int, generator: Generator
) -> list[tuple[int, ...]]:
    order = torch.randperm(len(captions), generator=generator)[:count]
    return [captions[index] for index in order.tolist()]


def _length_ordered(lengths_N: Tensor, batch_images: int, generator: Generator) -> Iterator[Tensor]:
    shuffled = torch.randperm(len(lengths_N), generator=generator)
    chunks = torch.split(shuffled, batch_images * _BATCHES_SORTED_TOGETHER)
    batches = [
        batch
        for chunk in chunks
        for batch in torch.split(chunk[lengths_N[chunk].argsort(stable=True)], batch_images)
    ]
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def _padded(captions: list[list[tuple[int, ...]]], count: int) -> Tensor:
    longest = max(len(ids) for each in captions for ids in each)
    words_BKT = torch.full((len(captions), count, longest + 1), PAD)
    words_BKT[..., 0] = BOS
    for b, each in enumerate(captions):
        for k, ids in enumerate(each):
            words_BKT[b, k, 1 : len(ids) + 1] = torch.tensor(ids)
    return words_BKT
