"""The verb `caption`: its arguments, and what it does with them."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from app.captioner.errors import CheckpointError
from app.files import metadata, outputs
from app.files.arguments import min_confidence, presentation
from app.files.metadata import NoMetadata
from app.files.outcome import CaptionAll, Outcome, Source
from app.files.outputs import Table, Write, complain
from app.files.sources import find
from app.settings import Settings


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Caption photos and give the exit code: 0, or 1 where one of them has no caption."""
    if options.format is not None:
        from app.files import clips  # noqa: PLC0415 - brings Pillow

        return clips.run(options, settings)
    photos, wrong = find(options.photos)
    for each in wrong:
        complain(each)
    if options.attention is not None and (len(photos) != 1 or options.url is not None):
        complain("--attention draws one photo, captioned here: name one, and no --url")
        return 1
    try:
        with ExitStack() as opened:
            writes, done = _outputs(options, opened)
            photos = [photo for photo in photos if photo.name not in done]
            all_well = not photos or _caption(photos, writes, options, settings)
    except BrokenPipeError:  # who reads our lines has enough
        raise
    except (CheckpointError, NoMetadata, ValueError, OSError) as error:
        complain(error)
        return 1
    return 0 if all_well and not wrong else 1


def _outputs(options: argparse.Namespace, opened: ExitStack) -> tuple[list[Write], frozenset[str]]:
    """Open what was asked for; give how to write, and the photos that an earlier run did.

    Raises:
        ValueError: The table's name says no format.
        OSError: It cannot be written.
        NoMetadata: The library is not installed.
    """
    writes: list[Write] = []
    done: frozenset[str] = frozenset()
    if options.write_metadata:
        metadata.check_library()
        writes.append(outputs.into_photo)
    if options.sidecar:
        writes.append(outputs.sidecar)
    if options.output is not None:  # last: what stands there is done in all places
        table = Table(options.output)
        opened.callback(table.close)
        writes.append(table.write)
        done = table.done
    if not writes or options.json:
        lines = outputs.lines_with_tags if options.tags else outputs.lines
        writes.insert(0, outputs.json_lines if options.json else lines)
    return writes, done


def _caption(
    photos: Sequence[Source],
    writes: Sequence[Write],
    options: argparse.Namespace,
    settings: Settings,
) -> bool:
    """Caption the photos, and say whether each has a caption."""
    if options.attention is not None:
        return _drawn(photos[0], writes, options, settings)
    caption_all = _captioner(options, settings)
    outcomes = _with_progress(
        caption_all(photos),
        len(photos),
        hidden=bool({outputs.lines, outputs.lines_with_tags} & {*writes}),
    )
    written = [_written(outcome, writes) for outcome in outcomes]
    return all(written)


def _drawn(
    photo: Source, writes: Sequence[Write], options: argparse.Namespace, settings: Settings
) -> bool:
    """Caption one photo, and draw where the network looked for each word."""
    from app.captioner.errors import ImageError  # noqa: PLC0415
    from app.files import attention  # noqa: PLC0415 - brings Pillow
    from app.files.local import LocalCaptioner  # noqa: PLC0415
    from app.loading import load_captioner  # noqa: PLC0415

    captioner = load_captioner(settings)
    told = LocalCaptioner(
        captioner,
        max_batch=1,
        max_pixels=settings.max_pixels,
        n_best=options.n_best,
        how=presentation(options, settings),
    )
    (outcome,) = told([photo])
    if not _written(outcome, writes):
        return False
    try:
        square = captioner.read(photo.read(), max_pixels=settings.max_pixels)
    except ImageError as error:
        raise ValueError(str(error)) from None
    (candidates,) = captioner.caption([square]).captions
    attention.write(options.attention, square, candidates[0])
    return True


def _captioner(options: argparse.Namespace, settings: Settings) -> CaptionAll:
    if options.url is not None:
        from app.files.remote import RemoteCaptioner  # noqa: PLC0415 - brings httpx

        keys = [key.get_secret_value() for key in settings.api_keys]
        return RemoteCaptioner(
            options.url,
            key=keys[0] if keys else None,
            deadline_s=settings.deadline_s,
            n_best=options.n_best,
            min_confidence=min_confidence(options, settings),
            neutral=options.neutral,
            style=options.style,
            tags=options.tags,
        )
    from app.files.local import LocalCaptioner  # noqa: PLC0415
    from app.loading import load_captioner  # noqa: PLC0415 - brings the network

    return LocalCaptioner(
        load_captioner(settings),
        max_batch=settings.max_batch,
        max_pixels=settings.max_pixels,
        n_best=options.n_best,
        how=presentation(options, settings),
    )


def _with_progress(outcomes: Iterator[Outcome], total: int, *, hidden: bool) -> Iterator[Outcome]:
    """Show a bar on a terminal, unless the captions themselves show how far it is."""
    from tqdm import tqdm  # noqa: PLC0415

    bar: Iterator[Outcome] = tqdm(
        outcomes, total=total, unit="photo", disable=True if hidden else None
    )
    return bar


def _written(outcome: Outcome, writes: Sequence[Write]) -> bool:
    """Write a caption wherever it was asked for; a bad photo is told and spares the others."""
    if said := outcome.error or outcome.warning:
        complain(f"{outcome.source.name}: {said}")
    if outcome.error:
        return False
    try:
        for write in writes:
            write(outcome)
    except NoMetadata as error:
        complain(f"{outcome.source.name}: {error}")
        return False
    return True
