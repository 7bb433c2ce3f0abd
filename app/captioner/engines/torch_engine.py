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
        features_BRD = self._network.eval().encode(stacked(images, self._network))
        encoded_s = time.monotonic()
        beams = self.search(features_BRD, still_waiting)
        classes_BC = self._network.encoder.class_probabilities(features_BRD)
        if classes_BC is not None:
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
        """Find the captions of images whose features are at hand, as the trainer's are.

        Args:
            features_BRD: of photos; or ``features_BFRD`` of clips and shots.
            still_waiting: as for `run`.
        """
        found = beam.search(
            self._network.eval().decoder,
            features_BRD,
            self._options,
            bos=BOS,
            eos=EOS,
            banned=(PAD, UNK),
            still_waiting=still_waiting,
        )
        frames = 1 if self._network.architecture.frames else frames_in(features_BRD)
        return found.arrays().over_frames(frames)


def frames_in(features_BRD: Tensor) -> int:
    """Count the frames of each image: one of ``features_BRD``, F of ``features_BFRD``."""
    return features_BRD.shape[1] if features_BRD.ndim == 4 else 1


def stacked(images: Sequence[Pixels], network: Network) -> Tensor:
    """Give images as the network takes them: uint8 (B, C, H, W) on its device, or (B, F, C, H, W).

    Args:
        images: uint8 ``(S, S, 3)`` or ``(F, S, S, 3)``, all of one shape.
        network: that takes them.
    """
    batch_BHWC = torch.stack([torch.from_numpy(image) for image in images])
    return batch_BHWC.movedim(-1, -3).to(network.encoder.mean.device)
