"""The network: uint8 images -> features -> word scores.

B images, C channels, H/W pixels, R regions, D feature width, K captions or beams of an image,
T steps, V words, E embedding width, G gates of an LSTM, F frames of a clip, N any leading axes
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from app.captioner.architecture import (
    Architecture,
    feature_width,
    parts_by_region,
    summary_part,
)
from app.captioner.model.efficientnet_lite import SCALES, EfficientNetLite
from app.captioner.model.frames import READERS, FrameReader, as_clip
from app.captioner.model.lstm import lstm_step

# --- encoders -----------------------------------------------------------------------------------


class _Cut(NamedTuple):
    """Where to cut a torchvision classifier.

    Attributes:
        blocks: up to its last convolution.
        head: from there to its penultimate layer.
    """

    blocks: Callable[[Any], list[nn.Module]]
    head: Callable[[Any], list[nn.Module]]


def _resnet_blocks(net: Any) -> list[nn.Module]:
    return list(net.children())[:-2]


def _features(net: Any) -> list[nn.Module]:
    return list(net.features)


def _vgg_blocks(net: Any) -> list[nn.Module]:
    return list(net.features)[:-1]  # conv5_3 before its pooling, as in Show, Attend and Tell


def _vgg_head(net: Any) -> list[nn.Module]:
    return [list(net.features)[-1], net.avgpool, nn.Flatten(), *list(net.classifier)[:5]]  # fc2


def _pooled(net: Any) -> list[nn.Module]:  # noqa: ARG001 - one signature for all heads
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def _pooled_and_classifier_start(net: Any) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *list(net.classifier)[:2]]


def _convnext_head(net: Any) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), *list(net.classifier)[:2]]  # LayerNorm2d, Flatten


_CUTS: dict[str, _Cut] = {
    "vgg16": _Cut(_vgg_blocks, _vgg_head),
    "resnet50": _Cut(_resnet_blocks, _pooled),
    "resnet101": _Cut(_resnet_blocks, _pooled),
    "mobilenet_v2": _Cut(_features, _pooled),
    "mobilenet_v3_large": _Cut(_features, _pooled_and_classifier_start),
    "efficientnet_b0": _Cut(_features, _pooled),
    "convnext_tiny": _Cut(_features, _convnext_head),
    **dict.fromkeys(SCALES, _Cut(_features, _pooled)),
}


def new_classifier(name: str) -> nn.Module:
    """Build the whole classifier that an encoder is cut from, with random weights."""
    if name in SCALES:
        return EfficientNetLite(name)
    net: nn.Module = models.get_model(name, weights=None)
    return net


def last_layer(classifier: nn.Module) -> nn.Linear:
    """Give the layer of a classifier that scores the classes: the last of all."""
    *_, last = (each for each in classifier.modules() if isinstance(each, nn.Linear))
    return last


class Encoder(nn.Module):
    """A torchvision classifier, cut before its classes.

    Args:
        architecture: names the encoder and the kind of features.
        classifier: the torchvision network to cut, with its weights; random weights without one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture, classifier: nn.Module | None = None) -> None:
        super().__init__()
        cut = _CUTS[architecture.encoder]
        net = classifier or new_classifier(architecture.encoder)
        self.grid = architecture.features == "grid"
        self.quarters = self.grid and architecture.frames == "lstm"
        self.width = feature_width(architecture)
        self.blocks = nn.Sequential(*cut.blocks(net))
        self.head = nn.Sequential() if self.grid else nn.Sequential(*cut.head(net))
        self.classes = last_layer(net) if architecture.classes else None
        self._buffer("mean", architecture.mean)
        self._buffer("std", architecture.std)

    def _buffer(self, name: str, values: tuple[float, ...]) -> None:
        # device="cpu" holds under torch.device("meta"): these numbers come from the manifest
        buffer_C11 = torch.tensor(values, device="cpu").view(-1, 1, 1)
        self.register_buffer(name, buffer_C11, persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Turn images into features.

        Args:
            images_BCHW: uint8 RGB.

        Returns:
            ``features_BRD`` float32; R is 1 for the penultimate vector, and 4 for a frame that an
            LSTM reads: the means of its quarters.
        """
        pixels_BCHW = (images_BCHW.to(self.mean.dtype) / 255 - self.mean) / self.std
        pixels_BCHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)
        maps = self.head(self.blocks(pixels_BCHW))
        if self.quarters:
            maps = F.adaptive_avg_pool2d(maps, 2)
        features_BRD: Tensor = maps.flatten(2).transpose(1, 2) if self.grid else maps.unsqueeze(1)
        return features_BRD

    def class_logits(self, features_BRD: Tensor) -> Tensor:
        """Score the 1000 ImageNet classes, ``logits_BC``, of an encoder that kept them."""
        if self.classes is None:
            raise ValueError("this encoder has no classes: set network.classes")
        logits_BC: Tensor = self.classes(features_BRD.mean(1))
        return logits_BC

    def class_probabilities(self, features_BRD: Tensor) -> Tensor | None:
        """Give ``probabilities_BC`` of images, or of shots from ``features_BFRD``: their mean.

        None of an encoder without classes.
        """
        if self.classes is None:
            return None
        if features_BRD.ndim == 3:
            return self.class_logits(features_BRD).softmax(-1)
        of_frames = self.class_logits(features_BRD.flatten(0, 1)).softmax(-1)
        return of_frames.view(*features_BRD.shape[:2], -1).mean(1)


# --- decoders -----------------------------------------------------------------------------------


class DecoderState(NamedTuple):
    """Where the decoder stands.

    Attributes:
        image: per image ``(B, ...)``, computed once, shared by its beams.
        rows: per beam ``(B, K, ...)``: hidden state, cell.
    """

    image: tuple[Tensor, ...]
    rows: tuple[Tensor, Tensor]


class Decoder(nn.Module):
    """An LSTM language model; the subclasses say where the image enters.

    ``step`` and ``forward`` share their parts, so that training and search cannot differ.
    """

    words: nn.Module  # the last layer: every subclass has one
    reader: FrameReader | None  # of the frames of clips, in a network of clips

    def __init__(self, architecture: Architecture, *, extra_gates: int = 0) -> None:
        super().__init__()
        self.reader = None
        self.hidden_width = architecture.hidden_width
        self.gates = 4 + extra_gates
        gates_width = self.gates * self.hidden_width
        self.embedding = nn.Embedding(architecture.words, architecture.embedding_width)
        self.input_gates = nn.Linear(architecture.embedding_width, gates_width)
        self.recurrent_gates = nn.Linear(self.hidden_width, gates_width, bias=False)
        self.dropout = nn.Dropout(architecture.dropout)
        self._summary_part = summary_part(architecture) or 0
        self._parts_by_region = parts_by_region(architecture)
        # in a network prepared for inference: what `word_gates` would compute, for every word
        self.word_gates_VG: Tensor | None = None
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        with torch.no_grad():
            self.input_gates.bias[self.hidden_width : 2 * self.hidden_width].fill_(1.0)

    def start(self, features_BRD: Tensor, beams: int) -> DecoderState:
        """Return the state before the first word.

        Args:
            features_BRD: of photos; or ``features_BFRD`` of clips. A network of clips reads their
                frames. To one of photos a clip is what each frame would be to it: regions to
                attend to lie side by side, all else is averaged.
            beams: K.
        """
        if self.reader is not None:
            features_BFRD = as_clip(features_BRD, self.reader.frames_per_clip)
            return self._start(self.reader(features_BFRD), beams)
        if features_BRD.ndim == 4:
            return self._start_of_frames(features_BRD, beams)
        return self._start(features_BRD, beams)

    def _start_of_frames(self, features_BFRD: Tensor, beams: int) -> DecoderState:
        of_frames = self._start(features_BFRD.flatten(0, 1), beams)
        B, F = features_BFRD.shape[:2]
        hidden, cell = (row.reshape(B, F, *row.shape[1:]).mean(1) for row in of_frames.rows)
        parts = [part.reshape(B, F, *part.shape[1:]) for part in of_frames.image]
        side_by_side = (part.flatten(1, 2) for part in parts[: self._parts_by_region])
        averaged = (part.mean(1) for part in parts[self._parts_by_region :])
        return DecoderState((*side_by_side, *averaged), (hidden, cell))

    def _start(self, features_BRD: Tensor, beams: int) -> DecoderState:
        """Return the state before the first word, of images."""
        zeros_BKH = features_BRD.new_zeros(features_BRD.shape[0], beams, self.hidden_width)
        return DecoderState(self._see(features_BRD), (zeros_BKH, zeros_BKH))

    def step(
        self, words_BK: Tensor, state: DecoderState
    ) -> tuple[Tensor, DecoderState, Tensor | None]:
        """Read one word per beam.

        Args:
            words_BK: int64 ids.
            state: from `start`, `step` or `reorder`.

        Returns:
            ``logits_BKV``, the next state, ``attention_BKR`` or None.
        """
        return self.step_from(self.word_gates(words_BK), state)

    def step_from(
        self, gates_BKG: Tensor, state: DecoderState
    ) -> tuple[Tensor, DecoderState, Tensor | None]:
        """Do as `step` does, given what the LSTM takes of each word."""
        rows, trace_BKX = self._recur(self._add_image(gates_BKG, state.image), state.rows)
        logits_BKV, attention_BKR = self._say(trace_BKX, state.image)
        return logits_BKV, DecoderState(state.image, rows), attention_BKR

    def reorder(self, state: DecoderState, parents_BK: Tensor) -> DecoderState:
        """Let beam k of each image go on from beam ``parents[b, k]``."""
        B, K = parents_BK.shape
        first_B1 = torch.arange(0, B * K, K, device=parents_BK.device).unsqueeze(1)
        rows_N = (first_B1 + parents_BK).flatten()
        hidden, cell = (
            row.flatten(0, 1).index_select(0, rows_N).view_as(row) for row in state.rows
        )
        return DecoderState(state.image, (hidden, cell))

    def select(self, state: DecoderState, images_B: Tensor) -> DecoderState:
        """Keep the state of these images of the batch alone."""
        hidden, cell = (row.index_select(0, images_B) for row in state.rows)
        image = tuple(part.index_select(0, images_B) for part in state.image)
        return DecoderState(image, (hidden, cell))

    def summary(self, state: DecoderState) -> Tensor:
        """Give ``summary_BW``, each image in one vector: the mean over what it is to this decoder.

        See `app.captioner.architecture.summary_part`.
        """
        part = state.image[self._summary_part] if state.image else state.rows[0]
        return part.mean(1)

    def forward(
        self, features_BRD: Tensor, words_BKT: Tensor, asked_BKT: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Read whole captions (teacher forcing).

        Args:
            features_BRD: of B images, see `start`.
            words_BKT: int64, K captions per image, each from BOS to its last word.
            asked_BKT: bool, the steps whose scores matter; without it all of them.

        Returns:
            ``logits_BKTV`` for the word after each (``logits_NV`` of the N steps asked for, if
            any are), and ``attention_BKTR`` or None.
        """
        B, K, T = words_BKT.shape
        state = self.start(features_BRD, K)
        gates_BNG = self._add_image(self.word_gates(words_BKT.flatten(1)), state.image)
        gates_BKTG = gates_BNG.view(B, K, T, -1)
        rows, traces = state.rows, []
        for gates_BKG in gates_BKTG.unbind(2):
            rows, trace_BKX = self._recur(gates_BKG, rows)
            traces.append(trace_BKX)
        trace_BNX = torch.stack(traces, dim=2).flatten(1, 2)
        mixed_BNH, attention = self._look(trace_BNX, state.image)
        mixed = mixed_BNH.view(B, K, T, -1)
        said = self._word_scores(mixed if asked_BKT is None else mixed[asked_BKT])
        return said, None if attention is None else attention.view(B, K, T, -1)

    def _see(self, features_BRD: Tensor) -> tuple[Tensor, ...]:
        """Compute what the steps need of the image, once."""
        raise NotImplementedError

    def _say(self, trace_BKX: Tensor, image: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """Turn what the LSTM left into word scores; give the attention too, if there is any."""
        mixed_BKH, attention_BKR = self._look(trace_BKX, image)
        return self._word_scores(mixed_BKH), attention_BKR

    def _look(self, trace_BKX: Tensor, image: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """Bring what the LSTM left and the image together, for the last layer."""
        raise NotImplementedError

    def _word_scores(self, mixed_BKH: Tensor) -> Tensor:
        """Score every word: the last layer."""
        logits_BKV: Tensor = self.words(mixed_BKH)
        return logits_BKV

    def word_gates(self, words_BN: Tensor) -> Tensor:
        """Give ``gates_BNG``, what the LSTM takes of each word."""
        if self.word_gates_VG is not None:
            return F.embedding(words_BN, self.word_gates_VG)
        gates_BNG: Tensor = self.input_gates(self.dropout(self.embedding(words_BN)))
        return gates_BNG

    def _add_image(self, gates_BNG: Tensor, image: tuple[Tensor, ...]) -> Tensor:  # noqa: ARG002
        """Add what the LSTM takes of the image at every word."""
        return gates_BNG

    def _recur(
        self, gates_BKG: Tensor, rows: tuple[Tensor, Tensor]
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """One LSTM step; what it leaves for `_say` is the hidden state."""
        hidden, cell, _ = self._lstm(gates_BKG, rows)
        return (hidden, cell), hidden

    def _lstm(
        self, gates_BKG: Tensor, rows: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return hidden state, cell and the extra gates."""
        hidden, cell = rows
        gates_BKG = gates_BKG + self.recurrent_gates(hidden)
        return lstm_step(gates_BKG, cell, self.hidden_width, self.gates - 4)


class MergeDecoder(Decoder):
    """The image meets the words after the LSTM, which sees words only.

    Reference: Tanti, Gatt and Camilleri 2018, "Where to put the image in an image caption
    generator", figure 1d; the article's and the Keras tutorial's system.
    """

    def __init__(self, architecture: Architecture, feature_width: int) -> None:
        super().__init__(architecture)
        self.image = nn.Linear(feature_width, self.hidden_width)
        self.merged = nn.Linear(self.hidden_width, self.hidden_width)
        self.words = nn.Linear(self.hidden_width, architecture.words)

    def _see(self, features_BRD: Tensor) -> tuple[Tensor, ...]:
        return (F.relu(self.image(self.dropout(features_BRD.mean(1, keepdim=True)))),)

    def _look(self, trace_BKX: Tensor, image: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        return F.relu(self.merged(self.dropout(trace_BKX) + image[0])), None


class InjectDecoder(Decoder):
    """The image is the first word.

    Reference: Vinyals et al. 2015, "Show and Tell", eq. 10 to 12.
    """

    def __init__(self, architecture: Architecture, feature_width: int) -> None:
        super().__init__(architecture)
        self.normalise = nn.LayerNorm(feature_width)
        self.image = nn.Linear(feature_width, architecture.embedding_width)
        self.words = nn.Linear(self.hidden_width, architecture.words)

    def _start(self, features_BRD: Tensor, beams: int) -> DecoderState:
        """Let the LSTM read the image."""
        state = super()._start(features_BRD, beams)
        mean_B1D = self.normalise(features_BRD.mean(1, keepdim=True))
        image_BKE = self.image(mean_B1D).expand(-1, beams, -1)
        rows, _ = self._recur(self.input_gates(self.dropout(image_BKE)), state.rows)
        return DecoderState(state.image, rows)

    def _see(self, features_BRD: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002 - seen in start
        return ()

    def _look(self, trace_BKX: Tensor, image: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:  # noqa: ARG002
        return self.dropout(trace_BKX), None


class AttentionDecoder(Decoder):
    """Each word looks at the regions, or away from them.

    The LSTM reads word and mean region; its output asks for regions, and a sentinel (what the
    LSTM already knows) competes with what they show. One softmax over the regions per word.

    Reference: Lu et al. 2017, "Knowing when to look", eq. 5 to 13; the score of eq. 6 is replaced
    by the scaled dot product of Luong et al. 2015 and Vaswani et al. 2017, which costs a fraction.
    With ``global_feature`` what the merge decoder adds to each word is added here too.
    """

    def __init__(self, architecture: Architecture, feature_width: int) -> None:
        super().__init__(architecture, extra_gates=1)
        width = self.hidden_width
        # Adam moves every weight alike, so a thousand large features would move the regions far at
        # each step: start them centred and small
        self.normalise = nn.LayerNorm(feature_width)
        nn.init.constant_(self.normalise.weight, 0.1)
        self.regions = nn.Linear(feature_width, width)
        self.image_gates = nn.Linear(width, self.gates * width, bias=False)
        self.keys = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.sentinel_key = nn.Linear(width, width)
        self.context = nn.Linear(2 * width, width)
        self.global_feature = (
            nn.Linear(feature_width, width) if architecture.global_feature else None
        )
        words = architecture.words
        self.words = _TiedWords(words) if architecture.tied_words else nn.Linear(width, words)

    def _see(self, features_BRD: Tensor) -> tuple[Tensor, ...]:
        values_BRH = self.dropout(F.relu(self.regions(self.normalise(features_BRD))))
        gates_B1G = self.image_gates(values_BRH.mean(1, keepdim=True))
        image = (values_BRH, self.keys(values_BRH), gates_B1G)
        if self.global_feature is None:
            return image
        mean_B1D = self.dropout(features_BRD.mean(1, keepdim=True))
        return (*image, F.relu(self.global_feature(mean_B1D)))

    def _add_image(self, gates_BNG: Tensor, image: tuple[Tensor, ...]) -> Tensor:
        return gates_BNG + image[2]

    def _recur(
        self, gates_BKG: Tensor, rows: tuple[Tensor, Tensor]
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        hidden, cell, (visual,) = self._lstm(gates_BKG, rows)
        sentinel = torch.sigmoid(visual) * torch.tanh(cell)
        return (hidden, cell), torch.cat((hidden, sentinel), dim=-1)

    def _look(self, trace_BKX: Tensor, image: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """Attend to the regions; the last one is the sentinel."""
        hidden, sentinel = self.dropout(trace_BKX).chunk(2, dim=-1)
        values_BRH, keys_BRH, _, *merged = image
        query_BKH = self.query(hidden) * self.hidden_width**-0.5
        regions_BKR = query_BKH @ keys_BRH.transpose(1, 2)
        itself_BK1 = (query_BKH * self.sentinel_key(sentinel)).sum(-1, keepdim=True)
        attention_BKR = torch.cat((regions_BKR, itself_BK1), dim=-1).softmax(-1)
        context = attention_BKR[..., :-1] @ values_BRH + attention_BKR[..., -1:] * sentinel
        mixed = torch.tanh(sum(merged, self.context(torch.cat((hidden, context), dim=-1))))
        return self.dropout(mixed), attention_BKR

    def _word_scores(self, mixed_BKH: Tensor) -> Tensor:
        if isinstance(self.words, _TiedWords):
            return F.linear(mixed_BKH, self.embedding.weight, self.words.bias)
        return super()._word_scores(mixed_BKH)


class _TiedWords(nn.Module):
    """What is left of the last layer if its weights are the embeddings."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(words))


DECODERS: dict[str, type[MergeDecoder | InjectDecoder | AttentionDecoder]] = {
    "merge": MergeDecoder,
    "inject": InjectDecoder,
    "attention": AttentionDecoder,
}


class Network(nn.Module):
    """Encoder and decoder.

    Args:
        architecture: what to build.
        classifier: torchvision network whose weights the encoder takes over; random without one.
    """

    def __init__(self, architecture: Architecture, classifier: nn.Module | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder(architecture, classifier)
        width, reader = self.encoder.width, None
        if architecture.frames:
            reader = READERS[architecture.frames](architecture, width)
            width = reader.width
        self.decoder: Decoder = DECODERS[architecture.decoder](architecture, width)
        self.decoder.reader = reader  # its part: what trains the decoder trains it

    def forward(self, images_BCHW: Tensor, words_BKT: Tensor) -> Tensor:
        """Return ``logits_BKTV``: uint8 images and K captions each, teacher forced."""
        logits_BKTV, _ = self.decoder(self.encode(images_BCHW), words_BKT)
        return logits_BKTV  # type: ignore[no-any-return]

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Give ``features_BRD`` of images, or ``features_BFRD`` of clips, uint8 (B, F, C, H, W)."""
        return encode(self.encoder, images_BCHW)


def encode(encoder: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Give ``features_BRD`` of images, or ``features_BFRD`` of clips, uint8 (B, F, C, H, W)."""
    if images_BCHW.ndim == 4:
        return encoder(images_BCHW)  # type: ignore[no-any-return]
    features_NRD: Tensor = encoder(images_BCHW.flatten(0, 1))
    return features_NRD.reshape(*images_BCHW.shape[:2], *features_NRD.shape[1:])
