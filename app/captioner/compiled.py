"""A beam search whose small steps are compiled: `steps.c` between the products that torch computes.

It finds what `beam.search` finds, up to the rounding of sums. That one stays the definition, and
does what is left: other decoders, a GPU, and installations without a C compiler. Beams that have
ended are not computed any more, and of the first word only one beam.

B images, K beams, N rows (beams that still grow), H width of the LSTM, R regions, V words, T steps
"""

import ctypes
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from app.captioner.beam import Beams, SearchOptions, Wanted, everybody
from app.captioner.network import AttentionDecoder, Decoder

_WIDTHS, _MOST_BEAMS = 32, 16  # of steps.c: the width is a multiple
_NUMBERS = (
    "images beams width words regions bos eos banned_count least_words most_words repeat step rows"
)
_POINTERS = (
    "banned word_gates image_gates values keys whole product second slots hidden cell spare_hidden"
    " spare_cell sentinel joined row_of last_word log_probs scores finished gone said spare_said"
    " trace_words trace_parents trace_log_probs trace_attention"
)


class _Search(ctypes.Structure):
    """``struct search`` of steps.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _NUMBERS.split()),
        ("penalty", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
    )


@cache
def _library() -> ctypes.CDLL | None:
    """Load what the installation compiled; None where this system can load nothing of it."""
    for suffix in EXTENSION_SUFFIXES:
        with suppress(OSError):
            return ctypes.CDLL(str(Path(__file__).with_name(f"steps{suffix}")))
    return None


def available() -> bool:
    """Say whether the installation compiled steps.c."""
    return _library() is not None


def suits(decoder: Decoder, options: SearchOptions) -> TypeGuard[AttentionDecoder]:
    """Say whether `search` can take the place of `beam.search`.

    Args:
        decoder: from `fused.fused` or `folding.decoder_with_table`.
        options: of the search.
    """
    return (
        available()
        and isinstance(decoder, AttentionDecoder)
        and not decoder.training
        and decoder.word_gates_VG is not None
        and decoder.word_gates_VG.device.type == "cpu"
        and decoder.word_gates_VG.dtype == torch.float32
        and decoder.hidden_width % _WIDTHS == 0
        and options.beam_width <= min(_MOST_BEAMS, len(decoder.word_gates_VG))
    )


@torch.inference_mode()
def search(
    decoder: AttentionDecoder,
    features_BRD: Tensor,
    options: SearchOptions,
    *,
    bos: int,
    eos: int,
    banned: Sequence[int],
    wanted: Wanted = everybody,
) -> Beams:
    """Search the best captions of every image, as `beam.search` does.

    Args:
        decoder: one that `suits`.
        features_BRD: float32 on the CPU, what the encoder gave.
        options: width, lengths and length penalty.
        bos: id that starts every caption.
        eos: id that ends it.
        banned: ids that are never emitted.
        wanted: as for `beam.search`; asked after every step.

    Raises:
        ValueError: the features are of another type or device, or an id is none of the vocabulary.
    """
    _check(decoder, features_BRD, (bos, eos, *banned))
    barred = torch.tensor([*banned], dtype=torch.long)
    running = _Running(decoder, features_BRD, options, bos=bos, eos=eos, banned=barred)
    staying = list(range(len(features_BRD)))
    while True:
        running.step()
        staying = running.staying(staying, wanted)
        if not staying:
            return running.beams()
        running.go_on()


def _check(decoder: AttentionDecoder, features_BRD: Tensor, ids: Iterable[int]) -> None:
    """Refuse what steps.c would read or write elsewhere for: it trusts us."""
    if features_BRD.dtype != torch.float32 or features_BRD.device.type != "cpu":
        raise ValueError(f"features are {features_BRD.dtype} on {features_BRD.device}")
    words = decoder.embedding.num_embeddings
    if not all(0 <= each < words for each in ids):
        raise ValueError(f"an id is none of the {words} words")


class _Running:
    """A search under way: the memory that steps.c works on, and the products in between."""

    def __init__(
        self,
        decoder: AttentionDecoder,
        features_BRD: Tensor,
        options: SearchOptions,
        *,
        bos: int,
        eos: int,
        banned: Tensor,
    ) -> None:
        library = _library()
        if library is None or decoder.word_gates_VG is None:
            raise RuntimeError("asked for a compiled search where none suits")
        self._steps = library
        self._decoder = decoder
        self._penalty = options.length_penalty
        image = [part.contiguous() for part in decoder.start(features_BRD, 1).image]
        B, K, H = len(features_BRD), options.beam_width, decoder.hidden_width
        T, paid = options.max_words + 1, features_BRD.shape[1] + 1
        self._log_probs_BK, self._scores_BK = (torch.full((B, K), -math.inf) for _ in range(2))
        self._log_probs_BK[:, 0] = 0.0
        finished_BK = torch.ones(B, K, dtype=torch.uint8)
        finished_BK[:, 0] = 0
        self._hidden_NH, self._spare_NH = torch.empty(2, B * K, H)
        self._sentinel_NH, self._joined_NI = torch.empty(B * K, H), torch.empty(B * K, 2 * H)
        cell, spare_cell = torch.zeros(2, B * K, H)
        self._gone_B = (ctypes.c_uint8 * B)()
        words = {"row_of": (B, K), "last_word": (B, K), "slots": (B * K,)}
        words |= {"said": (B, K, T + 1), "spare_said": (B, K, T + 1)}
        words |= {"trace_words": (T, B, K), "trace_parents": (T, B, K)}
        tensors = {name: torch.full(size, bos, dtype=torch.long) for name, size in words.items()}
        tensors["slots"][:B] = K * torch.arange(B)
        tensors["row_of"][:, 0] = torch.arange(B)
        tensors |= {
            "banned": banned,
            "word_gates": decoder.word_gates_VG,
            **dict(zip(("values", "keys", "image_gates", "whole"), image, strict=False)),
            "hidden": self._hidden_NH,
            "spare_hidden": self._spare_NH,
            "cell": cell,
            "spare_cell": spare_cell,
            "sentinel": self._sentinel_NH,
            "joined": self._joined_NI,
            "log_probs": self._log_probs_BK,
            "scores": self._scores_BK,
            "finished": finished_BK,
            "trace_log_probs": torch.empty(T, B, K),
            "trace_attention": torch.zeros(T, B, K, paid),
        }
        self._tensors = tensors  # their memory is steps.c's as long as we live
        self._state = _Search(
            images=B,
            beams=K,
            width=H,
            words=decoder.embedding.num_embeddings,
            regions=paid - 1,
            bos=bos,
            eos=eos,
            banned_count=len(banned),
            least_words=options.min_words,
            most_words=options.max_words,
            repeat=options.no_repeat_ngram_size,
            rows=B,
            gone=ctypes.addressof(self._gone_B),
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        )
        self._at = ctypes.byref(self._state)

    def step(self) -> None:
        """Let every beam that grows take its next word."""
        state, decoder, N = self._state, self._decoder, self._state.rows
        if state.step:
            gates_NG = decoder.recurrent_gates(self._hidden_NH[:N])
            state.product = gates_NG.data_ptr()
        self._steps.lstm(self._at)
        query_NH = decoder.query(self._hidden_NH[:N])
        key_NH = decoder.sentinel_key(self._sentinel_NH[:N])
        state.product, state.second = query_NH.data_ptr(), key_NH.data_ptr()
        self._steps.attend(self._at)
        mixed_NH = decoder.context(self._joined_NI[:N])
        state.product = mixed_NH.data_ptr()
        self._steps.mix(self._at)
        logits_NV = decoder.words(mixed_NH)
        state.product = logits_NV.data_ptr()
        state.penalty = (state.step + 1) ** self._penalty
        self._steps.advance(self._at)

    def staying(self, images: list[int], wanted: Wanted) -> list[int]:
        """Keep those of the images that have a beam to grow and somebody who waits for it."""
        staying = []
        for b in images:
            if not self._gone_B[b]:
                if wanted(b):
                    staying.append(b)
                else:
                    self._gone_B[b] = 1
        return staying

    def go_on(self) -> None:
        """Bring the states of the beams that grow together for the next step."""
        self._steps.gather(self._at)
        self._hidden_NH, self._spare_NH = self._spare_NH, self._hidden_NH

    def beams(self) -> Beams:
        """Put together what every beam said."""
        state, T = self._state, self._state.step + 1
        size = (state.images, state.beams)
        words_BKT = torch.empty(*size, T, dtype=torch.long)
        lengths_BK = torch.empty(size, dtype=torch.long)
        log_probs_BKT = torch.empty(*size, T)
        attention_BKTR = torch.empty(*size, T, state.regions + 1)
        made = (words_BKT, lengths_BK, log_probs_BKT, attention_BKTR)
        self._steps.read_back(self._at, *(ctypes.c_void_p(each.data_ptr()) for each in made))
        scores = (self._log_probs_BK, self._scores_BK)
        return Beams(words_BKT, lengths_BK, *scores, log_probs_BKT, attention_BKTR)
