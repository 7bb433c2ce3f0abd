"""Captions with their images and heat maps -> HTML.

S side of the network's square
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.captioner.captions import Caption, Word
from app.captioner.image.decode import Pixels

_HOT = (255, 90, 0)
_SHOWN_PX = 224


@dataclass(frozen=True)
class Card:
    """One image with what was said of it.

    Attributes:
        image: its name.
        square_SS3: uint8, what the network saw.
        caption: what it said.
        references: what people said.
        cider: of this caption alone.
    """

    image: str
    square_SS3: Pixels
    caption: Caption
    references: Sequence[str]
    cider: float


def card_html(card: Card) -> str:
    """Show image, caption, references and, for each word, where the network looked."""
    picture = data_uri(_picture(card.square_SS3), "JPEG")
    key = "i" + base64.b16encode(card.image.encode()).decode()
    references = "".join(f"<li>{escape(text)}</li>" for text in card.references)
    words = "".join(_word_html(word, key) for word in card.caption.words)
    return (
        f"<style>.{key}{{background-image:url({picture})}}</style>"
        f'<article><div class="photo {key}" role="img" aria-label="{escape(card.image)}"></div>'
        f"<div><h3>{escape(card.caption.text)}</h3><p>{escape(card.image)}, CIDEr "
        f"{card.cider:.2f}, log-probability {card.caption.log_prob:.2f}</p>"
        f"<ul>{references}</ul></div>"
        f'<div class="words">{words}</div></article>'
    )


def heat_map(attention: npt.NDArray[np.float32]) -> Image.Image:
    """Turn attention into a see-through picture of one pixel per region; the most is opaque."""
    peak = float(attention.max())
    share = attention / peak if peak > 0 else attention
    pixels = np.zeros((*attention.shape, 4), dtype=np.uint8)
    pixels[..., :3] = _HOT
    pixels[..., 3] = (210 * share).round().astype(np.uint8)
    return Image.fromarray(pixels)


def data_uri(picture: Image.Image, kind: str) -> str:
    """Put a picture into the page itself."""
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _picture(square_SS3: Pixels) -> Image.Image:
    picture = Image.fromarray(square_SS3)
    return picture.resize((_SHOWN_PX, _SHOWN_PX)) if picture.width > _SHOWN_PX else picture


def _word_html(word: Word, key: str) -> str:
    said = f"{math.exp(word.log_prob):.2f}"
    if word.attention is None:
        return f"<figure><figcaption>{escape(word.text)}<br>{said}</figcaption></figure>"
    sentinel = "" if word.sentinel is None else f", language {word.sentinel:.2f}"
    return (
        f'<figure><div class="map {key}"><img alt="where the network looked for '
        f'{escape(word.text)}" src="{data_uri(heat_map(word.attention), "PNG")}"></div>'
        f"<figcaption>{escape(word.text)}<br>{said}{sentinel}</figcaption></figure>"
    )
