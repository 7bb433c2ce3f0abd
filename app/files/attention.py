"""A photo and its caption -> a picture: for each word the photo, lit where the network looked."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from app.captioner.captions import Caption, Word
    from app.captioner.image.decode import Pixels

_SIDE_PX = 224
_LINE_PX = 24
_COLUMNS = 5
_DARKEST = 0.25
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


def picture(square: "Pixels", caption: "Caption") -> Image.Image:
    """Draw a tile for the photo and one for each word of its caption.

    Args:
        square: uint8 ``(S, S, 3)``, the photo as the network sees it.
        caption: with the attention of its words.

    Raises:
        ValueError: the checkpoint has no attention.
    """
    if any(word.attention is None for word in caption.words):
        raise ValueError("this checkpoint's decoder has no attention: there is nothing to draw")
    if any(np.asarray(word.attention).shape[:1] == (1,) for word in caption.words):
        raise ValueError("this checkpoint attends to frames, not to places: there is none to draw")
    photo = Image.fromarray(square).resize((_SIDE_PX, _SIDE_PX))
    tiles = [(photo, caption.text), *((_lit(photo, word), _told(word)) for word in caption.words)]
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * _SIDE_PX, rows * (_SIDE_PX + _LINE_PX)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, (tile, text) in enumerate(tiles):
        x, y = index % columns * _SIDE_PX, index // columns * (_SIDE_PX + _LINE_PX)
        sheet.paste(tile, (x, y))
        draw.text((x + 4, y + _SIDE_PX + 4), _fitting(draw, text, font), fill=_INK, font=font)
    return sheet


def write(path: Path, square: "Pixels", caption: "Caption") -> None:
    """Write the picture; the format is that of the name.

    Raises:
        ValueError: the checkpoint has no attention, or the name says no format.
        OSError: the file cannot be written.
    """
    picture(square, caption).save(path)


def _lit(photo: Image.Image, word: "Word") -> Image.Image:
    """Darken the photo where the word did not look."""
    attention: npt.NDArray[np.float32] = np.asarray(word.attention)
    share = attention / max(float(attention.max()), 1e-9)
    mask = Image.fromarray((255 * share).astype(np.uint8))
    weight = np.asarray(mask.resize(photo.size, Image.Resampling.BICUBIC), np.float32) / 255
    light = _DARKEST + (1 - _DARKEST) * weight[..., None]
    return Image.fromarray((np.asarray(photo) * light).clip(0, 255).astype(np.uint8))


def _told(word: "Word") -> str:
    language = "" if word.sentinel is None else f", language {word.sentinel:.0%}"
    return f"{word.text}  {np.exp(word.log_prob):.0%}{language}"


def _fitting(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    """Cut a text that is wider than a tile."""
    while draw.textlength(text, font) > _SIDE_PX - 8:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
