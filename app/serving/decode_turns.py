"""Who is decoded next: what costs least first, and what costs much leaves a place for the others.

Callers who are told apart take turns, each costing what its jobs cost. Knows asyncio, not images or
processes. How long one waits is estimated from what jobs cost, and from how long they lately took.

Reference: Goyal, Vin and Cheng 1996, "Start-time fair queuing": a job may start when as much has
been served as its caller had asked for before.
"""

import asyncio
import heapq
import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from app.serving.batching import Overloaded

COSTLY_S = 0.1
"""From here on a job would keep others waiting longer than a caption takes: it is an estimate,
right within a factor of three."""
_TELLING_S = 0.02  # below, what takes time is to hand a job over
_MEMORY = 0.7  # weight of the past in what is measured


@dataclass(eq=False)
class Turn:
    """One job, from its place in the queue to its end."""

    cost_s: float
    number: int
    called: "asyncio.Future[None]"
    began_s: float = math.inf
    caller: Hashable = None
    start_tag_s: float = 0.0
    costly: bool = field(init=False)
    """Whether others had better not wait for it."""
    order: tuple[bool, float, float, int] = field(init=False)

    def __post_init__(self) -> None:
        self.costly = self.cost_s >= COSTLY_S
        self.order = self.costly, self.start_tag_s, self.cost_s, self.number

    def __lt__(self, other: "Turn") -> bool:
        return self.order < other.order


class Turns:
    """A queue for a few places.

    Args:
        places: How many jobs go on side by side. Costly ones get all but one; the only one there
            is they get while nothing else waits.
        most_costly: How many costly jobs may wait; half of them may be those of one caller.
    """

    def __init__(self, places: int, *, most_costly: int) -> None:
        self._free = self._places = places
        self._places_for_costly = self._free_for_costly = max(1, places - 1)
        self._most_costly = most_costly
        self._waiting: list[Turn] = []
        self._under_way: set[Turn] = set()
        self._numbers = itertools.count()
        self._served_s = 0.0  # the virtual time: the start tag of whoever was called last
        self._asked_s: dict[Hashable, float] = {}  # by caller: where its next job may start
        self._pace = 1.0  # seconds that a job took for each that was estimated

    async def take(self, cost_s: float, timeout_s: float, caller: Hashable = None) -> Turn:
        """Wait for a place; `leave` gives it back.

        Args:
            cost_s: What the job takes, estimated.
            timeout_s: How long its caller will wait for his answer.
            caller: Whose it is; None where callers are not told apart.

        Raises:
            Overloaded: It would wait for more than half of that time.
        """
        loop = asyncio.get_running_loop()
        tag_s = 0.0 if caller is None else max(self._served_s, self._asked_s.get(caller, 0.0))
        turn = Turn(
            cost_s, next(self._numbers), loop.create_future(), caller=caller, start_tag_s=tag_s
        )
        self._check_wait(turn, timeout_s)
        if caller is not None:
            self._asked_s[caller] = turn.start_tag_s + cost_s
        heapq.heappush(self._waiting, turn)
        self._call()
        try:
            await turn.called
        except asyncio.CancelledError:
            self._withdraw(turn)
            raise
        return turn

    def leave(self, turn: Turn, *, done: bool = True) -> None:
        """Give a place back; a job that was not done tells nothing about how long one takes."""
        self._under_way.remove(turn)
        self._free += 1
        self._free_for_costly += turn.costly
        if turn.cost_s >= _TELLING_S and done:
            took_s = asyncio.get_running_loop().time() - turn.began_s
            self._pace = _MEMORY * self._pace + (1 - _MEMORY) * took_s / turn.cost_s
        self._call()

    def _call(self) -> None:
        """Call whose turn it is; the cheapest comes first, so behind a costly one all are."""
        while self._free and self._waiting:
            if self._waiting[0].costly and not self._free_for_costly:
                return
            turn = heapq.heappop(self._waiting)
            if turn.called.done():  # its caller has left and not withdrawn it yet
                continue
            self._free -= 1
            self._free_for_costly -= turn.costly
            turn.began_s = asyncio.get_running_loop().time()
            self._served_s = max(self._served_s, turn.start_tag_s)
            self._under_way.add(turn)
            turn.called.set_result(None)

    def _withdraw(self, turn: Turn) -> None:
        if turn in self._under_way:  # called and cancelled at the same moment
            self.leave(turn, done=False)
        elif turn in self._waiting:
            self._waiting.remove(turn)
            heapq.heapify(self._waiting)

    def _check_wait(self, turn: Turn, timeout_s: float) -> None:
        """Refuse at once who would be refused late: he would take up room until then."""
        if not turn.costly and self._most_wait_s() <= timeout_s / 2:
            return  # nearly always, and found much sooner than who is ahead of whom
        wait_s = self._wait_s(turn)
        if wait_s > timeout_s / 2 or (turn.costly and self._is_full_for(turn.caller)):
            raise Overloaded(max(1, math.ceil(wait_s)))

    def _is_full_for(self, caller: Hashable) -> bool:
        waiting = [each.caller for each in self._waiting if each.costly]
        own = 0 if caller is None else waiting.count(caller)
        return len(waiting) >= self._most_costly or 2 * own >= self._most_costly

    def _most_wait_s(self) -> float:
        """Give what a wait for all others, costly ones too, would take at most."""
        cost_s = sum([each.cost_s for each in (*self._waiting, *self._under_way)])
        return self._pace_now() * cost_s / self._places

    def _wait_s(self, turn: Turn) -> float:
        """Estimate the wait for others of its kind, which is all that a job ever waits for long."""
        free, places = self._free, self._places
        if turn.costly:
            free, places = self._free_for_costly, self._places_for_costly
        now_s, pace = asyncio.get_running_loop().time(), self._pace_now()
        ahead_s = [
            pace * each.cost_s
            for each in self._waiting
            if each.costly == turn.costly and each.order < turn.order
        ]
        if free > len(ahead_s):
            return 0.0
        under_way_s = (
            pace * each.cost_s - (now_s - each.began_s)
            for each in self._under_way
            if each.costly == turn.costly
        )
        return max(0.0, sum(under_way_s) + sum(ahead_s)) / places

    def _pace_now(self) -> float:
        """Give the pace; who has taken longer already need not end to tell so."""
        now_s = asyncio.get_running_loop().time()
        telling = [each for each in self._under_way if each.cost_s >= _TELLING_S]
        return max([self._pace, *((now_s - each.began_s) / each.cost_s for each in telling)])
