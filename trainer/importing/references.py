"""The captions people wrote, of any file that can be imported, by all that calls their images."""

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from trainer.data.candidates import matched
from trainer.data.records import CaptionRecord, composed
from trainer.data.text_files import read_captions
from trainer.importing.faults import refuse
from trainer.importing.formats import kind_of, read_sources
from trainer.importing.image_folder import ImageFolder
from trainer.importing.staging import Staging
from trainer.importing.tables import Source


def read_references(path: Path, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Read the captions of some images.

    Args:
        path: a token file, COCO's annotations, or another file that `prepare --from` reads.
        names: of the images: file names, or ids where the file has them.

    Raises:
        DataError: the file is missing or malformed, or an image has none.
    """
    source = Source(path, ImageFolder(None), Staging(Path("nowhere")))
    if not path.is_file() or kind_of(source) == "tokens":
        return matched(path, names, read_captions(path))
    parsed = read_sources([source])
    refuse(parsed.faults, 0)
    captions: dict[str, tuple[str, ...]] = {}
    for record in parsed.records:
        for name in _names_of(record):
            captions[name] = (*captions.get(name, ()), *record.captions)
    return matched(path, names, captions)


def _names_of(record: CaptionRecord) -> set[str]:
    """Give the names that results may call an image by."""
    path = PurePosixPath(composed(record.image))
    names = {str(path), path.name, path.stem}
    return names | ({record.image_id} if record.image_id else set())
