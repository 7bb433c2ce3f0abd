"""Captions of a split as id tensors, and the order of the images of an epoch.

N images, K captions of an image, T steps, B images of a step
"""

from collections.abc import Iterator, Sequence
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
        weight_N: float, how often an epoch goes through the image.
    """

    ids: tuple[tuple[tuple[int, ...], ...], ...]
    mirrorable_N: Tensor
    weight_N: Tensor

    @classmethod
    def of(
        cls,
        split: Split,
        vocabulary: Vocabulary,
        options: VocabularyOptions,
        weights: Sequence[float] | None = None,
    ) -> "Captions":
        """Tokenise and encode a split; every image counts once without weights."""
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
        weight_N = torch.tensor(weights) if weights else torch.ones(len(ids))
        return cls(ids, torch.tensor(mirrorable), weight_N)

    @classmethod
    def of_sentences(
        cls, sentences: Sequence[str], vocabulary: Vocabulary, options: VocabularyOptions, each: int
    ) -> "Captions":
        """Encode sentences that belong to no image, so many together where an image would be."""
        ids = [_ids(vocabulary.tokenise(text), vocabulary, options.max_words) for text in sentences]
        ids.sort(key=len)
        groups = tuple(tuple(ids[start : start + each]) for start in range(0, len(ids), each))
        return cls(groups, torch.zeros(len(groups), dtype=torch.bool), torch.ones(len(groups)))

    def batches(
        self, batch_images: int, captions_per_image: int, generator: Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the images by their weights, captions of like length together.

        Yields:
            ``indices_B`` of the images, and ``words_BKT``: BOS, words, EOS, then PAD.
        """
        seen_M = self._seen(generator)
        chosen = [
            _choose(self.ids[index], captions_per_image, generator) for index in seen_M.tolist()
        ]
        lengths_M = torch.tensor([max(map(len, captions)) for captions in chosen])
        for places_B in _length_ordered(lengths_M, batch_images, generator):
            captions = [chosen[place] for place in places_B.tolist()]
            yield seen_M[places_B], _padded(captions, captions_per_image)

    def padded(self, start: int, stop: int) -> Tensor:
        """Give all captions of some images, ``words_BKT``; fewer than K leave rows of PAD."""
        captions = [list(each) for each in self.ids[start:stop]]
        return _padded(captions, max(map(len, captions)))

    def steps(self, batch_images: int) -> int:
        """Count the steps of an epoch."""
        seen = int(self.weight_N.floor().sum()) + round(self._left_N().sum().item())
        return -(-seen // batch_images)

    def _left_N(self) -> Tensor:  # noqa: N802
        return self.weight_N - self.weight_N.floor()

    def _seen(self, generator: Generator) -> Tensor:
        """Say which images an epoch sees: a weight of 1.5 is once for all, again for half."""
        whole_M = torch.arange(len(self.ids)).repeat_interleave(self.weight_N.long())
        left_N = self._left_N()
        count = round(left_N.sum().item())
        if not count:
            return whole_M
        drawn = torch.multinomial(left_N, count, generator=generator)
        return torch.cat((whole_M, drawn))


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
