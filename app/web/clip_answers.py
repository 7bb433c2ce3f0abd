"""Described shots and the end of a clip -> JSON, NDJSON, WebVTT and SRT."""

import json
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from app.clips import tracks
from app.clips.described import DescribedShot, Summary
from app.clips.sampling import End
from app.web.schemas import CheckpointName, ClipEnd, ClipFormat, ClipResponse, ClipShot

MEDIA_TYPES: Final[dict[ClipFormat, str]] = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "vtt": tracks.VTT,
    "srt": tracks.SRT,
}


def format_of(accept: str) -> ClipFormat:
    """Choose a format by the header Accept: the one with the highest weight, else JSON.

    Reference: RFC 9110 section 12.5.1
    """
    best: tuple[float, ClipFormat] = (0.0, "json")
    for each in accept.lower().split(",")[:16]:
        media_type, *parameters = (part.strip() for part in each.split(";"))
        for name, known in MEDIA_TYPES.items():
            if media_type == known:
                best = max(best, (_weight(parameters), name), key=lambda pair: pair[0])
    return best[1]


def _weight(parameters: Sequence[str]) -> float:
    for each in parameters:
        if each.startswith("q="):
            try:
                return float(each[2:])
            except ValueError:
                return 0.0
    return 1.0


class ClipWriter:
    """Writes the shots of one clip and its end.

    Args:
        request_id: of the request.
        model: that captioned.
        n_best: candidates of each shot.
    """

    def __init__(self, request_id: str, model: CheckpointName, n_best: int) -> None:
        self._request_id = request_id
        self._model = model
        self._n_best = n_best
        self._summary = Summary()

    def shot(self, shot: DescribedShot) -> ClipShot:
        """Give a shot as JSON has it, and let it count for the summary."""
        self._summary.add(shot)
        return ClipShot(**shot.members(self._n_best))

    def end(self, end: End) -> ClipEnd:
        """Give what is known at the end."""
        warning = end.warnings
        return ClipEnd(
            request_id=self._request_id,
            model=self._model,
            duration_s=round(end.duration_s, 3),
            summary=self._summary.text,
            **({"warning": warning} if warning else {}),
        )

    def whole(self, shots: Iterable[DescribedShot], end: End, form: ClipFormat) -> str:
        """Write a clip at once, in any format but NDJSON."""
        if form == "vtt":
            return tracks.vtt(shots)
        if form == "srt":
            return tracks.srt(shots)
        told = [self.shot(each) for each in shots]
        known = self.end(end).model_dump(exclude_unset=True)
        return ClipResponse(**known, shots=told).model_dump_json(exclude_unset=True)

    def line(self, each: DescribedShot | End) -> bytes:
        """Write a line of NDJSON."""
        found = self.end(each) if isinstance(each, End) else self.shot(each)
        return found.model_dump_json(exclude_unset=True).encode() + b"\n"


class Streamed:
    """An answer in lines, each sent when it is ready.

    What goes wrong after the first line cannot be a status any more: it becomes the last line.

    Args:
        lines: of NDJSON; at least the first is ready.
        problem: describes an exception.
    """

    body = b""

    def __init__(
        self,
        lines: AsyncGenerator[bytes, None],
        problem: Callable[[Exception], dict[str, Any]],
    ) -> None:
        self._lines = lines
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer."""
        headers = [(b"content-type", MEDIA_TYPES["ndjson"].encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._lines) as lines:
            try:
                async for line in lines:
                    await _send_piece(send, line)
            except Exception as error:  # noqa: BLE001 - told in the only way that is left
                told = {"problem": self._problem(error)}
                await _send_piece(send, json.dumps(told).encode() + b"\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_piece(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
