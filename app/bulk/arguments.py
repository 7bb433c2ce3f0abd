"""The arguments of the verb `bulk`; imports nothing heavy, for every verb reads them."""

import argparse

from app.files.arguments import add_telling, count

_ROWS_PER_FILE = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folders, patterns, .tar and .parquet files; paths, or file://, s3://, gs://",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="path or address; a later run does the rest"
    )
    parser.add_argument("--format", choices=("parquet", "jsonl"), default="parquet")
    parser.add_argument("--column", metavar="NAME", help="of Parquet: bytes, URLs or paths")
    parser.add_argument(
        "--rows-per-file",
        type=count,
        default=_ROWS_PER_FILE,
        metavar="N",
        help=f"photos of a file of captions; default: {_ROWS_PER_FILE}",
    )
    add_telling(parser)
    parser.add_argument("--ray", metavar="ADDRESS", help="host:port of a cluster, auto, or local")
    parser.add_argument(
        "--workers", type=count, metavar="N", help="on Ray; default: all it has room for"
    )
