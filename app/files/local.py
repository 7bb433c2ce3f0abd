"""Photos -> captions in this process, in batches on all cores."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from app.captioner.errors import ImageError
from app.captioner.presentation import Presentation, Told, told, warning
from app.files.outcome import Candidate, Outcome, Source, reason

if TYPE_CHECKING:
    from app.captioner.image.decode import EncodedImage, Pixels
    from app.captioner.pipeline import Captioner


class _Photo(NamedTuple):
    data: bytes
    image: "Pixels | EncodedImage"


class LocalCaptioner:
    """Captions photos in order, a batch for each worker at once.

    Args:
        captioner: A network on a device.
        max_batch: Photos of one batch.
        max_pixels: Of one photo.
        n_best: Candidates of each, at most the beam width.
        how: Captions are told.
    """

    def __init__(
        self,
        captioner: "Captioner",
        *,
        max_batch: int,
        max_pixels: int,
        n_best: int,
        how: Presentation,
    ) -> None:
        self._captioner = captioner
        self._max_batch = max_batch
        self._max_pixels = max_pixels
        self._n_best = n_best
        self._how = how

    def __call__(self, sources: Iterable[Source]) -> Iterator[Outcome]:
        """Caption the photos; no more are read than there are workers for, and one batch more."""
        left, workers = iter(sources), self._captioner.engine.max_concurrent_batches
        waiting: deque[Future[list[Outcome]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                while batch := list(islice(left, self._max_batch)):
                    waiting.append(pool.submit(self._batch, batch))
                    if len(waiting) > workers:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _batch(self, sources: Sequence[Source]) -> list[Outcome]:
        """Caption one batch; a bad photo is told about and spares the others."""
        read = [self._read(source) for source in sources]
        found = self._captioner.caption([each.image for each in read if isinstance(each, _Photo)])
        captioned = itertools.count()
        outcomes = []
        for source, each in zip(sources, read, strict=True):
            if isinstance(each, str):
                outcomes.append(Outcome(source, (), each))
            elif (b := next(captioned)) in found.refused:
                outcomes.append(Outcome(source, (), str(found.refused[b])))
            else:
                outcomes.append(self._told(source, told(found.captions[b], self._how), each.data))
        return outcomes

    def _told(self, source: Source, found: Told, data: bytes) -> Outcome:
        candidates = tuple(
            Candidate(each.text, each.log_prob, each.score, each.confidence)
            for each in found[: self._n_best]
        )
        tags = None if found.tags is None else tuple((t.label, t.probability) for t in found.tags)
        said = warning(found, data)
        return Outcome(source, candidates, withheld=found.withheld, tags=tags, warning=said)

    def _read(self, source: Source) -> "_Photo | str":
        """Give a photo for the batch, or what is wrong with it."""
        try:
            data = source.read()
            encoded = self._captioner.encoded(data, max_pixels=self._max_pixels)
            image = encoded or self._captioner.read(data, max_pixels=self._max_pixels)
            return _Photo(data, image)
        except (OSError, ImageError) as error:
            return reason(error)
