"""Take the screenshots of the page anew: docs/img/page*.png.

The photos are drawings of ours: the dog of docs/img/dog.jpg, set before other grounds.

Run: PYTHONPATH=.:tests .venv/bin/python .ci/screenshots.py
"""

import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from skimage.measure import label

from app.settings import Settings
from support.chromium import Chromium, chromium
from support.clips import video
from support.service_process import Process

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs/img"
MOST_BYTES = 200_000
SKY = (160, 200, 235)
GROUNDS = {"snow": (238, 243, 250), "sand": (222, 196, 150), "water": (70, 150, 190)}
DRAWINGS = {  # file: ground, what is added to the colours of the dog
    "brown-dog-in-snow.jpg": ("snow", (120, 75, 30)),
    "dog-in-water.jpg": ("water", (0, 0, 0)),
    "dog-on-sand.jpg": ("sand", (0, 0, 0)),
    "dog-in-snow.jpg": ("snow", (0, 0, 0)),
}
SHOWN = "dog-on-sand.jpg"
CLIP_NAME = "dog-on-its-way.webm"
CLIP = ("water", "sand", "snow")
CLIP_SIDES = (640, 480)
SHOT_S, FPS = 4, 10


def draw(ground: str, colour: tuple[int, int, int]) -> Image.Image:
    """Set the dog before another ground."""
    dog = np.asarray(Image.open(IMAGES / "dog.jpg").convert("RGB"), np.float32)
    height, width = dog.shape[:2]
    rows = np.linspace(0, 1, height)[:, None, None]
    below = rows > 0.25
    bare = np.where(below, GROUNDS[ground], SKY) * (0.9 + 0.15 * rows)
    scene = np.broadcast_to(bare, dog.shape) + below * _grain(width, height)
    grey = np.minimum(dog.mean(-1, keepdims=True), 80) + np.array(colour)
    mask = _mask(dog)
    mixed = scene * (1 - mask) + grey * mask
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _mask(dog: np.ndarray) -> np.ndarray:
    """Find the dog, the largest dark thing, and soften its edge."""
    dark = Image.fromarray(np.uint8(255) * (dog.max(-1) < 75))
    for _ in range(2):
        dark = dark.filter(ImageFilter.MedianFilter(7))
    things = label(np.asarray(dark) > 0)
    largest = np.bincount(things.flat)[1:].argmax() + 1
    soft = Image.fromarray(np.uint8(255) * (things == largest)).filter(
        ImageFilter.GaussianBlur(1.2)
    )
    return np.asarray(soft, np.float32)[..., None] / 255


def _grain(width: int, height: int) -> np.ndarray:
    dice = np.random.default_rng(0)
    grain = np.zeros((height, width))
    for size_px in (5, 12, 40):
        coarse = dice.normal(128, 40, (height // size_px + 1, width // size_px + 1))
        small = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
        grain += np.asarray(small.resize((width, height)), np.float32) / 128 - 1
    return 14 * grain[..., None]


def show(browser: Chromium, url: str, photos: list[Path], word: str) -> None:
    """Have the photos captioned, and point at a word of one of them."""
    browser.get(url)
    browser.wait_for("#health[data-state=ready]")
    browser.one("#files").send_keys("\n".join(map(str, photos)))
    browser.wait_for("#history-list [data-state=done]", len(photos))
    for each in browser.all("#history-list button"):
        if SHOWN in each.text:
            browser.execute_script("arguments[0].click()", each)  # the pointer stays away
    for each in browser.all("#sentence button"):
        if each.text == word:
            browser.execute_script("arguments[0].focus({ preventScroll: true })", each)
    browser.execute_script("scrollTo(0, 0)")
    time.sleep(1)  # what moves comes to rest


def film(place: Path) -> Path:
    """Make a video of some drawings, a few seconds each, of a kind that Chromium plays."""
    drawn = [np.asarray(draw(ground, (0, 0, 0)).resize(CLIP_SIDES)) for ground in CLIP]
    pictures = [each for picture in drawn for each in [picture] * (SHOT_S * FPS)]
    path = place / CLIP_NAME
    path.write_bytes(video(pictures, fps=FPS, kind="webm", codec="libvpx", b="2M"))
    return path


def show_clip(browser: Chromium, url: str, clip: Path) -> None:
    """Have a clip described, and go to its second shot."""
    browser.get(url)
    browser.wait_for("#health[data-state=ready]")
    browser.one("#files").send_keys(str(clip))
    browser.wait_for("#history-list [data-state=done]")
    browser.wait_until("document.getElementById('clip').readyState >= 1")
    browser.execute_script("arguments[0].click()", browser.all("#shots button")[1])
    browser.wait_for("li:nth-child(2) > .shot[aria-current]")
    browser.execute_script("scrollTo(0, 0)")
    time.sleep(1)  # what moves comes to rest


def shoot(browser: Chromium, name: str) -> None:
    """Write what is seen, each colour rounded a little: that halves a photo as PNG."""
    seen = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    seen.point(lambda value: min(255, (value + 2) // 4 * 4)).save(IMAGES / name, optimize=True)
    size = (IMAGES / name).stat().st_size
    print(f"{name}: {seen.width}x{seen.height}, {size} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"{name} has {size} bytes, expected at most {MOST_BYTES}")


def main() -> None:
    """Start a service and a browser, and take them all."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        photos = [IMAGES / "dog.jpg"]
        for name, (ground, colour) in DRAWINGS.items():
            photos.append(place / name)
            draw(ground, colour).save(photos[-1], quality=90)
        photos.reverse()
        with (
            Process(ROOT / Settings().checkpoint, place) as service,
            chromium(place / "profile") as browser,
        ):
            service.wait_for("/readyz", 200)
            for name, dark, width, height in (
                ("page.png", False, 1280, 800),
                ("page-dark.png", True, 1280, 800),
                ("page-phone.png", False, 390, 844),
            ):
                browser.look(dark=dark, width=width, height=height)
                show(browser, service.url, photos, "dog")
                shoot(browser, name)
            browser.look(width=1280, height=620)
            show_clip(browser, service.url, film(place))
            shoot(browser, "page-clip.png")


if __name__ == "__main__":
    main()
