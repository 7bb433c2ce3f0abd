"""Images with captions, shared out among splits -> a directory in the official layout.

Images become hard links: they cost no bytes, survive a move of the folder they came from, and work
inside a container, where a symbolic link points nowhere. Across file systems they are copied.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from trainer.data.flickr8k import IMAGE_FOLDERS, TOKEN_FILE
from trainer.importing.items import Item


def write_layout(splits: Mapping[str, list[Item]], out: Path) -> None:
    """Write the official layout, under another name until it is complete."""
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    folder = unfinished / IMAGE_FOLDERS[0]
    folder.mkdir(parents=True)
    items = [item for of in splits.values() for item in of]
    for item in items:
        _link(item.path, folder / item.name)
    (unfinished / TOKEN_FILE).write_text("".join(map(_token_lines, items)), encoding="utf-8")
    for split, of in splits.items():
        names = "".join(f"{item.name}\n" for item in of)
        (unfinished / f"Flickr_8k.{split}Images.txt").write_text(names, encoding="utf-8")
    unfinished.rename(out)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _token_lines(item: Item) -> str:
    numbered = enumerate(item.captions)
    return "".join(f"{item.name}#{number}\t{caption}\n" for number, caption in numbered)
