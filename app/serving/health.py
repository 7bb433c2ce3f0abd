"""The states of the service and what the probes say about them.

Probes read a few attributes: no key, no queue, no device. States only move forward, so a load that
ends while the service drains cannot make it ready again.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType


class State(IntEnum):
    """Where the service is in its life."""

    STARTING = 1
    WARMING = 2
    READY = 3
    DRAINING = 4
    FAILED = 5


REASONS = {
    State.STARTING: "loading_checkpoint",
    State.WARMING: "warming_up",
    State.READY: "ok",
    State.DRAINING: "shutting_down",
}
_SUSPENDED_S = 2.0  # without a look: the process was stopped, or its loop was away
_RETRY_AFTER_S = {State.STARTING: 5, State.WARMING: 2}


@dataclass(frozen=True)
class Report:
    """What a probe answers: ``ok`` decides between 200 and 503."""

    ok: bool
    status: str
    reason: str


class NotReady(Exception):
    """The service takes no captions now; ``reason`` is a code of the probes."""

    def __init__(self, reason: str, retry_after_s: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Heartbeat:
    """Wraps each job of the inference threads: tells stuck from busy, and dead from idle."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_s: float | None = None
        self._suspended_s = 0.0
        self._looking = threading.Lock()
        self._busy_since_s: dict[threading.Thread, float] = {}
        self._threads: set[threading.Thread] = set()

    def __enter__(self) -> None:
        thread = threading.current_thread()
        self._threads.add(thread)
        self._busy_since_s[thread] = self._awake_s()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._busy_since_s[threading.current_thread()]

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return bool(self._busy_since_s)

    def busy_s(self) -> float:
        """How long the oldest running job has been running; 0 when there is none."""
        # A copy in one step: the threads come and go while probes read.
        since_s = min(list(self._busy_since_s.values()), default=None)
        return 0.0 if since_s is None else self._awake_s() - since_s

    def look(self) -> None:
        """Take note that the process is awake; who begins with this does it twice a second."""
        with self._looking:
            self._notice_suspension()
            self._looked_s = self._clock()

    def _awake_s(self) -> float:
        """Give the time without that of a suspended process, in which no job could go on."""
        with self._looking:
            self._notice_suspension()
            return self._clock() - self._suspended_s

    def _notice_suspension(self) -> None:
        now_s = self._clock()
        if self._looked_s is not None and now_s - self._looked_s > _SUSPENDED_S:
            self._suspended_s += now_s - self._looked_s
            self._looked_s = now_s

    def dead(self) -> bool:
        """Whether one of the threads has ended."""
        return not all(thread.is_alive() for thread in list(self._threads))


class Health:
    """The state, the reason for it, and the heartbeat of the inference threads."""

    def __init__(self, *, stuck_after_s: float, heartbeat: Heartbeat | None = None) -> None:
        self.state = State.STARTING
        self.heartbeat = heartbeat or Heartbeat()
        self._stuck_after_s = stuck_after_s
        self._failure = ""
        self._started = False
        self._accepting = False

    def warming(self) -> None:
        """Take note that the checkpoint is loaded."""
        self._move(State.WARMING)

    def ready(self) -> None:
        """Take note that the golden caption was said."""
        if self._move(State.READY):
            self._started = self._accepting = True

    def drain(self) -> None:
        """Stop being ready, and go on accepting: balancers need time to look away."""
        self._move(State.DRAINING)

    def refuse(self) -> None:
        """Stop accepting as well."""
        self._move(State.DRAINING)
        self._accepting = False

    def fail(self, reason: str) -> None:
        """Give up for good; ``reason`` is a stable code."""
        if self._move(State.FAILED):
            self._failure = reason
            self._accepting = False

    def livez(self) -> Report:
        """Say whether restarting this process would help."""
        return self._report(ok=not self._fault())

    def startupz(self) -> Report:
        """Say whether the service has been ready once."""
        return self._report(ok=self._started and not self._fault())

    def readyz(self) -> Report:
        """Say whether new work should come here."""
        return self._report(ok=self.state is State.READY and not self._fault())

    def check_accepting(self) -> None:
        """Let work in.

        Raises:
            NotReady: While starting, at the end of draining, and after a failure.
        """
        if not self._accepting or self._fault():
            raise NotReady(self._reason(), _RETRY_AFTER_S.get(self.state, 1))

    def _move(self, state: State) -> bool:
        forward = state > self.state
        if forward:
            self.state = state
        return forward

    def _fault(self) -> str:
        """Give the reason of a failure: once there is one, it is the reason for ever."""
        if self.state is not State.FAILED and (fault := self._fault_now()):
            self.fail(fault)
        return self._failure

    def _fault_now(self) -> str:
        if not self._started:  # loading may be long; that is for the startup probe
            return ""
        if self.heartbeat.dead() and self.state is not State.DRAINING:
            return "inference_thread_dead"
        return "inference_thread_stuck" if self.heartbeat.busy_s() > self._stuck_after_s else ""

    def _reason(self) -> str:
        return self._fault() or REASONS[self.state]

    def _report(self, *, ok: bool) -> Report:
        fault = self._fault()
        status = State.FAILED if fault else self.state
        return Report(ok, status.name.lower(), fault or REASONS[self.state])
