import pytest
import torch
from torch import nn

from app.captioner.architecture import Architecture
from app.captioner.model.network import Encoder
from trainer.training.folding import fold_with_gradients


def new_encoder(name: str) -> Encoder:
    """Build one whose batch norms have something to say."""
    torch.manual_seed(0)
    architecture = Architecture(encoder=name, features="grid", decoder="attention", words=9)
    encoder = Encoder(architecture).eval()
    for norm in (each for each in encoder.modules() if isinstance(each, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.bias, -0.1, 0.1)
    return encoder


def learn(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    features = encoder(images)
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return features.detach()


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "mobilenet_v3_large", "resnet50", "efficientnet_lite1", "convnext_tiny"],
)
def test_folded_an_encoder_gives_the_same_features_and_learns_the_same(name):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    encoder = new_encoder(name)
    features, expected = learn(encoder, images), {}
    for part, parameter in encoder.named_parameters():
        expected[part], parameter.grad = parameter.grad, None
    torch.testing.assert_close(
        learn(fold_with_gradients(encoder), images), features, rtol=1e-3, atol=1e-4
    )
    for part, parameter in encoder.named_parameters():
        scale = expected[part].abs().max()
        assert (parameter.grad - expected[part]).abs().max() <= 1e-3 * scale + 1e-6, part


def test_folded_an_encoder_follows_the_weights_it_was_made_from():
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    encoder, other = new_encoder("mobilenet_v2"), new_encoder("mobilenet_v2")
    folded = fold_with_gradients(encoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        encoder.load_state_dict(other.state_dict())
        torch.testing.assert_close(folded(images), other(images), rtol=1e-3, atol=1e-4)
