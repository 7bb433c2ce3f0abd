"""Pictures that are no photos: nothing that is said of them is right.

They are drawn by chance: pages of text, charts, patterns, noise, icons, plans of windows.
"""

import colorsys
import string
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.captioner.image.decode import Pixels

_SIDE_PX = 224
Drawing = ImageDraw.ImageDraw
Chance = np.random.Generator


def no_photos(
    count: int, *, size_px: int, seed: int = 1, kinds: slice = slice(None)
) -> list[Pixels]:
    """Draw pictures of all kinds in turn.

    Args:
        count: how many.
        size_px: S.
        seed: of chance.
        kinds: which of them.

    Returns:
        uint8 ``(S, S, 3)`` each.
    """
    chance = np.random.default_rng(seed)
    draws = _KINDS[kinds]
    pictures = (draws[n % len(draws)](chance) for n in range(count))
    return [np.asarray(each.convert("RGB").resize((size_px, size_px))) for each in pictures]


def _blank(chance: Chance, *, light: bool | None = None) -> tuple[Image.Image, Drawing]:
    light = bool(chance.random() < 0.7) if light is None else light
    image = Image.new("RGB", (_SIDE_PX, _SIDE_PX), _shade(chance, light=light))
    return image, ImageDraw.Draw(image)


def _shade(chance: Chance, *, light: bool) -> tuple[int, int, int]:
    low, high = (225, 256) if light else (5, 60)
    return tuple(int(each) for each in chance.integers(low, high, 3))  # type: ignore[return-value]


def _colour(chance: Chance) -> tuple[int, int, int]:
    hue, saturation, value = chance.random(), 0.3 + 0.7 * chance.random(), chance.random()
    return tuple(int(255 * each) for each in colorsys.hsv_to_rgb(hue, saturation, value))  # type: ignore[return-value]


def _between(chance: Chance, low: float, high: float) -> int:
    return int(chance.integers(int(low), max(int(low) + 1, int(high))))


def _word(chance: Chance) -> str:
    letters = chance.choice(list(string.ascii_lowercase), _between(chance, 2, 10))
    return "".join(letters.tolist())


def _font(chance: Chance, low: int = 8, high: int = 22) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(_between(chance, low, high))  # type: ignore[return-value]


def _page(chance: Chance) -> Image.Image:
    image, draw = _blank(chance)
    font, left = _font(chance), _between(chance, 4, 30)
    ink = _shade(chance, light=sum(image.getpixel((0, 0))) < 384)  # type: ignore[arg-type]
    y = _between(chance, 4, 30)
    while y < _SIDE_PX - 8:
        line = " ".join(_word(chance) for _ in range(_between(chance, 2, 9)))
        draw.text((left, y), line.capitalize(), fill=ink, font=font)
        y += int(font.size * (1.2 + 0.8 * chance.random()))
    return image


def _title(chance: Chance) -> Image.Image:
    image, draw = _blank(chance)
    for _ in range(_between(chance, 1, 4)):
        place = _between(chance, 0, 120), _between(chance, 0, 190)
        draw.text(place, _word(chance).upper(), fill=_colour(chance), font=_font(chance, 24, 60))
    return image


def _bars(chance: Chance) -> Image.Image:
    image, draw = _blank(chance)
    count = _between(chance, 3, 12)
    wide, colour = 190 / count, _colour(chance)
    for n in range(count):
        top = _between(chance, 20, 190)
        fill = colour if chance.random() < 0.6 else _colour(chance)
        draw.rectangle((22 + n * wide, top, 22 + (n + 0.7) * wide, 200), fill=fill)
    _axes(draw, chance)
    return image


def _axes(draw: Drawing, chance: Chance) -> None:
    draw.line((20, 10, 20, 200, 216, 200), fill=(40, 40, 40), width=_between(chance, 1, 3))
    font = _font(chance, 7, 12)
    for n in range(_between(chance, 2, 7)):
        draw.text((30 + n * 30, 204), str(_between(chance, 0, 1000)), fill=(40, 40, 40), font=font)
        draw.text((2, 180 - n * 28), str(_between(chance, 0, 100)), fill=(40, 40, 40), font=font)


def _lines(chance: Chance) -> Image.Image:
    image, draw = _blank(chance)
    for _ in range(_between(chance, 1, 5)):
        points = _between(chance, 5, 60)
        steps = np.cumsum(chance.normal(0, 25 / points**0.5, points)) + _between(chance, 50, 150)
        xs = np.linspace(22, 214, points)
        line = [(float(x), float(np.clip(y, 10, 198))) for x, y in zip(xs, steps, strict=True)]
        draw.line(line, fill=_colour(chance), width=_between(chance, 1, 4))
    _axes(draw, chance)
    return image


def _dots(chance: Chance) -> Image.Image:
    image, draw = _blank(chance)
    for _ in range(_between(chance, 1, 4)):
        colour, radius = _colour(chance), _between(chance, 1, 6)
        centre, spread = chance.uniform(50, 170, 2), chance.uniform(8, 40)
        for x, y in chance.normal(centre, spread, (_between(chance, 10, 120), 2)):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    _axes(draw, chance)
    return image


def _pie(chance: Chance) -> Image.Image:
    image, draw = _blank(chance, light=True)
    ends = np.cumsum(chance.dirichlet(np.ones(_between(chance, 2, 8)))) * 360
    begin = 0.0
    for end in ends:
        draw.pieslice((30, 30, 194, 194), begin, end, fill=_colour(chance), outline="white")
        begin = float(end)
    return image


def _noise(chance: Chance) -> Image.Image:
    grain = int(chance.choice([1, 2, 4, 8, 16, 56]))
    channels = 1 if chance.random() < 0.4 else 3
    side = _SIDE_PX // grain
    values = chance.integers(0, 256, (side, side, channels), dtype=np.uint8)
    image = Image.fromarray(np.broadcast_to(values, (side, side, 3)).copy())
    how = Image.Resampling.BICUBIC if chance.random() < 0.5 else Image.Resampling.NEAREST
    return image.resize((_SIDE_PX, _SIDE_PX), how)


def _gradient(chance: Chance) -> Image.Image:
    first, second = (np.array(_colour(chance)) for _ in range(2))
    ys, xs = np.mgrid[0:1:224j, 0:1:224j]
    angle = chance.uniform(0, 2 * np.pi)
    share = xs * np.cos(angle) + ys * np.sin(angle)
    if chance.random() < 0.3:
        share = np.hypot(xs - chance.random(), ys - chance.random())
    share = (share - share.min()) / max(float(np.ptp(share)), 1e-6) * float(chance.random() > 0.3)
    pixels = first + (second - first) * share[..., None]
    return Image.fromarray(pixels.astype(np.uint8))


def _pattern(chance: Chance) -> Image.Image:
    ys, xs = np.mgrid[0:_SIDE_PX, 0:_SIDE_PX]
    period = chance.uniform(3, 60)
    angle = chance.uniform(0, np.pi)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    across = ys * np.cos(angle) - xs * np.sin(angle)
    kind = _between(chance, 0, 4)
    if kind == 0:
        on = np.sin(2 * np.pi * along / period)
    elif kind == 1:
        on = np.sign(np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period))
    elif kind == 2:
        on = np.sin(2 * np.pi * along / period) + np.sin(2 * np.pi * across / period)
    else:
        centre = chance.uniform(0, _SIDE_PX, 2)
        on = np.sin(2 * np.pi * np.hypot(xs - centre[0], ys - centre[1]) / period)
    share = (on - on.min()) / max(float(np.ptp(on)), 1e-6)
    first, second = (np.array(_colour(chance)) for _ in range(2))
    pixels = first + (second - first) * share[..., None]
    pixels += chance.normal(0, chance.choice([0, 0, 8, 25]), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _icon(chance: Chance) -> Image.Image:
    image, draw = _blank(chance)
    for _ in range(_between(chance, 1, 5)):
        x, y = chance.uniform(20, 130, 2)
        wide, high = chance.uniform(25, 90, 2)
        box = (x, y, x + wide, y + high)
        draws: list[Callable[..., object]] = [draw.ellipse, draw.rectangle, _rounded(draw)]
        shape = draws[_between(chance, 0, 3)]
        shape(box, fill=_colour(chance), outline=_colour(chance), width=_between(chance, 0, 8))
    if chance.random() < 0.5:
        corners = [tuple(each) for each in chance.uniform(20, 200, (_between(chance, 3, 7), 2))]
        draw.polygon(corners, fill=_colour(chance))
    return image


def _rounded(draw: Drawing) -> Callable[..., object]:
    return lambda box, **how: draw.rounded_rectangle(box, radius=12, **how)


def _window(chance: Chance) -> Image.Image:
    image, draw = _blank(chance)
    accent, font = _colour(chance), _font(chance, 7, 13)
    draw.rectangle((0, 0, _SIDE_PX, _between(chance, 12, 34)), fill=accent)
    if chance.random() < 0.6:
        draw.rectangle((0, 30, _between(chance, 30, 70), _SIDE_PX), fill=_shade(chance, light=True))
    for n in range(_between(chance, 3, 9)):
        y = 44 + 20 * n
        draw.rounded_rectangle((76, y, 76 + _between(chance, 40, 140), y + 14), 3, outline=accent)
        draw.text((80, y + 2), f"{_word(chance)} {_word(chance)}", fill=(60, 60, 60), font=font)
        draw.ellipse((8, y, 18, y + 10), fill=_colour(chance))
    return image


def _table(chance: Chance) -> Image.Image:
    image, draw = _blank(chance, light=True)
    columns, rows = _between(chance, 2, 7), _between(chance, 4, 14)
    wide, high, font = 210 / columns, 210 / rows, _font(chance, 7, 12)
    for row in range(rows):
        for column in range(columns):
            x, y = 7 + column * wide, 7 + row * high
            draw.rectangle((x, y, x + wide, y + high), outline=(170, 170, 170))
            said = _word(chance) if column == 0 or row == 0 else str(_between(chance, 0, 9999))
            draw.text((x + 3, y + 2), said, fill=(30, 30, 30), font=font)
    return image


def _sketch(chance: Chance) -> Image.Image:
    image, draw = _blank(chance)
    for _ in range(_between(chance, 3, 14)):
        points = np.cumsum(chance.normal(0, 12, (_between(chance, 4, 30), 2)), 0)
        points += chance.uniform(30, 190, 2)
        draw.line(
            [tuple(each) for each in points], fill=_colour(chance), width=_between(chance, 1, 5)
        )
    return image


_KINDS: tuple[Callable[[Chance], Image.Image], ...] = (
    _page,
    _bars,
    _noise,
    _icon,
    _gradient,
    _lines,
    _pattern,
    _window,
    _title,
    _dots,
    _table,
    _pie,
    _sketch,
)
