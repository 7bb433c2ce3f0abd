"""What the service needs of a captioner, whatever it runs on.

`app.captioner.pipeline.Captioner` is one; tests serve another, without a network.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # Pillow and numpy, which a health check need not load
    from app.captioner.engines.engine import Floats
    from app.captioner.image.decode import Decode, EncodedImage, Pixels
    from app.captioner.manifest import ImageGeometry
    from app.captioner.pipeline import BatchResult
    from app.captioner.search import StillWaiting


class Search(Protocol):
    """How captions are searched."""

    @property
    def beam_width(self) -> int:
        """How many candidates an image has at most."""


class Manifest(Protocol):
    """What the network is."""

    @property
    def name(self) -> str:
        """Name of the checkpoint."""

    @property
    def version(self) -> str:
        """Its version."""

    @property
    def search(self) -> Search:
        """How captions are searched."""

    @property
    def image(self) -> "ImageGeometry":
        """What the network sees of an image."""

    def public(self) -> dict[str, Any]:
        """Return what a client may know, JSON-ready; ``name``, ``version`` and ``sha256`` in it."""


class Engine(Protocol):
    """Where the network runs."""

    @property
    def max_concurrent_batches(self) -> int:
        """How many calls of `Captioner.caption` may be under way side by side with profit."""

    @property
    def batches_cost_alike(self) -> bool:
        """Whether a large batch takes about as long as a small one."""


class Captioner(Protocol):
    """Uploads -> captions. Safe to call from several threads."""

    @property
    def manifest(self) -> Manifest:
        """What the network is."""

    @property
    def engine(self) -> Engine:
        """Where it runs."""

    def read(self, data: bytes, *, max_pixels: int, decode: "Decode" = ...) -> "Pixels":
        """Turn a file into the network's square.

        Raises:
            ImageError: the upload is at fault.
        """

    def encoded(self, data: bytes, *, max_pixels: int) -> "EncodedImage | None":
        """Take an upload as it is, if `caption` had better decode it in its batch."""

    def caption(
        self, images: "Sequence[Pixels | EncodedImage]", still_waiting: "StillWaiting" = ...
    ) -> "BatchResult":
        """Caption one batch.

        Raises:
            OutOfMemory: the batch does not fit into the device; a smaller one may.
            DeviceFault: the device has failed for good.
        """

    def shot(self, frames: "Sequence[Pixels]") -> "Pixels":
        """Bring the frames of a shot together, for `caption` to describe as one image.

        Raises:
            ValueError: there is no frame.
        """

    def summaries(self, images: "Sequence[Pixels]") -> "Floats":
        """Give ``summary_BW`` of one batch, each image in one vector, and search no captions.

        Raises:
            OutOfMemory: the batch does not fit into the device; a smaller one may.
            DeviceFault: the device has failed for good.
        """

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Run each batch size once, so that no user pays for first times."""

    def check_golden(self, *, decode: "Decode" = ...) -> None:
        """Say the golden caption.

        Raises:
            CheckpointError: it is another one on this machine.
        """
