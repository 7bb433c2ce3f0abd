"""Sampling, baseline and loss of self-critical training on a network of a few thousand weights."""

import pytest
import torch

from app.captioner.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from support.tiny import WORDS, tiny_network
from trainer.training.reward import CiderD
from trainer.training.self_critical import (
    NEVER_SAMPLED,
    Samples,
    advantages,
    policy_loss,
    rewards,
    sample,
)

IMAGES, REGIONS, WIDTH = 4, 4, 1280
REFERENCES = ("a dog runs on grass", "a girl plays in water", "a red ball", "a blue dog in water")


@pytest.fixture
def scorer() -> CiderD:
    vocabulary = Vocabulary(WORDS)
    return CiderD([[[*vocabulary.encode(text.split()), EOS]] for text in REFERENCES])


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(IMAGES, REGIONS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("decoder", ["attention", "inject", "merge"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_are_captions_with_the_probability_that_teacher_forcing_gives_them(
    decoder, temperature, features
):
    net = tiny_network(decoder, dropout=0.0).decoder
    torch.manual_seed(3)
    words, log_probs, mask = sample(net, features, 6, max_words=7, temperature=temperature)
    assert words.shape[:2] == (IMAGES, 6)
    assert words.shape[2] <= 8
    assert not torch.isin(words[mask], torch.tensor(NEVER_SAMPLED)).any()
    assert (words[~mask] == PAD).all()
    assert ((words == EOS).sum(-1) <= 1).all()
    ends = (words == EOS).any(-1)
    assert torch.equal(mask.sum(-1)[ends], (words == EOS).int().argmax(-1)[ends] + 1)
    read = torch.cat((torch.full_like(words[..., :1], BOS), words[..., :-1]), dim=-1)
    logits, _ = net(features, read)
    logits[..., list(NEVER_SAMPLED)] = -torch.inf
    sharpened = (logits / temperature).log_softmax(-1)
    expected = sharpened.gather(-1, words.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(log_probs[mask], expected[mask], rtol=0, atol=1e-4)
    assert (log_probs[~mask] == 0).all()


def test_unk_is_never_drawn_even_where_the_network_is_sure_of_it(features):
    net = tiny_network(dropout=0.0).decoder
    with torch.no_grad():
        net.words.bias[UNK] += 100
    words, log_probs, _ = sample(net, features, 3, max_words=5)
    assert not (words == UNK).any()
    assert log_probs.isfinite().all()


def test_the_baseline_is_the_mean_of_the_others():
    rewards_BK = torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]])
    expected = torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(advantages(rewards_BK), expected)


def test_the_loss_reaches_the_first_end_and_nothing_after_it():
    log_probs = torch.full((1, 2, 4), -1.0, requires_grad=True)
    mask = torch.tensor([[[True, True, False, False], [True, True, True, True]]])
    words = torch.tensor([[[5, EOS, PAD, PAD], [5, 6, 7, EOS]]])
    masked = log_probs.where(mask, 0.0)
    policy_loss(Samples(words, masked, mask), torch.tensor([[2.0, 0.0]])).backward()
    better, worse = log_probs.grad[0]
    assert (better[:2] < 0).all()
    assert (better[2:] == 0).all()
    assert (worse > 0).all()


def test_the_mean_reward_rises(scorer, features):
    net = tiny_network(dropout=0.0).decoder.train()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    torch.manual_seed(0)
    means = []
    for _ in range(50):
        drawn = sample(net, features, 8, max_words=8)
        earned = rewards(scorer, torch.arange(IMAGES), drawn)
        means.append(earned.mean().item())
        optimiser.zero_grad()
        policy_loss(drawn, earned).backward()
        optimiser.step()
    assert sum(means[-10:]) > 1.4 * sum(means[:10])
