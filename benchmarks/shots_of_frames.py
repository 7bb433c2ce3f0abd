"""Is a shot told better by several of its frames than by the one in the middle?

Each dev photo becomes a shot of several frames, by a camera that pans over it, that jumps about in
it, that is out of focus, and that has little light. The frames are told in three ways:

- middle: the frame in the middle alone, as a photo;
- mean of grids: the features of the frames, averaged region by region;
- all regions: the regions of all frames side by side, for attention to choose from, as
  `Captioner.caption_frames` does.

CIDEr is that of the photo's own captions; the difference to the middle has a paired bootstrap.

Run: .venv/bin/python benchmarks/shots_of_frames.py --data flickr8k --photos 300
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from tqdm import tqdm

import result
from app.captioner import checkpoint
from app.captioner.captions import to_captions
from app.captioner.checkpoint import Checkpoint
from app.captioner.engines.folding import folded_encoder
from app.captioner.engines.torch_engine import TorchEngine, stacked
from app.captioner.image.decode import Pixels
from app.captioner.image.fit import fit
from app.captioner.manifest import ImageGeometry
from app.captioner.model import torch_checkpoint
from app.captioner.search import always_waiting
from shipped import SHIPPED
from trainer.data.flickr8k import Example, read_split
from trainer.scoring.scores import image_ciders

MIDDLE, MEAN, ALL = "middle", "mean of grids", "all regions"
WAYS = (MIDDLE, MEAN, ALL)
RESAMPLES = 2000
Chance = np.random.Generator
Frames = list[Image.Image]


def panned(photo: Image.Image, count: int, chance: Chance) -> Frames:
    """Move a window of two thirds of the width over the photo, from one side to the other."""
    wide, high = photo.size
    lefts = np.linspace(0, wide / 3, count)
    if chance.random() < 0.5:
        lefts = lefts[::-1]
    top = chance.uniform(0, high / 6)
    return [photo.crop(_box(left, top, wide * 2 / 3, high * 5 / 6)) for left in lefts]


def cropped(photo: Image.Image, count: int, chance: Chance) -> Frames:
    """Look at windows of half to all of the photo, at places by chance."""
    frames = []
    for share in chance.uniform(0.5, 1, count):
        wide, high = photo.width * share, photo.height * share
        left, top = chance.uniform(0, photo.width - wide), chance.uniform(0, photo.height - high)
        frames.append(photo.crop(_box(left, top, wide, high)))
    return frames


def blurred(photo: Image.Image, count: int, chance: Chance) -> Frames:
    """Lose focus: a Gaussian of up to a fortieth of the width."""
    radii_px = chance.uniform(0, photo.width / 40, count).tolist()
    return [photo.filter(ImageFilter.GaussianBlur(radius)) for radius in radii_px]


def noisy(photo: Image.Image, count: int, chance: Chance) -> Frames:
    """Lack light: Gaussian noise of up to a third of the range, at half the brightness."""
    pixels_HWC = np.asarray(photo, np.float32) * 0.5
    frames = []
    for spread in chance.uniform(0, 80, count):
        seen_HWC = pixels_HWC + chance.normal(0, spread, pixels_HWC.shape)
        frames.append(Image.fromarray(seen_HWC.clip(0, 255).astype(np.uint8)))
    return frames


CAMERAS: Mapping[str, Callable[[Image.Image, int, Chance], Frames]] = {
    "pan": panned,
    "crops": cropped,
    "blur": blurred,
    "noise": noisy,
}


class Row(NamedTuple):
    """What one way is worth.

    Attributes:
        cider: mean over photos.
        gain: mean over photos of the difference to the frame in the middle.
        low: of its 95 % interval.
        high: of its 95 % interval.
    """

    cider: float
    gain: float
    low: float
    high: float


class Teller:
    """A checkpoint that tells shots in all ways.

    F frames of a shot, R regions, D feature width, S side of the square
    """

    def __init__(self, loaded: Checkpoint) -> None:
        self._network = torch_checkpoint.of(loaded).network
        self._encoder = folded_encoder(self._network.encoder, torch.float32)
        self._engine = TorchEngine(self._network, loaded.manifest.search)
        self._vocabulary = loaded.vocabulary

    def told(self, squares: Sequence[Pixels]) -> dict[str, str]:
        """Tell a shot, by way."""
        with torch.inference_mode():
            features_FRD = self._encoder(stacked(squares, self._network))
        return {
            MIDDLE: self._said(features_FRD[len(squares) // 2]),
            MEAN: self._said(features_FRD.mean(0)),
            ALL: self._said(features_FRD),
        }

    def _said(self, features: Tensor) -> str:
        """Caption ``features_RD`` of a photo, or ``features_FRD`` of a shot."""
        beams = self._engine.search(features.unsqueeze(0), always_waiting)
        ((best, *_),) = to_captions(beams, self._vocabulary)
        return best.text


def shots(
    example: Example, geometry: ImageGeometry, count: int, chance: Chance
) -> dict[str, list[Pixels]]:
    """Give the frames of a photo's shots as squares, by camera."""
    if not isinstance(example.path, Path):
        raise TypeError("give an image folder, not shards")
    with Image.open(example.path) as opened:
        photo = opened.convert("RGB")
    return {
        name: [_square(frame, geometry) for frame in take(photo, count, chance)]
        for name, take in CAMERAS.items()
    }


def row(
    ciders: Mapping[str, float], middle: Mapping[str, float], resamples: int = RESAMPLES
) -> Row:
    """Compare one way with the frame in the middle, photo by photo."""
    gains_N = np.array([ciders[photo] - middle[photo] for photo in middle])
    chance = np.random.default_rng(1)
    drawn = chance.integers(0, len(gains_N), (resamples, len(gains_N)))
    low, high = np.percentile(gains_N[drawn].mean(1), [2.5, 97.5])
    mean = float(np.mean(list(ciders.values())))
    return Row(mean, float(gains_N.mean()), float(low), float(high))


def rows(
    told: Mapping[str, Mapping[str, Mapping[str, str]]], references: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Row]]:
    """Score all ways, by camera and for all cameras together."""
    ciders = {
        camera: {way: image_ciders(said, references) for way, said in by_way.items()}
        for camera, by_way in told.items()
    }
    ciders["all"] = {way: _joined(ciders, way) for way in WAYS}
    return {
        camera: {way: row(found, by_way[MIDDLE]) for way, found in by_way.items()}
        for camera, by_way in ciders.items()
    }


def _joined(ciders: Mapping[str, Mapping[str, Mapping[str, float]]], way: str) -> dict[str, float]:
    return {
        f"{camera} {photo}": cider
        for camera, by_way in ciders.items()
        for photo, cider in by_way[way].items()
    }


def table_of(found: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Give the lines of a Markdown table."""
    lines = ["| camera | way | CIDEr | gain over the middle (95 % interval) |", "|---|---|---|---|"]
    for camera, by_way in found.items():
        for way, each in by_way.items():
            gain = f"{each.gain:+.3f} ({each.low:+.3f} to {each.high:+.3f})"
            gain = "" if way == MIDDLE else gain
            lines.append(f"| {camera} | {way} | {each.cider:.3f} | {gain} |")
    return lines


def _box(left: float, top: float, wide: float, high: float) -> tuple[int, int, int, int]:
    return round(left), round(top), round(left + wide), round(top + high)


def _square(frame: Image.Image, about: ImageGeometry) -> npt.NDArray[np.uint8]:
    pixels_HWC = np.asarray(frame)
    return fit(pixels_HWC, size_px=about.size_px, how=about.fit, resampling=about.resampling)


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory in Flickr8k's layout")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--photos", type=int, default=300, help="the first so many of the split")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    result.add_output(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = checkpoint.load(args.checkpoint)
    teller, chance = Teller(loaded), np.random.default_rng(1)
    told: dict[str, dict[str, dict[str, str]]] = {
        camera: {way: {} for way in WAYS} for camera in CAMERAS
    }
    examples = read_split(args.data, args.split).examples[: args.photos]
    for example in tqdm(examples, "photos"):
        for camera, squares in shots(example, loaded.manifest.image, args.frames, chance).items():
            for way, text in teller.told(squares).items():
                told[camera][way][example.image] = text
    references = {example.image: example.captions for example in examples}
    found = rows(told, references)
    line = {
        "benchmark": "shots_of_frames",
        "photos": len(examples),
        "frames": args.frames,
        "cider": {
            camera: {way: each._asdict() for way, each in by_way.items()}
            for camera, by_way in found.items()
        },
    }
    result.report(table_of(found), line, args.output, markdown=True)


if __name__ == "__main__":
    main()
