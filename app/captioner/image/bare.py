"""What is common to all formats: a file with only what its pixels need, and how one is refused."""

from typing import NamedTuple

from app.captioner.errors import UndecodableImage


class Bare(NamedTuple):
    """A file with only what its pixels need.

    Attributes:
        file: what a decoder is given.
        exif: what was cut out of it.
        scans: how often a decoder walks over the picture, in walks of Huffman's code.
        is_sequential: whether it is a JPEG in one scan of Huffman's code, which is scaled down
            while it is decoded, and takes a few rows of memory.
        bits: of a pixel, where it has fewer than eight.
        is_cut: whether it is a JPEG that ends before its end, and got a mark there.
    """

    file: bytes
    exif: bytes
    scans: int = 1
    is_sequential: bool = False
    bits: int = 8
    is_cut: bool = False


def damaged() -> UndecodableImage:
    """Make the error whose text tells nothing."""
    return UndecodableImage("the image is damaged or incomplete")
