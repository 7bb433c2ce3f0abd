"""Self-critical training: captions that score better than their siblings become more likely.

B images of a step, K samples of an image, S all of them, T steps, R regions, D feature width,
V words

Reference: Rennie et al. 2017, "Self-critical sequence training for image captioning", eq. 7 to 9;
the baseline of Luo 2020, "A better variant of self-critical sequence training".
"""

from typing import NamedTuple

import torch
from torch import Tensor

from app.captioner.model.network import Decoder
from app.captioner.vocabulary import BOS, EOS, PAD, UNK
from trainer.training.reward import CiderD

NEVER_SAMPLED = (PAD, BOS, UNK)


class Samples(NamedTuple):
    """Captions drawn from the network.

    Attributes:
        words_BKT: int64; words, EOS, then PAD. A caption that reached the last step has no EOS.
        log_probs_BKT: float32, with gradients, of each word; 0 after EOS.
        said_BKT: bool, words and the first EOS.
    """

    words_BKT: Tensor
    log_probs_BKT: Tensor
    mask_BKT: Tensor


def sample(
    decoder: Decoder,
    features_BRD: Tensor,
    samples: int,
    max_words: int,
    *,
    temperature: float = 1.0,
) -> Samples:
    """Draw captions word by word; the samples of an image share its features.

    A temperature below 1 draws likely words more often, and it is that sharper distribution that
    learns. A network taught with label smoothing keeps so much for unlikely words that what it
    draws as it stands is hardly ever a sentence.

    Dropout stays as the caller left it, so that the words drawn are judged by the network that
    drew them (as in Luo 2020). The last step after ``max_words`` words may be the end mark.
    """
    state = decoder.start(features_BRD, samples)
    size = (features_BRD.shape[0], samples)
    words_BK = torch.full(size, BOS, device=features_BRD.device)
    unfinished_BK = torch.ones(size, dtype=torch.bool, device=features_BRD.device)
    forbidden = torch.tensor(NEVER_SAMPLED, device=features_BRD.device)
    words, log_probs, mask = [], [], []
    for _ in range(max_words + 1):
        logits_BKV, state, _ = decoder.step(words_BK, state)
        words_BK, log_probs_BK = _draw(logits_BKV / temperature, forbidden)
        words.append(words_BK.where(unfinished_BK, PAD))
        log_probs.append(log_probs_BK.where(unfinished_BK, 0.0))
        mask.append(unfinished_BK)
        unfinished_BK = unfinished_BK & (words_BK != EOS)
        if not unfinished_BK.any():
            break
    return Samples(*(torch.stack(each, dim=-1) for each in (words, log_probs, mask)))


def _draw(logits_BKV: Tensor, forbidden: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a word per sample, and give its log-probability."""
    log_probs_BKV = logits_BKV.float().index_fill(-1, forbidden, -torch.inf).log_softmax(-1)
    chances_SV = log_probs_BKV.detach().exp().flatten(0, 1)
    words_BK = torch.multinomial(chances_SV, 1).view(logits_BKV.shape[:2])
    return words_BK, log_probs_BKV.gather(-1, words_BK.unsqueeze(-1)).squeeze(-1)


def rewards(scorer: CiderD, images_B: Tensor, samples: Samples) -> Tensor:
    """Score samples against the references of their images.

    Returns:
        ``rewards_BK`` float32 on the samples' device.
    """
    words_BKT = samples.words_BKT
    images_BK = images_B.unsqueeze(-1).expand(words_BKT.shape[:2])
    lengths_BK = samples.mask_BKT.sum(-1)
    rewards_S = scorer.rewards(
        images_BK.flatten().cpu().numpy(),
        words_BKT.flatten(0, 1).cpu().numpy(),
        lengths_BK.flatten().cpu().numpy(),
    )
    rewards_BK = torch.from_numpy(rewards_S).view(words_BKT.shape[:2])
    return rewards_BK.to(words_BKT.device, torch.float32)


def advantages(rewards_BK: Tensor) -> Tensor:
    """Compare each sample with the mean of the others of its image (Luo 2020, eq. 5)."""
    others = rewards_BK.shape[1] - 1
    return rewards_BK - (rewards_BK.sum(1, keepdim=True) - rewards_BK) / others


def policy_loss(samples: Samples, rewards_BK: Tensor) -> Tensor:
    """Give the loss whose gradient is that of the expected reward, per word said.

    It reaches the first EOS and nothing after it: what follows the end was never said.
    """
    gained_BKT = advantages(rewards_BK).unsqueeze(-1) * samples.log_probs_BKT
    return -gained_BKT.sum() / samples.mask_BKT.sum()
