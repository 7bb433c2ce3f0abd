"""The checkpoints that are served, and which of them captions a request.

Each has a place of its own, in which another version of it may take over, see `reloading`. Who asks
for none gets the first; or, for a share of those requests, the last, which is tried beside it.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from app.captioner.errors import CheckpointError
from app.observability.metrics import Metrics
from app.serving.captioner import Captioner
from app.serving.reloading import Refusal, Reloads, Served, Store, identity, name_of

_GOLDEN = (5**0.5 - 1) / 2
_BETWEEN = re.compile("[@:]")  # neither may stand in a name or a version


class Checkpoints:
    """What is served, in the order of the settings.

    Args:
        stores: One for each checkpoint, at least one.
        prepare: See `Reloads`.
        metrics: Told what is served, and of each change.
        canary: The share of requests that ask for no checkpoint which the last one gets, 0 to 1;
            None where it is not being tried.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        prepare: Callable[[Store, Path], Awaitable[Captioner]],
        metrics: Metrics,
        canary: float | None = None,
    ) -> None:
        self._metrics = metrics
        self._canary = canary
        self._point = 0.0
        self.places = tuple(
            Reloads(store, prepare, metrics, admit=self._admit, on_served=self._tell)
            for store in stores
        )
        metrics.canary_share.set(canary or 0.0)

    @property
    def first(self) -> Served:
        """What captions unless another is asked for, or tried."""
        return self.places[0].served

    @property
    def served(self) -> list[Served]:
        """Give all that are served by now."""
        return [place.served for place in self.places if place.has_served]

    @property
    def refusal(self) -> Refusal | None:
        """The latest among the refusals that hold."""
        refusals = [place.refusal for place in self.places if place.refusal]
        return max(refusals, key=lambda refusal: refusal.at, default=None)

    # Which one captions

    def choose(self, asked: str | None = None) -> Served | None:
        """Give what captions a request; None where nothing that is served is called so.

        Args:
            asked: ``name@version``, ``name:version`` or ``name``.
        """
        if asked is None or self._means_none(*_parted(asked)):
            return self._next()
        return self.find(asked)

    def find(self, asked: str) -> Served | None:
        """Give what is served as this; None where nothing is.

        A name alone is its newest version. While the last one is tried beside the first, and both
        have that name, it is the first.
        """
        name, version = _parted(asked)
        if self._means_none(name, version):
            return self.first
        return _newest(self._called(name, version))

    def places_of(self, asked: str) -> list[Reloads]:
        """Give the places in which something of this name, and version if told, is served."""
        called = self._called(*_parted(asked))
        return [place for place in self.places if place.has_served and place.served in called]

    def _called(self, name: str, version: str | None) -> list[Served]:
        return [
            each for each in self.served if each.name == name and version in (None, each.version)
        ]

    def _means_none(self, name: str, version: str | None) -> bool:
        """Say whether a name alone could be either of the first and the one that is tried."""
        return (
            self._canary is not None
            and version is None
            and {self.first.name, self.places[-1].served.name} == {name}
        )

    def _next(self) -> Served:
        """Give the last one its share, evenly: no rhythm of callers meets it, or misses it.

        Reference: Weyl 1916: the multiples of an irrational number, modulo 1, are equidistributed;
        of the golden ratio with the least discrepancy.
        """
        if not self._canary:
            return self.first
        self._point = (self._point + _GOLDEN) % 1
        return self.places[-1].served if self._point < self._canary else self.first

    # The canary

    def share_of(self, served: Served) -> float:
        """Give its share of the requests that ask for no checkpoint."""
        canary = self._canary or 0.0
        if served is self.first:
            return 1 - canary
        return canary if served is self.places[-1].served else 0.0

    def try_last(self, share: float) -> None:
        """Give the last one this share, 0 to 1, of the requests that ask for no checkpoint.

        Raises:
            ValueError: There are not exactly two.
        """
        if len(self.places) != 2:
            raise ValueError("Two checkpoints must be served, and no more: see CAPTION_CHECKPOINTS")
        self._canary = share
        self._metrics.canary_share.set(share)

    # How others take their places

    def on_signal(self) -> None:
        """Begin to serve what the stores have now; the log tells what came of it."""
        for place in self.places:
            place.on_signal()

    def watch(self, every_s: float) -> None:
        """Serve what the stores have whenever that has changed."""
        for place in self.places:
            place.watch(every_s)

    async def close(self) -> None:
        """Begin nothing any more."""
        await asyncio.gather(*(place.close() for place in self.places))

    def _admit(self, place: Reloads, captioner: Captioner) -> None:
        """Refuse what another place serves: nobody could tell them apart."""
        others = [each.served for each in self.places if each is not place and each.has_served]
        if name_of(captioner) in {name_of(each.captioner) for each in others}:
            raise CheckpointError(
                f"{name_of(captioner)} is served already, as another of CAPTION_CHECKPOINTS: "
                "each needs a name or a version of its own"
            )

    def _tell(self) -> None:
        self._metrics.serve([identity(each.captioner) for each in self.served])


def _parted(asked: str) -> tuple[str, str | None]:
    """Give the name and the version, if there is one."""
    name, *version = _BETWEEN.split(asked, maxsplit=1)
    return name, version[0] if version else None


def _newest(served: Sequence[Served]) -> Served | None:
    if len(served) < 2:
        return served[0] if served else None
    from app.captioner.store import age  # noqa: PLC0415 - brings what a health check need not load

    return max(served, key=lambda each: age(each.version))
