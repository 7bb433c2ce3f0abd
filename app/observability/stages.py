"""When each stage of a request began and ended, on the monotonic clock."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StageTime:
    """One stage of one image; ``image`` counts from 0 within its request."""

    image: int
    stage: str
    began_s: float
    ended_s: float


class Stages:
    """The stages of all images of a request."""

    def __init__(self) -> None:
        self.times: list[StageTime] = []

    def of(self, image: int) -> Callable[[str, float, float], None]:
        """Give what takes note of the stages of one image."""
        return lambda *stage: self.times.append(StageTime(image, *stage))

    def durations_s(self) -> dict[str, float]:
        """Give each stage's seconds; of several images, the slowest."""
        durations_s: dict[str, float] = {}
        for time in self.times:
            longest_s = durations_s.get(time.stage, 0.0)
            durations_s[time.stage] = max(longest_s, time.ended_s - time.began_s)
        return durations_s
