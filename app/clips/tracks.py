"""Described shots -> tracks that players show: WebVTT and SRT.

References:
    https://www.w3.org/TR/webvtt1/
    https://matroska.org/technical/subtitles.html#srt-subtitles
"""

from collections.abc import Iterable
from typing import Final

from app.clips.described import DescribedShot

VTT: Final = "text/vtt"
SRT: Final = "application/x-subrip"
_LEAST_CUE_S: Final = 1.0
"""A cue ends after it begins: that of a picture that does not move, too."""


def vtt(shots: Iterable[DescribedShot]) -> str:
    """Write a WebVTT track; a shot whose caption is withheld has no cue."""
    cues = (f"{_times(shot, '.')}\n{_escaped(text)}\n" for shot, text in _told(shots))
    return "\n".join(["WEBVTT\n", *cues])


def srt(shots: Iterable[DescribedShot]) -> str:
    """Write an SRT track; a shot whose caption is withheld has no cue."""
    cues = enumerate(_told(shots), 1)
    return "\n".join(f"{n}\n{_times(shot, ',')}\n{text}\n" for n, (shot, text) in cues)


def _told(shots: Iterable[DescribedShot]) -> Iterable[tuple[DescribedShot, str]]:
    return ((shot, shot.told.text) for shot in shots if shot.told.text)


def _times(shot: DescribedShot, mark: str) -> str:
    end_s = shot.end_s if shot.duration_s >= 1e-3 else shot.start_s + _LEAST_CUE_S
    return f"{_time(shot.start_s, mark)} --> {_time(end_s, mark)}"


def _time(seconds: float, mark: str) -> str:
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    minutes, seconds_ = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds_:02}{mark}{milliseconds:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
