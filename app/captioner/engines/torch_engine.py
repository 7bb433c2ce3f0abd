"""The network in plain torch: what training asks for scores, and what other engines are held to."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from app.captioner.engines.engine import EngineResult, Floats, Stage, summaries_of
from app.captioner.image.decode import Pixels
from app.captioner.model import beam
from app.captioner.model.network import Network
from app.captioner.search import BeamArrays, SearchOptions, StillWaiting, always_waiting
from app.captioner.vocabulary import BOS, EOS, PAD, UNK


class TorchEngine:
    """A network as it is, on its own device; see `engine.Engine`.

    Args:
        network: it may go on to be trained between two batches.
        options: of the search.
    """

    max_concurrent_batches = 1
    batches_cost_alike = False

    def __init__(self, network: Network, options: SearchOptions) -> None:
        self._network, self._options = network, options

    @torch.inference_mode()
    def run(self, images: Sequence[Pixels], still_waiting: StillWaiting) -> EngineResult:
        """Find the captions of one batch; see `engine.Engine.run`."""
        began_s = time.monotonic()
        features_BRD = self._network.eval().encoder(stacked(images, self._network))
        encoded_s = time.monotonic()
        beams = self.search(features_BRD, still_waiting)
        if self._network.encoder.classes is not None:
            classes_BC = self._network.encoder.class_logits(features_BRD).softmax(-1)
            beams = beams._replace(classes_BC=classes_BC.cpu().numpy())
        stages = Stage("encode", began_s, encoded_s), Stage("search", encoded_s, time.monotonic())
        return EngineResult(list(range(len(images))), beams, stages)

    def summaries(self, images: Sequence[Pixels]) -> Floats:
        """Give each image in one vector; see `engine.Engine.summaries`."""
        return summaries_of(self.run(images, always_waiting))

    def warm_up(self, images: Sequence[Pixels]) -> None:
        """Run a batch once."""
        self.run(images, always_waiting)

    @torch.inference_mode()
    def search(self, features_BRD: Tensor, still_waiting: StillWaiting) -> BeamArrays:
        """Find the captions of images whose features are at hand, as the trainer's are."""
        found = beam.search(
            self._network.eval().decoder,
            features_BRD,
            self._options,
            bos=BOS,
            eos=EOS,
            banned=(PAD, UNK),
            still_waiting=still_waiting,
        )
        return found.arrays()


def stacked(images: Sequence[Pixels], network: Network) -> Tensor:
    """Give images as the network takes them: uint8 (B, C, H, W) on its device."""
    batch_BHWC = torch.stack([torch.from_numpy(image) for image in images])
    return batch_BHWC.permute(0, 3, 1, 2).to(network.encoder.mean.device)
