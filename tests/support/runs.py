"""A tiny recipe, and the verb ``fit`` on it the way a person types it."""

import json
from pathlib import Path
from typing import Any, cast

import torch

from trainer.__main__ import main

RECIPE = """
name = "tiny"
captions_per_image = 2
[network]
encoder = "mobilenet_v2"
decoder = "attention"
embedding_width = 32
hidden_width = 32
dropout = 0.1
[image]
size_px = 64
fit = "squeeze"
[vocabulary]
min_count = 1
[search]
beam_width = 2
max_words = 8
[[stages]]
kind = "cached"
epochs = 2
batch_images = 2
learning_rate = 0.01
warmup_steps = 2
[[stages]]
kind = "fine_tune"
epochs = 2
batch_images = 2
learning_rate = 0.001
encoder_learning_rate = 0.0001
unfrozen_blocks = 3
warmup_steps = 2
"""


def arguments(place: Path, run: str, *changes: str) -> list[str]:
    data, cache = str(place / "data"), str(place / "cache")
    settings = [part for change in changes for part in ("--set", change)]
    fixed = ["--data", data, "--run", str(place / run), "--cache", cache, "--device", "cpu"]
    return ["fit", str(place / "recipe.toml"), *fixed, *settings]


def fit(place: Path, run: str, *changes: str) -> int:
    return main([*arguments(place, run, *changes), "--random-encoder"])


def log(place: Path, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / run / "log.jsonl").read_text().splitlines()]


def weights(place: Path, run: str) -> dict[str, torch.Tensor]:
    state = torch.load(place / run / "state.pt", weights_only=True)
    return cast("dict[str, torch.Tensor]", state["network"])


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
