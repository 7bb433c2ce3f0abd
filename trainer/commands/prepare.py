"""The verb ``prepare``: captions imported, or a data directory checked, then cached or sharded."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from app.captioner.manifest import ImageGeometry
from app.captioner.vocabulary import tokenise
from trainer.checks.diagnosis import diagnose
from trainer.data.arrays import fitted_images
from trainer.data.flickr8k import Split, check_counts, read_split, split_names
from trainer.data.records import FieldNames
from trainer.data.sharding import write_shards
from trainer.errors import DataError
from trainer.importing.formats import READERS, kind_of, read_source
from trainer.importing.import_records import import_records
from trainer.importing.splitting import DEV_SHARE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``prepare``."""
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--data", type=Path, help="directory in Flickr8k's layout, to be cached")
    origin.add_argument(
        "--from", type=Path, dest="source", metavar="FILE", help="captions to be imported"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where arrays go")
    parser.add_argument("--size-px", type=int, default=224, help="side of the network's square")
    parser.add_argument("--fit", choices=["squeeze", "crop", "pad"], default="squeeze")
    parser.add_argument("--shards", type=Path, metavar="DIR", help="write shards, cache nothing")
    parser.add_argument("--images-per-shard", type=int, default=1000, metavar="N")
    _add_import_arguments(parser.add_argument_group("with --from"))


def _add_import_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--images", type=Path, metavar="FOLDER", help="where the images lie")
    group.add_argument("--out", type=Path, metavar="DIR", help="new directory in Flickr8k's layout")
    group.add_argument("--format", choices=[*READERS], help="in place of the file's suffix")
    group.add_argument("--image-key", default="image", help="column or key of the image's name")
    group.add_argument("--caption-key", default="caption", help="column or key of the caption")
    group.add_argument("--split-key", default="split", help="column or key of the split, optional")
    group.add_argument("--dev-share", type=float, metavar="SHARE", help=f"default {DEV_SHARE}")
    group.add_argument("--seed", type=int, help="of the split by chance, default 1")


def run(args: argparse.Namespace) -> int:
    """Import captions, or check a data directory and fill the cache of images or write shards."""
    if args.shards:
        return _write_shards(args)
    return _fill_cache(args) if args.source is None else _import(args)


def _fill_cache(args: argparse.Namespace) -> int:
    for finding in check_counts(args.data):
        print(f"note: {finding}", file=sys.stderr)
    geometry = ImageGeometry(size_px=args.size_px, fit=args.fit)
    for name in split_names(args.data):
        split = read_split(args.data, name)
        fitted_images(split, geometry, args.cache)
        print(_describe(split))
    return 0


def _write_shards(args: argparse.Namespace) -> int:
    if args.data is None or args.images_per_shard < 1:
        raise DataError("--shards expects --data DIR and 1 image per shard or more: name them")
    for split in write_shards(args.data, args.shards, images_per_shard=args.images_per_shard):
        print(_describe(split))
    return 0


def _import(args: argparse.Namespace) -> int:
    """Write the directory, then let the doctor see it."""
    _refuse_incomplete(args)
    kind = args.format or kind_of(args.source)
    print(f"{args.source} is read as {kind}")
    keys = FieldNames(args.image_key, args.caption_key, args.split_key)
    records = read_source(args.source, kind, keys)
    report = import_records(
        records, args.images, args.out, dev_share=args.dev_share, seed=args.seed
    )
    print("\n".join(report))
    return diagnose(args.out)


def _refuse_incomplete(args: argparse.Namespace) -> None:
    if args.images is None or args.out is None:
        raise DataError("--from expects --images FOLDER and --out DIR as well: name both")
    if not args.images.is_dir():
        raise DataError(f"{args.images} is no folder: name the folder that holds the images")
    if args.out.exists():
        raise DataError(f"{args.out} exists: name a new directory, or remove it first")
    if args.dev_share is not None and not 0 < args.dev_share < 1:
        raise DataError(f"--dev-share is {args.dev_share:g}: expected a number between 0 and 1")


def _describe(split: Split) -> str:
    captions = [tokenise(text) for example in split.examples for text in example.captions]
    words = Counter(word for caption in captions for word in caption)
    mean = sum(words.values()) / len(captions)
    frequent = sum(count >= 5 for count in words.values())
    return (
        f"{split.name}: {len(split.examples)} images, {len(captions)} captions of {mean:.1f} "
        f"words, {len(words)} words, {frequent} of them at least 5 times, "
        f"sha256 {split.sha256[:12]}"
    )
