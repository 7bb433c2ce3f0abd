"""The verb ``prepare``: captions imported, or a data directory checked, then cached or sharded."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from app.captioner.manifest import ImageGeometry
from app.captioner.tokenisers import fitting, tokeniser
from trainer.checks.diagnosis import diagnose
from trainer.data.arrays import fitted_images
from trainer.data.flickr8k import Split, check_counts, read_split, split_names
from trainer.data.records import FieldNames
from trainer.data.sharding import write_shards
from trainer.errors import DataError
from trainer.importing.faults import SKIP_OPTION
from trainer.importing.formats import READERS, read_sources
from trainer.importing.image_folder import ImageFolder
from trainer.importing.import_records import SKIPPED_FILE, import_records
from trainer.importing.splitting import DEV_SHARE, Chance
from trainer.importing.staging import Staging
from trainer.importing.tables import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``prepare``."""
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--data", type=Path, help="directory in Flickr8k's layout, to be cached")
    origin.add_argument(
        "--from",
        type=Path,
        dest="sources",
        action="extend",
        nargs="+",
        metavar="FILE",
        help="captions to be imported: a file, several that belong together, or a folder",
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where arrays go")
    parser.add_argument("--size-px", type=int, default=224, help="side of the network's square")
    parser.add_argument("--fit", choices=["squeeze", "crop", "pad"], default="squeeze")
    parser.add_argument("--frames-per-clip", type=int, default=8, help="of clips: frames to read")
    parser.add_argument("--shards", type=Path, metavar="DIR", help="write shards, cache nothing")
    parser.add_argument("--images-per-shard", type=int, default=1000, metavar="N")
    _add_import_arguments(parser.add_argument_group("with --from"))


def _add_import_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--images", type=Path, metavar="FOLDER", help="where the images lie; a folder's own without"
    )
    group.add_argument("--out", type=Path, metavar="DIR", help="new directory in Flickr8k's layout")
    group.add_argument("--format", choices=[*READERS], help="in place of what the content says")
    group.add_argument("--image-key", metavar="NAME", help="column or key of the image's name")
    group.add_argument(
        "--caption-key",
        action="append",
        default=[],
        metavar="NAME",
        help="column or key of the caption; several times, with commas, or a pattern: caption_*",
    )
    group.add_argument("--split-key", metavar="NAME", help="column or key of the split")
    group.add_argument("--encoding", default="utf-8", help="of the text, for instance cp1252")
    group.add_argument("--dev-share", type=float, metavar="SHARE", help=f"default {DEV_SHARE}")
    group.add_argument("--seed", type=int, help="of the split by chance, default 1")
    group.add_argument(
        SKIP_OPTION,
        action="store_true",
        help=f"go on without entries that cannot be used, and list them in {SKIPPED_FILE}",
    )


def run(args: argparse.Namespace) -> int:
    """Import captions, or check a data directory and fill the cache of images or write shards."""
    if args.shards:
        return _write_shards(args)
    return _fill_cache(args) if args.sources is None else _import(args)


def _fill_cache(args: argparse.Namespace) -> int:
    geometry = _geometry(args)
    for finding in check_counts(args.data):
        print(f"note: {finding}", file=sys.stderr)
    for name in split_names(args.data):
        split = read_split(args.data, name)
        fitted_images(split, geometry, args.cache, args.frames_per_clip if split.of_clips else None)
        print(_describe(split))
    return 0


def _geometry(args: argparse.Namespace) -> ImageGeometry:
    try:
        return ImageGeometry(size_px=args.size_px, fit=args.fit)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise DataError(f"--size-px is {args.size_px}: {reason}") from None


def _write_shards(args: argparse.Namespace) -> int:
    if args.data is None or args.images_per_shard < 1:
        raise DataError("--shards expects --data DIR and 1 image per shard or more: name them")
    for split in write_shards(args.data, args.shards, images_per_shard=args.images_per_shard):
        print(_describe(split))
    return 0


def _import(args: argparse.Namespace) -> int:
    """Write the directory, then let the doctor see it."""
    folder = _image_folder(args)
    _refuse_incomplete(args, folder)
    images = ImageFolder(folder)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{args.out.name}.", dir=args.out.parent) as unpacked:
        staging = Staging(Path(unpacked))
        keys = FieldNames(args.image_key, tuple(args.caption_key), args.split_key)
        parsed = read_sources(
            [Source(path, images, staging, keys, args.encoding) for path in args.sources],
            args.format,
        )
        print("\n".join(parsed.notes))
        imported = import_records(
            parsed, images, args.out, staging, chance=_chance(args), skip_bad=args.skip_bad
        )
    print("\n".join(imported.report))
    return diagnose(args.out, pixel_hashes=imported.hashes)


def _image_folder(args: argparse.Namespace) -> Path | None:
    """Take the folder that was named, or the folder that holds captions and images alike."""
    if args.images is None and len(args.sources) == 1:
        source: Path = args.sources[0]
        if source.is_dir():
            return source
        if source.suffix.lower() in {".parquet", ".tar"}:
            return source.parent
    folder: Path | None = args.images
    return folder


def _chance(args: argparse.Namespace) -> Chance | None:
    if args.dev_share is None and args.seed is None:
        return None
    share = DEV_SHARE if args.dev_share is None else args.dev_share
    return Chance(share, 1 if args.seed is None else args.seed)


def _refuse_incomplete(args: argparse.Namespace, folder: Path | None) -> None:
    for source in args.sources:
        if not source.exists():
            raise DataError(f"{source} does not exist: name the file of captions, or its folder")
    if folder is None or args.out is None:
        raise DataError("--from expects --images FOLDER and --out DIR as well: name both")
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name the folder that holds the images")
    if args.out.exists():
        raise DataError(f"{args.out} exists: name a new directory, or remove it first")
    if args.dev_share is not None and not 0 < args.dev_share < 1:
        raise DataError(f"--dev-share is {args.dev_share:g}: expected a number between 0 and 1")


def _describe(split: Split) -> str:
    texts = [text for example in split.examples for text in example.captions]
    captions = list(map(tokeniser(fitting(texts)).tokenise, texts))
    words = Counter(word for caption in captions for word in caption)
    mean = sum(words.values()) / len(captions)
    frequent = sum(count >= 5 for count in words.values())
    return (
        f"{split.name}: {len(split.examples)} images, {len(captions)} captions of {mean:.1f} "
        f"words, {len(words)} words, {frequent} of them at least 5 times, "
        f"sha256 {split.sha256[:12]}"
    )
