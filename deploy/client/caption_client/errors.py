"""What can go wrong.

CaptionError
├── Refused            the service answered, and said no
├── DeadlinePassed     there was no answer in time
└── Unreachable        there was no answer at all
"""

from collections.abc import Mapping
from typing import Any


class CaptionError(Exception):
    """An image or a clip has no caption."""


class Refused(CaptionError):
    """The service answered, and said no.

    Attributes:
        status: Of HTTP.
        code: A stable word for the reason, such as ``undecodable_image``; empty where something
            in between answered.
        problem: All that the service says, as in RFC 9457.
        retry_after_s: When to try again, if it says so.
    """

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after_s: float | None = None
    ) -> None:
        super().__init__(_said(status, problem))
        self.status = status
        self.code = str(problem.get("code", ""))
        self.problem = problem
        self.retry_after_s = retry_after_s


class DeadlinePassed(CaptionError):
    """There was no answer in time."""


class Unreachable(CaptionError):
    """There was no answer at all."""


def _said(status: int, problem: Mapping[str, Any]) -> str:
    title, detail = problem.get("title", f"HTTP {status}"), problem.get("detail")
    wrong = [f"{each['field']}: {each['message']}" for each in problem.get("errors", ())]
    return ": ".join(str(part) for part in (title, "; ".join(wrong) or detail) if part)
