"""A clip in a file, or a folder of frames -> a track or JSON: ``caption --format``."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.captioner.errors import CheckpointError, ImageError
from app.captioner.presentation import Presentation, told
from app.clips import kinds, reading, tracks
from app.clips.described import DescribedShot, Merging, Summary
from app.clips.reading import Still
from app.clips.sampling import End, Frame, Sampling
from app.clips.shots import Look, ShotFinder, histogram
from app.files.arguments import presentation
from app.files.outcome import STDIN, reason
from app.files.outputs import complain
from app.settings import Settings
from caption_client.images import images_in

if TYPE_CHECKING:
    from app.captioner.pipeline import Captioner

_BATCH = 8
_MEDIA_TYPES = {"vtt": tracks.VTT, "srt": tracks.SRT, "json": "application/json"}


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Describe one clip, print it, and give the exit code."""
    if len(options.photos) != 1:
        complain("--format describes one clip: name one file, or one folder of frames")
        return 1
    (name,) = options.photos
    try:
        text = _asked(name, options, settings) if options.url else _here(name, options, settings)
    except (ImageError, CheckpointError, ValueError, OSError) as error:
        complain(f"{name}: {reason(error)}")
        return 1
    print(text, end="" if text.endswith("\n") else "\n", flush=True)
    return 0


def _files(name: str) -> list[bytes]:
    """Give the bytes of a clip, or those of each image in a folder.

    Raises:
        OSError: One cannot be read.
        ValueError: There is none.
    """
    if name == STDIN:
        return [sys.stdin.buffer.read()]
    if not Path(name).is_dir():
        return [Path(name).read_bytes()]
    found = [each.read_bytes() for each in images_in(name)]
    if not found:
        raise ValueError("no image in this folder")
    return found


# By a running service


def _asked(name: str, options: argparse.Namespace, settings: Settings) -> str:
    """Ask a service.

    Raises:
        OSError: It does not answer.
        ValueError: It refuses; the text is its own.
    """
    import httpx  # noqa: PLC0415

    files = [("file", (f"{n:06}", data)) for n, data in enumerate(_files(name))]
    asked = {
        "format": options.format,
        "fps": options.fps,
        "n_best": options.n_best,
        "min_confidence": options.min_confidence,
        "neutral": options.neutral,
        "style": options.style,
        "frames": name != STDIN and Path(name).is_dir(),
    }
    params = {key: value for key, value in asked.items() if value is not None}
    headers = {"accept": _MEDIA_TYPES[options.format]}
    for key in settings.api_keys[:1]:
        headers["x-api-key"] = key.get_secret_value()
    url = f"{options.url.rstrip('/')}/v1/clips"
    try:
        answer = httpx.post(
            url, files=files, params=params, headers=headers, timeout=settings.clip_deadline_s
        )
    except httpx.HTTPError as error:
        raise OSError(f"{url}: {error}") from None
    if answer.status_code != 200:
        raise ValueError(_detail(answer))
    return answer.text


def _detail(answer: Any) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the service answered {answer.status_code}"


# In this process


def _here(name: str, options: argparse.Namespace, settings: Settings) -> str:
    from app.loading import load_captioner  # noqa: PLC0415 - brings the network

    files = _files(name)
    if len(files) == 1:
        kinds.check(files[0])
    captioner = load_captioner(settings)
    describer = _Describer(captioner, presentation(options, settings), settings, options.fps)
    shots, end = describer.described(files)
    return _written(shots, end, options)


def _written(shots: Sequence[DescribedShot], end: End, options: argparse.Namespace) -> str:
    """Write the shots; a track has no place for a warning, so a person is told it too."""
    if end.warnings:
        complain(f"{options.photos[0]}: {end.warnings}")
    if options.format == "vtt":
        return tracks.vtt(shots)
    if options.format == "srt":
        return tracks.srt(shots)
    summary = Summary()
    for each in shots:
        summary.add(each)
    return json.dumps(
        {
            "clip": options.photos[0],
            "duration_s": round(end.duration_s, 3),
            "summary": summary.text,
            "shots": [each.members(options.n_best) for each in shots],
            **({"warning": end.warnings} if end.warnings else {}),
        }
    )


class _Describer:
    """Describes clips with a captioner in this process, as the service does in several."""

    def __init__(
        self, captioner: "Captioner", how: Presentation, settings: Settings, fps: float
    ) -> None:
        self._captioner = captioner
        self._how = how
        self._settings = settings
        self._fps = fps

    def described(self, files: Sequence[bytes]) -> tuple[list[DescribedShot], End]:
        """Give the shots of a clip, or of images that are its frames, and its end."""
        read = self._clip(files[0]) if len(files) == 1 else self._images(files)
        try:
            return self._shots(read)
        except Still:
            return self._still(files[0])

    def _clip(self, data: bytes) -> Iterator[Frame | End]:
        about, settings = self._captioner.manifest.image, self._settings
        how = Sampling.within(settings, about, fps=self._fps, max_frames=settings.max_clip_frames)
        return reading.frames(data, how)

    def _images(self, files: Sequence[bytes]) -> Iterator[Frame | End]:
        for number, data in enumerate(files):
            square = self._captioner.read(data, max_pixels=self._settings.max_pixels)
            yield Frame(number / self._fps, square)
        yield End(len(files) / self._fps)

    def _still(self, data: bytes) -> tuple[list[DescribedShot], End]:
        square = self._captioner.read(data, max_pixels=self._settings.max_pixels)
        (candidates,) = self._captioner.caption([square]).captions
        return [DescribedShot(0.0, 0.0, 0.0, told(candidates, self._how))], End(0.0)

    def _shots(self, read: Iterator[Frame | End]) -> tuple[list[DescribedShot], End]:
        finder, merging = ShotFinder(), Merging()
        found: list[DescribedShot | None] = []
        end = End(0.0)
        for frames in _batches(read):
            looked = [each for each in frames if isinstance(each, Frame)]
            summaries = (
                self._captioner.summaries([each.pixels for each in looked]) if looked else ()
            )
            shots = [
                finder.add(frame, Look(summary_W, histogram(frame.pixels)))
                for frame, summary_W in zip(looked, summaries, strict=True)
            ]
            ended = [each for each in shots if each is not None]
            if isinstance(frames[-1], End):
                end = frames[-1]
                ended += finder.end(end.duration_s)
            for shot in ended:
                candidates = self._captioner.caption_frames(
                    [each.pixels for each in shot.looked_at]
                )
                described = DescribedShot(
                    shot.start_s, shot.end_s, shot.keyframe.time_s, told(candidates, self._how)
                )
                found.append(merging.add(described))
        return [each for each in chain(found, [merging.end()]) if each is not None], end


def _batches(read: Iterator[Frame | End]) -> Iterator[list[Frame | End]]:
    batch: list[Frame | End] = []
    for each in read:
        batch.append(each)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
