"""Photos -> captions of a running service."""

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from app.files.outcome import Candidate, Outcome, Source, reason
from caption_client import Client, Result

_CONCURRENCY = 16  # requests at once, of which a service makes batches


class RemoteCaptioner:
    """Captions photos in order, several requests at once.

    Args:
        url: Of the service.
        key: An API key, where it wants one.
        deadline_s: For one photo, with its retries.
        options: As of `caption_client.Client.caption`.
    """

    def __init__(self, url: str, *, key: str | None, deadline_s: float, **options: Any) -> None:
        self._url = url
        self._key = key
        self._deadline_s = deadline_s
        self._options = options

    def __call__(self, sources: Iterable[Source]) -> Iterator[Outcome]:
        """Caption the photos."""
        asked: deque[Source] = deque()
        with Client(self._url, key=self._key, deadline_s=self._deadline_s) as client:
            results = client.caption_many(
                _noted(sources, asked), concurrency=_CONCURRENCY, **self._options
            )
            for result in results:
                yield _outcome(asked.popleft(), result)


def _noted(sources: Iterable[Source], asked: deque[Source]) -> Iterator[Path | bytes]:
    """Give what the client takes, and keep whose it is: results come in the same order."""
    for source in sources:
        asked.append(source)
        yield source.data if source.path is None else source.path


def _outcome(source: Source, result: Result[Path | bytes]) -> Outcome:
    if result.error is not None:
        return Outcome(source, (), reason(result.error))
    if result.caption is None:
        return Outcome(source, ())
    told = tuple(
        Candidate(each.text, each.log_prob, each.score, each.confidence)
        for each in result.caption.candidates
    )
    said = result.caption
    return Outcome(source, told, withheld=said.withheld, tags=said.tags, warning=said.warning)
