"""Fair queueing: flows take turns, so a crowd delays itself and not the others.

A flow is told by a path, ``(caller, request)``: callers take turns, the requests of a caller take
turns, and within a request first come is first served. Every item costs one, and so does a turn.

Knows neither asyncio nor the clock.

References:
    Nagle 1987, "On packet switches with infinite storage": a queue for each flow, served in turns.
    Shreedhar and Varghese 1996, "Efficient fair queuing using deficit round robin": where all items
    cost one and a turn is worth one, no deficit is ever left over, so none is kept.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from fractions import Fraction
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Path = tuple[Hashable, ...]

CONTENTION_S = 3.0
"""How long a crowd leaves room for the next, after somebody was there at the same time."""


def _anyone(_path: Path) -> bool:
    return True


class FairQueue(Generic[Item]):
    """What waits, taken in turns. Each step takes O(1), and O(flows passed over) where some are.

    Args:
        path: Of the flow whose items these are; the queue of all has an empty one.
    """

    def __init__(self, path: Path = ()) -> None:
        self.path = path
        self._flows: OrderedDict[Hashable, FairQueue[Item]] = OrderedDict()  # by their turn
        self._items: OrderedDict[Item, None] = OrderedDict()  # of a flow without flows inside
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Item]:
        yield from self._items
        for flow in self._flows.values():
            yield from flow

    @property
    def flows(self) -> int:
        """How many flows right inside this one have something that waits."""
        return len(self._flows)

    def of(self, path: Path) -> "FairQueue[Item]":
        """Give the queue of one flow; an empty one where it has none."""
        names = path[len(self.path) :]
        if not names:
            return self
        flow = self._flows.get(names[0])
        return FairQueue(path) if flow is None else flow.of(path)

    def push(self, item: Item, path: Path) -> None:
        """Let an item wait at the end of its flow; all paths have the same length."""
        self._size += 1
        names = path[len(self.path) :]
        if not names:
            self._items[item] = None
            return
        if names[0] not in self._flows:  # it comes after all who wait already
            self._flows[names[0]] = FairQueue((*self.path, names[0]))
        self._flows[names[0]].push(item, path)

    def pop(self, may: Callable[[Path], bool] = _anyone) -> Item | None:
        """Take the first item of the flow whose turn it is.

        Args:
            may: Says of a path whether it may be served now; who may not keeps its turn.
        """
        item = self._pop_own() if self._items else self._pop_in_turn(may)
        self._size -= item is not None
        return item

    def _pop_own(self) -> Item:
        return self._items.popitem(last=False)[0]

    def _pop_in_turn(self, may: Callable[[Path], bool]) -> Item | None:
        for name, flow in self._flows.items():
            if may(flow.path) and (item := flow.pop(may)) is not None:
                self._flows.move_to_end(name)
                self._tidy(name)
                return item
        return None

    def remove(self, item: Item, path: Path) -> bool:
        """Take an item out, wherever in its flow; say whether it was there."""
        names = path[len(self.path) :]
        if not names:
            found = item in self._items
            self._items.pop(item, None)
        else:
            flow = self._flows.get(names[0])
            found = flow is not None and flow.remove(item, path)
            self._tidy(names[0])
        self._size -= found
        return found

    def _tidy(self, name: Hashable) -> None:
        """Forget a flow that has nothing: it costs nothing, and begins anew when it comes back."""
        if name in self._flows and not self._flows[name]:
            del self._flows[name]


class Presence:
    """Which flows are there, waiting or under way, and what part of the workers each one holds.

    A crowd is a flow that had more than ``crowd`` items there at once, since it was last empty.
    """

    def __init__(self, crowd: int) -> None:
        self._crowd = crowd
        self._items: Counter[Path] = Counter()
        self._most: dict[Path, int] = {}  # there at once
        self._crowds: Counter[Path] = Counter()  # right inside a flow
        self._met_s: dict[Path, float] = {}
        self._workers: dict[Path, Fraction] = {}

    def came(self, path: Path) -> None:
        """Count an item that begins to wait."""
        for flow in _flows_of(path):
            self._items[flow] += 1
            was_crowd = self._is_crowd(flow)
            self._most[flow] = max(self._items[flow], self._most.get(flow, 0))
            self._crowds[flow[:-1]] += self._is_crowd(flow) and not was_crowd

    def left(self, path: Path, now_s: float) -> None:
        """Count an item that is answered, or whose caller has left."""
        for flow in _flows_of(path):
            if self._crowds[flow[:-1]] and not self._is_crowd(flow):
                self._met_s[flow[:-1]] = now_s
            self._items[flow] -= 1
            if not self._items[flow]:
                self._crowds[flow[:-1]] -= self._is_crowd(flow)
                del self._items[flow], self._most[flow]

    def _is_crowd(self, flow: Path) -> bool:
        return self._most.get(flow, 0) > self._crowd

    def contended(self, parent: Path, now_s: float) -> bool:
        """Say whether inside this flow somebody was there at the same time as a crowd lately.

        Crowds among themselves take turns and need no more, and so does who is no crowd.
        """
        return now_s - self._met_s.get(parent, -math.inf) < CONTENTION_S

    def began(self, paths: Collection[Path]) -> None:
        """Note the paths of a batch's items: its flows hold its worker, to equal parts."""
        for flow, part in _parts(paths).items():
            self._workers[flow] = self._workers.get(flow, Fraction()) + part

    def ended(self, paths: Collection[Path]) -> None:
        """Note that a batch has left its worker."""
        for flow, part in _parts(paths).items():
            self._workers[flow] -= part
            if not self._workers[flow]:
                del self._workers[flow]

    def held_back(self, queue: FairQueue[Item], workers: int, now_s: float) -> set[Path]:
        """Give the crowds that have to leave the next free worker to others.

        While they contend, none holds all workers: who comes finds one free, or one that is soon.
        Crowds that want more than that get all workers together.
        """
        most = max(1, workers - 1)
        return {
            flow
            for flow, held in self._workers.items()
            if self._is_crowd(flow)
            and self.contended(flow[:-1], now_s)
            and held + Fraction(1, max(1, queue.of(flow[:-1]).flows)) > most
        }


class Rounds:
    """Who may go into the batch that is being formed: where flows contend, as many of each.

    Args:
        queue: What waits.
        held_back: Flows that may not.
        contended: Says of a path whether flows right inside it contend.
        most_of_flow: Items of one flow among contending ones, at most.
    """

    def __init__(
        self,
        queue: FairQueue[Item],
        held_back: Collection[Path],
        contended: Callable[[Path], bool],
        most_of_flow: float = math.inf,
    ) -> None:
        self._queue = queue
        self._held_back = held_back
        self._contended = contended
        self._most_of_flow = most_of_flow
        self._taken: Counter[Path] = Counter()
        self._rounds: dict[Path, float] = {}

    def may(self, path: Path) -> bool:
        """Say whether a flow may give another item."""
        if path in self._held_back:
            return False
        return self._taken[path] < self._rounds.get(path[:-1], self._most_in(path[:-1]))

    def _most_in(self, parent: Path) -> float:
        return self._most_of_flow if self._contended(parent) else math.inf

    def took(self, path: Path) -> None:
        """Count an item; once a flow has no more, the others have had their rounds as well."""
        for flow in _flows_of(path):
            self._taken[flow] += 1
            if not self._queue.of(flow) and self._contended(flow[:-1]):
                rounds = self._rounds.get(flow[:-1], math.inf)
                self._rounds[flow[:-1]] = min(rounds, self._taken[flow])


def _flows_of(path: Path) -> list[Path]:
    return [path[:length] for length in range(1, len(path) + 1)]


def _parts(paths: Collection[Path]) -> dict[Path, Fraction]:
    counts = Counter(flow for path in paths for flow in _flows_of(path))
    return {flow: Fraction(count, len(paths)) for flow, count in counts.items()}
