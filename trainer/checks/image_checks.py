"""Checks of images, files and lists: each takes a scan and yields findings."""

from collections.abc import Callable, Iterable, Iterator

from trainer.checks.directory_scan import DirectoryScan
from trainer.checks.findings import Finding, count_images, some
from trainer.data.flickr8k import OFFICIAL_IMAGES

FEW_TRAIN_IMAGES = 1000
FEW_DEV_IMAGES = 100


def unreadable(scan: DirectoryScan) -> Iterator[Finding]:
    """What the reader could not make sense of."""
    for fault in scan.faults:
        what, _, remedy = fault.rpartition(": ")
        yield Finding("error", what, remedy)


def missing_splits(scan: DirectoryScan) -> Iterator[Finding]:
    """Training needs train, and dev to choose the epoch by."""
    for split in ("train", "dev"):
        if split not in scan.lists:
            yield Finding(
                "error",
                f"there is no Flickr_8k.{split}Images.txt",
                "write the list, or import the captions again without splits",
            )


def broken_images(scan: DirectoryScan) -> Iterator[Finding]:
    """Files that the service could not decode either."""
    broken = [f"{name} ({why})" for name, why in scan.pixel_hashes.broken.items()]
    if broken:
        yield Finding(
            "error",
            f"broken: {count_images(broken)}: {some(broken)}",
            "save them again as JPEG, PNG or WebP, or take them off their lists",
        )


def absent_files(scan: DirectoryScan) -> Iterator[Finding]:
    """Names on a list without a file."""
    for split, names in scan.lists.items():
        absent = [name for name in names if name not in scan.files]
        if absent:
            yield Finding(
                "error",
                f"{split} lists {count_images(absent)} without a file: {some(absent)}",
                "restore them, or take them off the list",
            )


def images_without_captions(scan: DirectoryScan) -> Iterator[Finding]:
    """Names on a list that nobody described, and files that are on no list."""
    for split, names in scan.lists.items():
        bare = [name for name in names if name not in scan.captions]
        if bare:
            yield Finding(
                "error",
                f"{split} lists {count_images(bare)} without a caption: {some(bare)}",
                "describe them, or take them off the list",
            )
    unused = scan.files - _listed(scan)
    if unused:
        yield Finding(
            "note",
            f"the image folder has {count_images(unused)} on no list: {some(unused)}",
            "describe and list them, or leave them unused",
        )


def images_and_clips(scan: DirectoryScan) -> Iterator[Finding]:
    """A network reads images or clips."""
    for split, names in scan.lists.items():
        there = [name for name in names if name in scan.files]
        images = [name for name in there if name not in scan.clips]
        if images and len(images) < len(there):
            yield Finding(
                "error",
                f"{split} lists {len(there) - len(images)} clips and {count_images(images)}: "
                f"{some(images)}",
                "put each image into a directory of its name, or take them off the list",
            )


def clips_of_other_lengths(scan: DirectoryScan) -> Iterator[Finding]:
    """Frames are chosen evenly: short clips have some repeatedly."""
    counts = {scan.clips[name] for name in _listed(scan) if scan.clips.get(name)}
    if len(counts) > 1:
        yield Finding(
            "note",
            f"clips have {min(counts)} to {max(counts)} frames",
            "as many as network.frames_per_clip are chosen evenly, so speeds differ",
        )


def captions_without_images(scan: DirectoryScan) -> Iterator[Finding]:
    """Described images that are not there."""
    lost = scan.captions.keys() - scan.files - _listed(scan)
    if lost:
        yield Finding(
            "note",
            f"there are captions of {count_images(lost)} without file or list: {some(lost)}",
            "add the images, or leave the captions unused",
        )


def names_in_two_splits(scan: DirectoryScan) -> Iterator[Finding]:
    """An image on two of the lists that must not meet."""
    for one, other in _pairs(scan):
        shared = set(scan.lists[one]) & set(scan.lists[other])
        if shared:
            yield Finding(
                "error",
                f"{one} and {other} share {count_images(shared)}: {some(shared)}",
                "remove them from one list, or scores are worth nothing",
            )


def pixels_in_two_splits(scan: DirectoryScan) -> Iterator[Finding]:
    """The same picture under two names, on lists that must not meet."""
    for one, other in _pairs(scan):
        there = _by_pixels(scan, scan.lists[one])
        twins = [
            f"{there[pixels]} = {name}"
            for pixels, name in _by_pixels(scan, scan.lists[other]).items()
            if there.get(pixels, name) != name
        ]
        if twins:
            yield Finding(
                "error",
                f"{one} and {other} show the same picture under two names: {some(twins)}",
                "keep one of each pair, or scores are worth nothing",
            )


def pixels_twice_in_a_split(scan: DirectoryScan) -> Iterator[Finding]:
    """The same picture twice on one list."""
    for split, names in scan.lists.items():
        shown = [name for name in names if name in scan.pixel_hashes.sha256]
        twice = set(shown) - set(_by_pixels(scan, shown).values())
        if twice:
            yield Finding(
                "note",
                f"{split} lists {count_images(twice)} that another one equals: {some(twice)}",
                "put all captions under one name",
            )


def few_images(scan: DirectoryScan) -> Iterator[Finding]:
    """Sets that are too small for what people hope from them."""
    train, dev = (scan.lists.get(split, ()) for split in ("train", "dev"))
    if 0 < len(train) < FEW_TRAIN_IMAGES:
        yield Finding(
            "note",
            f"train has {count_images(train)}; from fewer than {FEW_TRAIN_IMAGES} a network learns "
            "little but the common words",
            "add images, or add these to a larger set",
        )
    if 0 < len(dev) < FEW_DEV_IMAGES:
        yield Finding(
            "note",
            f"dev has {count_images(dev)}, under {FEW_DEV_IMAGES} a score is mostly chance",
            "give dev more images",
        )


def _listed(scan: DirectoryScan) -> set[str]:
    return {name for names in scan.lists.values() for name in names}


def _pairs(scan: DirectoryScan) -> Iterator[tuple[str, str]]:
    """Only among train, dev and test: a list of another name may well be a part of one of them."""
    official = [split for split in OFFICIAL_IMAGES if split in scan.lists]
    for index, one in enumerate(official):
        for other in official[index + 1 :]:
            yield one, other


def _by_pixels(scan: DirectoryScan, names: Iterable[str]) -> dict[str, str]:
    pixels = scan.pixel_hashes.sha256
    return {pixels[name]: name for name in names if name in pixels}


CHECKS: tuple[Callable[[DirectoryScan], Iterator[Finding]], ...] = (
    unreadable,
    missing_splits,
    broken_images,
    absent_files,
    images_and_clips,
    clips_of_other_lengths,
    images_without_captions,
    captions_without_images,
    names_in_two_splits,
    pixels_in_two_splits,
    pixels_twice_in_a_split,
    few_images,
)
