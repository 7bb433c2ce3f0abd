r"""Does a network read the order of frames? A set of clips whose captions hang on it, and a score.

In each clip a shape moves to one side, up or down, grows or shrinks: "the red square moves left".
A clip that moves left is one that moves right, backwards: without the order of the frames the two
cannot be told apart, and a caption is right in one of two cases. The split `shuffled` holds the
clips of `test` with their frames in an order by chance.

Run: .venv/bin/python benchmarks/moving_shapes.py make shapes
     .venv/bin/python -m trainer fit trainer/recipes/moving-shapes.toml --data shapes \
         --run runs/lstm
     .venv/bin/python benchmarks/moving_shapes.py score runs/lstm/best --data shapes
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

import result
from app.captioner.pipeline import Captioner
from trainer.data.flickr8k import IMAGE_FOLDERS, TOKEN_FILE, read_split
from trainer.evaluation.captioning import caption_split, caption_texts

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "white": (245, 245, 245),
}
SHAPES = ("square", "circle", "triangle")
MOVES = ("moves left", "moves right", "moves up", "moves down", "grows", "shrinks")
SPLITS = {"train": 1200, "dev": 150, "test": 300}
SHUFFLED = "shuffled"
_DRAWN = 4
"""So many times larger shapes are drawn, and then made smaller: edges are smooth."""
Chance = np.random.Generator


class Clip(NamedTuple):
    """What is drawn.

    Attributes:
        colour: a name of `COLOURS`.
        shape: of `SHAPES`.
        move: of `MOVES`.
    """

    colour: str
    shape: str
    move: str

    @property
    def caption(self) -> str:
        """Say it."""
        return f"the {self.colour} {self.shape} {self.move}"


def path_of(move: str, frames: int, chance: Chance) -> np.ndarray:
    """Give place and half width of a shape in every frame, ``(F, 3)``, as parts of the side.

    Paths of opposite moves differ in their direction alone.
    """
    along = np.linspace(0, 1, frames)[:, None]
    radius = chance.uniform(0.1, 0.18)
    begin, end = np.array([chance.uniform(0.2, 0.8), chance.uniform(0.2, 0.8), radius]), None
    end = begin.copy()
    if move in {"grows", "shrinks"}:
        begin[2], end[2] = chance.uniform(0.06, 0.1), chance.uniform(0.24, 0.34)
    else:
        axis = 0 if move in {"moves left", "moves right"} else 1
        begin[axis], end[axis] = chance.uniform(0.15, 0.3), chance.uniform(0.7, 0.85)
    path = begin + (end - begin) * along
    return path[::-1] if move in {"moves left", "moves up", "shrinks"} else path


def frames_of(clip: Clip, count: int, size_px: int, chance: Chance) -> list[Image.Image]:
    """Draw a clip, on a dark ground with some noise."""
    ground = tuple(int(each) for each in chance.integers(10, 70, 3))
    shade = chance.uniform(0.85, 1)
    colour = tuple(int(each * shade) for each in COLOURS[clip.colour])
    frames = []
    for x, y, radius in path_of(clip.move, count, chance) * size_px * _DRAWN:
        large = Image.new("RGB", (size_px * _DRAWN,) * 2, ground)
        _draw(ImageDraw.Draw(large), clip.shape, (x, y, radius), colour)
        pixels = np.asarray(large.resize((size_px, size_px)), np.float32)
        noisy = (pixels + chance.normal(0, 4, pixels.shape)).clip(0, 255)
        frames.append(Image.fromarray(noisy.astype(np.uint8)))
    return frames


def _draw(
    pen: ImageDraw.ImageDraw,
    shape: str,
    place: tuple[float, float, float],
    colour: tuple[int, ...],
) -> None:
    x, y, radius = place
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "circle":
        pen.ellipse(box, fill=colour)
    else:
        pen.polygon(((x, box[1]), (box[2], box[3]), (box[0], box[3])), fill=colour)


ALL_CLIPS = tuple(Clip(*each) for each in product(COLOURS, SHAPES, MOVES))


def make(
    out: Path,
    *,
    splits: Mapping[str, int],
    clips: Sequence[Clip] = ALL_CLIPS,
    frames: int = 8,
    size_px: int = 64,
    seed: int = 1,
) -> None:
    """Write the set in Flickr8k's layout, a directory of frames for each clip.

    Args:
        out: new directory.
        splits: how many clips each has.
        clips: what is drawn, by chance; places, sizes, speeds and grounds are by chance too.
        frames: F of every clip.
        size_px: side of a frame.
        seed: of chance.
    """
    folder, chance = out / IMAGE_FOLDERS[0], np.random.default_rng(seed)
    folder.mkdir(parents=True)
    captions: dict[str, str] = {}
    for split, count in splits.items():
        names = [f"{split}{n:04}" for n in range(count)]
        for name in names:
            clip = clips[chance.integers(len(clips))]
            drawn = frames_of(clip, frames, size_px, chance)
            captions[name] = clip.caption
            _save(folder / name, drawn)
            if split == "test":
                captions[f"{SHUFFLED}-{name}"] = clip.caption
                order = chance.permutation(frames)
                _save(folder / f"{SHUFFLED}-{name}", [drawn[n] for n in order])
        _list(out, split, names)
        if split == "test":
            _list(out, SHUFFLED, [f"{SHUFFLED}-{name}" for name in names])
    lines = (f"{name}#0\t{caption}\n" for name, caption in captions.items())
    (out / TOKEN_FILE).write_text("".join(lines), encoding="utf-8")


def _save(directory: Path, frames: Sequence[Image.Image]) -> None:
    directory.mkdir()
    for n, frame in enumerate(frames):
        frame.save(directory / f"{n:03}.png", compress_level=1)


def _list(out: Path, split: str, names: Sequence[str]) -> None:
    path = out / f"Flickr_8k.{split}Images.txt"
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def shares(said: Mapping[str, str], truth: Mapping[str, str]) -> dict[str, float]:
    """Say how often captions are right, in parts of 1.

    Returns:
        ``exact``; ``thing``, colour and shape; ``axis``, the move or its opposite; and ``move``.
    """
    pairs = [(said[name].split(), truth[name].split()) for name in truth]
    rights = {
        "exact": [found == true for found, true in pairs],
        "thing": [found[:3] == true[:3] for found, true in pairs],
        "axis": [_axis(found[3:]) == _axis(true[3:]) for found, true in pairs],
        "move": [found[3:] == true[3:] for found, true in pairs],
    }
    return {name: float(np.mean(right)) for name, right in rights.items()}


def _axis(move: Sequence[str]) -> int:
    """Number the pairs of opposite moves."""
    text = " ".join(move)
    return MOVES.index(text) // 2 if text in MOVES else -1


def scored(checkpoint: Path, data: Path) -> dict[str, dict[str, float]]:
    """Caption the clips of both splits, in OpenVINO as the service does."""
    captioner = Captioner.load(checkpoint, precision="float32")
    found = {}
    for name in ("test", SHUFFLED):
        split = read_split(data, name)
        said = caption_texts(caption_split(captioner, split))
        found[name] = shares(said, {each.image: each.captions[0] for each in split.examples})
    return found


def table_of(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Give the lines of a Markdown table."""
    names = ("exact", "thing", "axis", "move")
    rows = [
        f"| {split} | {' | '.join(f'{each[name]:.3f}' for name in names)} |"
        for split, each in found.items()
    ]
    return [f"| frames | {' | '.join(names)} |", "|---|---|---|---|---|", *rows]


def main() -> None:
    """Make the set, or print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make")
    making.add_argument("out", type=Path, help="new directory")
    for split, count in SPLITS.items():
        making.add_argument(f"--{split}", type=int, default=count, metavar="CLIPS")
    scoring = verbs.add_parser("score")
    scoring.add_argument("checkpoint", type=Path)
    scoring.add_argument("--data", type=Path, required=True)
    result.add_output(scoring)
    args = parser.parse_args()
    if args.verb == "make":
        make(args.out, splits={split: getattr(args, split) for split in SPLITS})
        return
    found = scored(args.checkpoint, args.data)
    line = {"benchmark": "moving_shapes", **found}
    result.report(table_of(found), line, args.output, markdown=True)


if __name__ == "__main__":
    main()
