"""The shipped checkpoint in plain eager torch: what a competent user writes without our engine.

Nothing here imports `app`. It says the same captions as `app.captioner.pipeline.Captioner`.

Run: .venv/bin/python benchmarks/plain.py photo.jpg [more.jpg ...]

B images, H/W pixels, C channels, K beams, N rows (images or images times beams), R regions,
D width, V words
"""

import argparse
import io
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import Conv2dNormActivation
from torchvision.transforms import v2 as transforms

import result
from shipped import SHIPPED

PAD, BOS, EOS, UNK = range(4)
SPECIAL_WORDS = 4
Pixels = NDArray[np.uint8]


class InvertedResidual(nn.Module):
    """Expand, look around, shrink."""

    def __init__(self, widths: tuple[int, int], expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        entering, leaving = widths
        wide = entering * expansion
        self.layers = nn.Sequential(
            *([convolution((entering, wide), 1)] if expansion > 1 else []),
            convolution((wide, wide), kernel, stride=stride, groups=wide),
            convolution((wide, leaving), 1, activation=None),
        )
        self.adds = stride == 1 and entering == leaving

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Add what was found, where the shape stays."""
        out_BCHW: Tensor = self.layers(maps_BCHW)
        return maps_BCHW + out_BCHW if self.adds else out_BCHW


def convolution(
    widths: tuple[int, int],
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU6,
) -> nn.Module:
    """Give a convolution with batch norm as EfficientNet-Lite has them."""
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    more: dict[str, Any] = {"norm_layer": norm, "activation_layer": activation}
    layer: nn.Module = Conv2dNormActivation(*widths, kernel, stride, groups=groups, **more)
    return layer


def efficientnet_lite1() -> list[nn.Module]:
    """Give the blocks of EfficientNet-Lite1, which torchvision lacks."""
    blocks, entering = [convolution((3, 32), 3, stride=2)], 32
    for expansion, kernel, stride, leaving, count in (
        (1, 3, 1, 16, 1), (6, 3, 2, 24, 3), (6, 5, 2, 40, 3), (6, 3, 2, 80, 4),
        (6, 5, 1, 112, 4), (6, 5, 2, 192, 5), (6, 3, 1, 320, 1),
    ):  # fmt: skip
        for n in range(count):
            step = 1 if n else stride
            blocks.append(InvertedResidual((entering, leaving), expansion, kernel, step))
            entering = leaving
    return [*blocks, convolution((entering, 1280), 1)]


class Encoder(nn.Module):
    """A torchvision classifier without its classes, or EfficientNet-Lite1."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name == "efficientnet_lite1":
            self.blocks = nn.Sequential(*efficientnet_lite1())
            return
        net = models.get_model(name, weights=None)
        cut = list(net.features) if hasattr(net, "features") else list(net.children())[:-2]
        self.blocks = nn.Sequential(*(cut[:-1] if name == "vgg16" else cut))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Turn normalised images into ``features_BRD``."""
        features_BRD: Tensor = self.blocks(images_BCHW).flatten(2).transpose(1, 2)
        return features_BRD


class Decoder(nn.Module):
    """An LSTM that looks at the regions, or at its own memory, before each word."""

    def __init__(
        self, feature_width: int, words: int, embedding: int, hidden: int, *, global_feature: bool
    ) -> None:
        super().__init__()
        self.hidden_width = hidden
        self.embedding = nn.Embedding(words, embedding)
        self.input_gates = nn.Linear(embedding, 5 * hidden)
        self.recurrent_gates = nn.Linear(hidden, 5 * hidden, bias=False)
        self.normalise = nn.LayerNorm(feature_width)
        self.regions = nn.Linear(feature_width, hidden)
        self.image_gates = nn.Linear(hidden, 5 * hidden, bias=False)
        self.keys = nn.Linear(hidden, hidden)
        self.query = nn.Linear(hidden, hidden)
        self.sentinel_key = nn.Linear(hidden, hidden)
        self.context = nn.Linear(2 * hidden, hidden)
        self.global_feature = nn.Linear(feature_width, hidden) if global_feature else None
        self.words = nn.Linear(hidden, words)

    def look(self, features_NRD: Tensor) -> tuple[Tensor, ...]:
        """Compute once what every word needs of the image."""
        values = F.relu(self.regions(self.normalise(features_NRD)))
        seen = (values, self.keys(values), self.image_gates(values.mean(1)))
        if self.global_feature is None:
            return seen
        return (*seen, F.relu(self.global_feature(features_NRD.mean(1))))

    def forward(
        self, words_N: Tensor, hidden: Tensor, cell: Tensor, seen: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read one word a row; give ``logits_NV``, hidden state and cell."""
        values, keys, image_gates, *of_image = seen
        gates = self.input_gates(self.embedding(words_N)) + image_gates
        gates = gates + self.recurrent_gates(hidden)
        enter, forget, leave, candidate, visual = gates.chunk(5, dim=-1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        sentinel = visual.sigmoid() * cell.tanh()

        query = self.query(hidden) * self.hidden_width**-0.5
        regions_NR = (keys @ query.unsqueeze(-1)).squeeze(-1)
        itself_N1 = (query * self.sentinel_key(sentinel)).sum(-1, keepdim=True)
        weights = torch.cat((regions_NR, itself_N1), dim=-1).softmax(-1)
        looked = (weights[:, :-1].unsqueeze(1) @ values).squeeze(1)
        context = looked + weights[:, -1:] * sentinel
        mixed = sum(of_image, self.context(torch.cat((hidden, context), dim=-1))).tanh()
        return self.words(mixed), hidden, cell


def read(data: bytes, size_px: int) -> Pixels:
    """Turn the bytes of a file into a uint8 square ``(size_px, size_px, 3)``."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (size_px, size_px))  # lets a large JPEG shrink as it is read
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.array(upright.resize((size_px, size_px), Image.Resampling.BILINEAR))


class PlainCaptioner:
    """Photos in, sentences out, with what the manifest of a checkpoint says.

    Args:
        manifest: ``manifest.json``, read.
        weights: the tensors of ``weights.safetensors``.
        vocabulary: the words, in order of their ids.
        device: of torch.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        weights: dict[str, Tensor],
        vocabulary: list[str],
        device: str,
    ) -> None:
        about = manifest["architecture"]
        geometry = manifest["image"]
        if (about["decoder"], about["features"], geometry["fit"]) != (
            "attention",
            "grid",
            "squeeze",
        ):
            raise ValueError("plain.py knows the decoder 'attention' and squeezed images only")
        self.options = manifest["search"]
        self.vocabulary = vocabulary
        self.size_px = geometry["size_px"]
        self.normalise = transforms.Compose(
            [
                transforms.ToDtype(torch.float32, scale=True),
                transforms.Normalize(about["mean"], about["std"]),
            ]
        )
        width = weights["decoder.normalise.weight"].shape[0]
        self.encoder = Encoder(about["encoder"])
        self.decoder = Decoder(
            width,
            about["words"],
            about["embedding_width"],
            about["hidden_width"],
            global_feature=about["global_feature"],
        )
        for name, module in (("encoder.blocks.", self.encoder.blocks), ("decoder.", self.decoder)):
            mine = {k.removeprefix(name): v for k, v in weights.items() if k.startswith(name)}
            if module is self.decoder:  # words may be scored by their embeddings
                mine.setdefault("words.weight", mine["embedding.weight"])
            module.load_state_dict(mine)  # copies half precision into single
            module.eval().to(device)
        self.device = device

    @classmethod
    def load(cls, directory: Path, device: str = "cpu") -> Self:
        """Read a directory of the model store."""
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        words = json.loads((directory / "vocabulary.json").read_text(encoding="utf-8"))["words"]
        return cls(manifest, load_file(directory / "weights.safetensors"), words, device)

    def read(self, data: bytes) -> Pixels:
        """Turn the bytes of a file into a uint8 square; see `read`."""
        return read(data, self.size_px)

    @torch.inference_mode()
    def caption(self, images: list[Pixels]) -> list[str]:
        """Say the best caption of each image of a batch."""
        images_BHWC = torch.stack([torch.from_numpy(image) for image in images])
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).contiguous().to(self.device)
        features_BRD = self.encoder(self.normalise(images_BCHW))
        return [
            " ".join(self.vocabulary[word - SPECIAL_WORDS] for word in words)
            for words in self._search(features_BRD)
        ]

    def _search(self, features_BRD: Tensor) -> list[list[int]]:
        """Beam search; the finished beams compete with those that still grow."""
        B, K = len(features_BRD), self.options["beam_width"]
        most, alpha = self.options["max_words"], self.options["length_penalty"]
        seen = tuple(part.repeat_interleave(K, 0) for part in self.decoder.look(features_BRD))
        device = features_BRD.device
        hidden = cell = torch.zeros(B * K, self.decoder.hidden_width, device=device)
        totals = torch.full((B, K), -torch.inf, device=device)
        totals[:, 0] = 0
        steps = torch.zeros(B, K, device=device)
        done = torch.zeros(B, K, dtype=torch.bool, device=device)
        words = torch.full((B, K), BOS, device=device)
        said: list[list[list[int]]] = [[[] for _ in range(K)] for _ in range(B)]
        for step in range(most + 1):
            logits, hidden, cell = self.decoder(words.flatten(), hidden, cell, seen)
            self._block_repeats(logits.view(B, K, -1), said)
            log_probs = self._log_probs(logits, step).view(B, K, -1)
            log_probs[done] = -torch.inf
            log_probs[..., EOS][done] = 0
            steps = steps + ~done
            sums = totals.unsqueeze(-1) + log_probs
            scores = sums / steps.unsqueeze(-1) ** alpha
            best = scores.flatten(1).topk(K).indices
            parents, words = best // log_probs.shape[-1], best % log_probs.shape[-1]
            totals, steps = sums.flatten(1).gather(1, best), steps.gather(1, parents)
            done = (words == EOS) | totals.isneginf()
            said = _extend(said, parents.tolist(), words.tolist())
            if done.all():
                break
            rows = (parents + K * torch.arange(B, device=device).unsqueeze(-1)).flatten()
            hidden, cell = hidden[rows], cell[rows]
        return [beams[0] for beams in said]

    def _block_repeats(self, logits: Tensor, said: list[list[list[int]]]) -> None:
        size = self.options.get("no_repeat_ngram_size", 0)
        if not size:
            return
        for b, beams in enumerate(said):
            for k, words in enumerate(beams):
                for start in range(len(words) - size + 1):
                    if words[start : start + size - 1] == words[1 - size :]:
                        logits[b, k, words[start + size - 1]] = -torch.inf

    def _log_probs(self, logits: Tensor, step: int) -> Tensor:
        logits[:, [PAD, BOS, UNK]] = -torch.inf
        if step < self.options["min_words"]:
            logits[:, EOS] = -torch.inf
        log_probs = logits.log_softmax(-1)
        if step == self.options["max_words"]:
            log_probs[:, EOS + 1 :] = -torch.inf
        return log_probs


def _extend(
    said: list[list[list[int]]], parents: list[list[int]], words: list[list[int]]
) -> list[list[list[int]]]:
    return [
        [
            beams[parent] + [word] * (word != EOS)
            for parent, word in zip(parents[b], words[b], strict=True)
        ]
        for b, beams in enumerate(said)
    ]


def main() -> None:
    """Print a caption for each photo, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    result.add_output(parser)
    args = parser.parse_args()
    captioner = PlainCaptioner.load(args.checkpoint)
    images = [captioner.read(photo.read_bytes()) for photo in args.photos]
    started = time.perf_counter()
    said = captioner.caption(images)
    ms_per_image = (time.perf_counter() - started) / len(images) * 1e3
    captions = dict(zip((photo.name for photo in args.photos), said, strict=True))
    table = [f"{photo}: {caption}" for photo, caption in captions.items()]
    line = {"benchmark": "plain", "captions": captions, "ms_per_image": ms_per_image}
    result.report(table, line, args.output)


if __name__ == "__main__":
    main()
