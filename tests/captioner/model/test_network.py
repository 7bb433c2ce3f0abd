import pytest
import torch
from pydantic import ValidationError
from torchvision import models

from app.captioner.architecture import ENCODER_SHAPES, Architecture
from app.captioner.model.network import Encoder, Network, new_classifier
from support.tiny import tiny_network


@pytest.mark.parametrize("features", ["grid", "vector"])
@pytest.mark.parametrize("encoder", ENCODER_SHAPES)
def test_every_encoder_gives_features_of_its_width(encoder, features):
    architecture = Architecture(encoder=encoder, features=features, decoder="merge", words=9)
    with torch.device("meta"):
        network = Encoder(architecture)
    network.mean, network.std = network.mean.to("meta"), network.std.to("meta")
    images = torch.zeros(2, 3, 224, 224, dtype=torch.uint8, device="meta")
    B, R, D = network.eval()(images).shape
    assert B == 2
    assert network.width == D
    assert (1 if features == "vector" else 14 * 14 if encoder == "vgg16" else 7 * 7) == R


def test_the_vector_of_vgg16_is_the_articles_fc2():
    torch.manual_seed(0)
    net = models.vgg16(weights=None).eval()
    architecture = Architecture(encoder="vgg16", features="vector", decoder="merge", words=9)
    encoder = Encoder(architecture, net).eval()
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    normalised = (image / 255 - encoder.mean) / encoder.std
    with torch.inference_mode():
        fc2 = net.classifier[:5](net.avgpool(net.features(normalised)).flatten(1))
        torch.testing.assert_close(encoder(image)[:, 0], fc2)


def test_the_encoder_takes_over_the_classifiers_weights():
    net = models.mobilenet_v2(weights=None)
    architecture = Architecture(encoder="mobilenet_v2", features="grid", decoder="merge", words=9)
    assert Encoder(architecture, net).blocks[0][0].weight is net.features[0][0].weight


DECODERS = [
    ("merge", False),
    ("inject", False),
    ("attention", False),
    ("attention", True),
]


@pytest.mark.parametrize(("decoder", "global_feature"), DECODERS)
def test_teacher_forcing_and_steps_agree(decoder, global_feature):
    network = tiny_network(decoder, global_feature=global_feature)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 4, 1280, generator=generator)
    words = torch.randint(0, 16, (2, 3, 5), generator=generator)
    with torch.inference_mode():
        forced, _ = network.decoder(features, words)
        state = network.decoder.start(features, 3)
        for t in range(5):
            logits, state, _ = network.decoder.step(words[:, :, t], state)
            torch.testing.assert_close(logits, forced[:, :, t])


@pytest.mark.parametrize(("decoder", "global_feature"), DECODERS)
def test_only_the_steps_asked_for_are_scored(decoder, global_feature):
    network = tiny_network(decoder, global_feature=global_feature)
    words = torch.randint(0, 16, (2, 3, 5))
    asked = torch.rand(2, 3, 5) < 0.5
    with torch.inference_mode():
        all_of_them, attention = network.decoder(features := torch.randn(2, 4, 1280), words)
        some, same_attention = network.decoder(features, words, asked)
    torch.testing.assert_close(some, all_of_them[asked])
    torch.testing.assert_close(same_attention, attention)


def test_reorder_moves_beams_and_leaves_images():
    decoder = tiny_network("attention").decoder
    with torch.inference_mode():
        state = decoder.start(torch.randn(2, 4, 1280), 3)
        _, state, _ = decoder.step(torch.tensor([[4, 5, 6], [7, 8, 9]]), state)
        moved = decoder.reorder(state, torch.tensor([[2, 2, 0], [1, 0, 0]]))
    assert torch.equal(moved.rows[0][0, 0], state.rows[0][0, 2])
    assert torch.equal(moved.rows[1][1, 1], state.rows[1][1, 0])
    assert moved.image is state.image


def test_attention_is_one_softmax_over_regions_and_sentinel():
    decoder = tiny_network("attention").decoder
    words = torch.tensor([[[4, 5, 6]]])
    with torch.inference_mode():
        _, attention = decoder(torch.randn(1, 4, 1280), words)
    assert attention.shape == (1, 1, 3, 5)
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 1, 3))
    assert not torch.allclose(attention[0, 0, 0], attention[0, 0, 1])  # each word looks elsewhere


def test_the_global_feature_has_its_say_where_no_region_is_looked_at():
    decoder = tiny_network("attention", global_feature=True).decoder
    torch.nn.init.zeros_(decoder.regions.weight)  # every region looks the same
    torch.nn.init.zeros_(decoder.regions.bias)
    words = torch.tensor([[[4, 5, 6]]])
    with torch.inference_mode():
        (one, _), (other, _) = (decoder(torch.rand(1, 4, 1280), words) for _ in range(2))
        torch.nn.init.zeros_(decoder.global_feature.weight)
        (blind, _), (blind_too, _) = (decoder(torch.rand(1, 4, 1280), words) for _ in range(2))
    assert not torch.allclose(one, other)
    torch.testing.assert_close(blind, blind_too)


def test_merge_shows_the_lstm_no_image():
    decoder = tiny_network("merge").decoder
    states = [decoder.start(torch.randn(1, 4, 1280), 1) for _ in range(2)]
    with torch.inference_mode():
        after = [decoder.step(torch.tensor([[4]]), state) for state in states]
    assert torch.equal(after[0][1].rows[0], after[1][1].rows[0])
    assert not torch.equal(after[0][0], after[1][0])


def test_the_forget_gate_starts_open():
    decoder = tiny_network("inject").decoder
    assert torch.equal(decoder.input_gates.bias[16:32], torch.ones(16))


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoder": "alexnet"},
        {"decoder": "transformer"},
        {"decoder": "attention", "features": "vector"},
        {"global_feature": True},
        {"words": 4},
        {"colour": "red"},
    ],
)
def test_an_impossible_architecture_is_refused(wrong):
    right = {"encoder": "mobilenet_v2", "features": "grid", "decoder": "merge", "words": 9}
    with pytest.raises(ValidationError):
        Architecture.model_validate({**right, **wrong})


def test_gradients_reach_every_parameter():
    for decoder, global_feature in DECODERS:
        network: Network = tiny_network(decoder, global_feature=global_feature).train()
        network.encoder.eval()
        images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        words = torch.randint(4, 16, (2, 2, 4))
        network(images, words).logsumexp(-1).sum().backward()
        assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_efficientnet_lite_takes_pixels_as_its_pretrained_weights_do():
    architecture = Architecture(
        encoder="efficientnet_lite1", features="grid", decoder="attention", words=9
    )
    encoder = Encoder(architecture)
    image = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    seen = []
    encoder.blocks = torch.nn.Sequential(_Keep(seen))
    encoder(image)
    torch.testing.assert_close(
        seen[0][0, 0, 0], torch.tensor([-127.0, 0, 128]) / 128, atol=1e-6, rtol=0
    )


class _Keep(torch.nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, pixels):
        self.seen.append(pixels)
        return pixels


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite1", 5_416_680),
        ("efficientnet_lite2", 6_092_072),
    ],
)
def test_efficientnet_lite_has_as_many_parameters_as_the_originals(name, parameters):
    with torch.device("meta"):
        net = new_classifier(name)
    assert sum(each.numel() for each in net.parameters()) == parameters


def test_classes_are_those_of_the_classifier():
    torch.manual_seed(0)
    net = models.mobilenet_v2(weights=None).eval()
    architecture = Architecture(
        encoder="mobilenet_v2", features="grid", decoder="attention", words=9, classes=True
    )
    encoder = Encoder(architecture, net).eval()
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    normalised = (image / 255 - encoder.mean) / encoder.std
    with torch.inference_mode():
        found = encoder.class_logits(encoder(image))
        torch.testing.assert_close(found, net(normalised), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "vgg16", "classes": True}, "classes can be kept of"),
        ({"features": "vector", "decoder": "merge", "classes": True}, "set features to 'grid'"),
        ({"decoder": "merge", "tied_words": True}, "option of decoder 'attention'"),
        ({"tied_words": True, "embedding_width": 256}, "embedding_width and hidden_width alike"),
    ],
)
def test_what_cannot_be_kept_or_tied_is_refused(changes, message):
    fields = {"encoder": "mobilenet_v2", "features": "grid", "decoder": "attention", "words": 9}
    with pytest.raises(ValidationError, match=message):
        Architecture(**fields | changes)
