"""Beam search over ``step`` and ``reorder``: the whole batch at once, no loop over images or beams.

B images of the batch, K beams, T steps, V words, N words that may follow a beam, R regions
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from app.captioner.search import BeamArrays, SearchOptions, StillWaiting, always_waiting

State = TypeVar("State")


def steps_between_checks(device: torch.device) -> int:
    """Say how often to ask which images are finished: the answer is a wait for a GPU."""
    return 1 if device.type == "cpu" else 4


class Decoder(Protocol[State]):
    """What the search needs of a language model."""

    def start(self, features_BRD: Tensor, beams: int) -> State:
        """Return the state before the first word, for ``beams`` beams per image."""

    def step(self, words_BK: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        """Read one word per beam.

        Returns:
            ``logits_BKV``, which the search may overwrite, the next state, and ``attention_BKR``
            where the decoder has one.
        """

    def reorder(self, state: State, parents_BK: Tensor) -> State:
        """Let beam k of each image go on from the state of beam ``parents[b, k]``."""

    def select(self, state: State, images_B: Tensor) -> State:
        """Keep the state of these images of the batch alone."""

    def summary(self, state: State) -> Tensor | None:
        """Give ``summary_BW``, each image in one vector."""


class Beams(NamedTuple):
    """`search.BeamArrays` as tensors."""

    words_BKT: Tensor
    lengths_BK: Tensor
    log_probs_BK: Tensor
    scores_BK: Tensor
    word_log_probs_BKT: Tensor
    attention_BKTR: Tensor | None
    summary_BW: Tensor | None = None
    classes_BC: Tensor | None = None

    def arrays(self) -> BeamArrays:
        """Copy the beams from their device."""
        arrays: list[Any] = [None if part is None else part.cpu().numpy() for part in self]
        return BeamArrays(*arrays)


class _Beam(NamedTuple):
    """The K beams of every image between two steps; ``images_B`` says which images these are."""

    images_B: Tensor
    words_BK: Tensor
    log_probs_BK: Tensor
    scores_BK: Tensor
    finished_BK: Tensor


class _Following(NamedTuple):
    """The N most likely words after each beam, and their log-probabilities."""

    words_BKN: Tensor
    log_probs_BKN: Tensor


class _Trace(NamedTuple):
    """What one step leaves behind, read backwards once the search is over."""

    images_B: Tensor
    parents_BK: Tensor
    words_BK: Tensor
    word_log_probs_BK: Tensor
    attention_BKR: Tensor | None


@torch.inference_mode()
def search(
    decoder: Decoder[State],
    features_BRD: Tensor,
    options: SearchOptions,
    *,
    bos: int,
    eos: int,
    banned: Iterable[int],
    still_waiting: StillWaiting | None = always_waiting,
) -> Beams:
    """Search the best captions of every image.

    A finished beam keeps its slot and its score and competes with those still growing, so a width
    of 1 is greedy search and a width that holds every caption is exhaustive. An image leaves the
    batch between two steps when all its beams are finished or nobody waits for it any more. Images
    do not see each other; scores of the same image alone and in a batch differ only by the rounding
    of the network's matrix products (below 1e-4 in float32).

    Args:
        decoder: the language model.
        features_BRD: float, what the encoder gave.
        options: width, lengths and length penalty.
        bos: id that starts every caption.
        eos: id that ends it.
        banned: ids that are never emitted.
        still_waiting: asked after every step, on a GPU every few; an image that nobody waits
            for may get no caption. With None the search asks nothing, neither others nor the
            device, and always takes every step: a CUDA graph can capture it.
    """
    between = steps_between_checks(features_BRD.device)
    state = decoder.start(features_BRD, options.beam_width)
    summary_BW = decoder.summary(state)
    beam = _first_beam(features_BRD, options.beam_width, bos)
    forbidden = {bos, *banned}
    said_BKT = beam.words_BK.unsqueeze(-1)
    left: list[_Beam] = []
    traces: list[_Trace] = []
    for step in range(options.max_words + 1):
        logits_BKV, state, attention_BKR = decoder.step(beam.words_BK, state)
        logits_BKV = logits_BKV.float()
        if step in (0, options.min_words):
            too_early = {eos} if step < options.min_words else set()
            barred_V = _barred(logits_BKV, forbidden | too_early)
        logits_BKV += barred_V
        _block_repeats(logits_BKV, said_BKT, options.no_repeat_ngram_size)
        following = _following(logits_BKV, eos, step, options)
        penalty = (step + 1) ** options.length_penalty
        beam, trace = _advance(beam, following, attention_BKR, eos, penalty)
        traces.append(trace)
        staying = list(range(len(beam.images_B)))
        if still_waiting and (step + 1) % between == 0:
            staying = _staying(beam, still_waiting)
        if not staying:
            break
        state = decoder.reorder(state, trace.parents_BK)
        if options.no_repeat_ngram_size:
            said_BKT = _go_on(said_BKT, trace)
        if len(staying) < len(beam.images_B):
            left.append(beam)
            staying_B = torch.tensor(staying, device=features_BRD.device)
            beam, state = _select(beam, staying_B), decoder.select(state, staying_B)
            said_BKT = said_BKT.index_select(0, staying_B)
    return _read_back(_together([*left, beam]), traces, eos)._replace(summary_BW=summary_BW)


def _first_beam(features_BRD: Tensor, width: int, bos: int) -> _Beam:
    """Beam 0 holds BOS; the others hold nothing, so that no caption is found twice."""
    size = (features_BRD.shape[0], width)
    log_probs = torch.full(size, -torch.inf, device=features_BRD.device)
    log_probs[:, 0].zero_()
    words = torch.full(size, bos, dtype=torch.long, device=features_BRD.device)
    return _Beam(
        torch.arange(len(words), device=words.device),
        words,
        log_probs,
        log_probs,
        torch.zeros_like(words, dtype=torch.bool),
    )


def _barred(logits_BKV: Tensor, words: Iterable[int]) -> Tensor:
    """Give what to add to word scores so that these words are impossible."""
    barred_V = torch.zeros_like(logits_BKV[0, 0])
    for word in words:
        barred_V[word].fill_(-torch.inf)  # `=` would copy a number from the host
    return barred_V


def _block_repeats(logits_BKV: Tensor, said_BKT: Tensor, size: int) -> None:
    """Make every word impossible that would complete a sequence of ``size`` said before.

    Reference: Paulus et al. 2018, "A deep reinforced model for abstractive summarization", 2.5.
    """
    if not 0 < size <= said_BKT.shape[-1]:
        return
    earlier_BKWS = said_BKT.unfold(-1, size, 1)
    begun_BKW = (earlier_BKWS[..., :-1] == said_BKT[..., None, 1 - size :]).all(-1)
    barred_BKW = torch.zeros_like(begun_BKW, dtype=logits_BKV.dtype)
    barred_BKW.masked_fill_(begun_BKW, -torch.inf)
    logits_BKV.scatter_add_(-1, earlier_BKWS[..., -1], barred_BKW)


def _go_on(said_BKT: Tensor, trace: "_Trace") -> Tensor:
    """Let each beam remember what its parent had said, and its own word."""
    parents_BKT = trace.parents_BK.unsqueeze(-1).expand_as(said_BKT)
    return torch.cat((said_BKT.gather(1, parents_BKT), trace.words_BK.unsqueeze(-1)), dim=-1)


def _following(logits_BKV: Tensor, eos: int, step: int, options: SearchOptions) -> _Following:
    """Give the most likely continuations of every beam, the end mark alone at the last step.

    The K best continuations of an image are among the K best of each of its beams, so the other
    words are only counted, in the softmax's denominator.
    """
    if logits_BKV.is_cuda:  # one kernel in place of seven
        logits_BKV, log_z_BK1 = logits_BKV.log_softmax(-1), logits_BKV.new_zeros(())
    else:
        log_z_BK1 = logits_BKV.logsumexp(-1, keepdim=True)
    if step == options.max_words:
        return _only_end(logits_BKV[..., eos : eos + 1] - log_z_BK1, eos)
    best = logits_BKV.topk(min(options.beam_width, logits_BKV.shape[-1]))
    return _Following(best.indices, best.values - log_z_BK1)


def _only_end(log_probs_BK1: Tensor, eos: int) -> _Following:
    """Leave the end mark alone, even where the network calls it impossible."""
    least = torch.finfo(log_probs_BK1.dtype).min / 2
    words_BK1 = torch.full_like(log_probs_BK1, eos, dtype=torch.long)
    return _Following(words_BK1, log_probs_BK1.clamp(min=least))


def _advance(
    beam: _Beam, following: _Following, attention_BKR: Tensor | None, eos: int, penalty: float
) -> tuple[_Beam, _Trace]:
    """Choose the K best continuations of all beams of an image.

    A finished beam has one continuation: the end mark again, at no cost.
    """
    finished_BK1 = beam.finished_BK.unsqueeze(-1)
    words_BKN = following.words_BKN.masked_fill(finished_BK1, eos)
    log_probs_BKN = following.log_probs_BKN.masked_fill(finished_BK1, 0.0)
    totals_BKN = beam.log_probs_BK.unsqueeze(-1) + log_probs_BKN
    held_BKN = F.pad(beam.scores_BK.unsqueeze(-1), (0, words_BKN.shape[-1] - 1), value=-torch.inf)
    scores_BKN = torch.where(finished_BK1, held_BKN, totals_BKN / penalty)
    best = scores_BKN.flatten(1).topk(beam.words_BK.shape[1])
    words_BK = words_BKN.flatten(1).gather(1, best.indices)
    grown = _Beam(
        beam.images_B,
        words_BK,
        totals_BKN.flatten(1).gather(1, best.indices),
        best.values,
        (words_BK == eos) | best.values.isneginf(),  # an empty slot never grows
    )
    word_log_probs_BK = log_probs_BKN.flatten(1).gather(1, best.indices)
    parents_BK = best.indices // words_BKN.shape[-1]
    return grown, _Trace(beam.images_B, parents_BK, words_BK, word_log_probs_BK, attention_BKR)


def _staying(beam: _Beam, still_waiting: StillWaiting) -> list[int]:
    """Give the rows that have a beam to grow and somebody who waits for it."""
    finished_B = beam.finished_BK.all(1)
    images, finished = torch.stack((beam.images_B, finished_B)).tolist()  # one wait for the device
    return [row for row, image in enumerate(images) if not finished[row] and still_waiting(image)]


def _select(beam: _Beam, rows_B: Tensor) -> _Beam:
    return _Beam(*(part.index_select(0, rows_B) for part in beam))


def _together(beams: list[_Beam]) -> _Beam:
    """Give the last beams of every image: the first of the list are of all, the next fewer."""
    merged, *later = beams
    for beam in later:
        pairs = zip(merged, beam, strict=True)
        merged = _Beam(*(all_.index_copy(0, beam.images_B, some) for all_, some in pairs))
    return merged


def _read_back(beam: _Beam, traces: list[_Trace], eos: int) -> Beams:
    """Follow the parents from the last step to the first; topk left the best beam first."""
    slots_BK = torch.arange(beam.words_BK.shape[1], device=beam.words_BK.device)
    slots_BK = slots_BK.expand_as(beam.words_BK)
    spread = [_spread(trace, beam, eos) for trace in traces]
    slots = [slots_BK]
    for trace in reversed(spread):
        slots.append(trace.parents_BK.gather(1, slots[-1]))
    parents_BKT, slots_BKT = (torch.stack(each, dim=-1) for each in (slots[:0:-1], slots[-2::-1]))
    words_BKT, word_log_probs_BKT = (
        torch.stack(each, dim=-1).gather(1, slots_BKT)
        for each in ([t.words_BK for t in spread], [t.word_log_probs_BK for t in spread])
    )
    growing_BK = ~beam.finished_BK
    return Beams(
        words_BKT,
        (words_BKT != eos).sum(-1),
        beam.log_probs_BK.masked_fill(growing_BK, -torch.inf),
        beam.scores_BK.masked_fill(growing_BK, -torch.inf),
        word_log_probs_BKT,
        _attention(spread, parents_BKT),
    )


def _attention(traces: list[_Trace], parents_BKT: Tensor) -> Tensor | None:
    """Give what each word looked at: it was its parent that paid attention."""
    paid = [trace.attention_BKR for trace in traces if trace.attention_BKR is not None]
    if not paid:
        return None
    paid_BKTR = torch.stack(paid, dim=2)
    return paid_BKTR.gather(1, parents_BKT.unsqueeze(-1).expand_as(paid_BKTR))


def _spread(trace: _Trace, beam: _Beam, eos: int) -> _Trace:
    """Let the images that had left before this step stand still in it."""
    here_B = trace.images_B
    if len(here_B) == len(beam.images_B):
        return trace
    slots_BK = torch.arange(beam.words_BK.shape[1], device=here_B.device).expand_as(beam.words_BK)
    attention_BKR = trace.attention_BKR
    if attention_BKR is not None:
        nothing_BKR = attention_BKR.new_zeros(*slots_BK.shape, attention_BKR.shape[-1])
        attention_BKR = nothing_BKR.index_copy(0, here_B, attention_BKR)
    return _Trace(
        beam.images_B,
        slots_BK.index_copy(0, here_B, trace.parents_BK),
        torch.full_like(slots_BK, eos).index_copy(0, here_B, trace.words_BK),
        torch.zeros_like(beam.log_probs_BK).index_copy(0, here_B, trace.word_log_probs_BK),
        attention_BKR,
    )
