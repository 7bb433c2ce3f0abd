"""The frames of a shot: which of them are looked at, and how they go through a batch.

F frames, S side of the network's square
"""

from collections.abc import Sequence

import numpy as np

from app.captioner.image.decode import Pixels


def evenly(frames: int, count: int) -> list[int]:
    """Choose so many frames, in their order and evenly spread; of fewer some come repeatedly.

    The first and the last are among them.

    Args:
        frames: how many there are, at least 1.
        count: how many to choose; a single one is that in the middle.
    """
    if count <= 1:
        return [frames // 2]
    return [round(n * (frames - 1) / (count - 1)) for n in range(count)]


def shot_of(frames: Sequence[Pixels], chosen: Sequence[int]) -> Pixels:
    """Bring these frames of a shot together, for one place in a batch.

    Args:
        frames: uint8 ``(S, S, 3)`` each, in their order.
        chosen: which of them, see `evenly`.

    Returns:
        uint8 ``(F, S, S, 3)``; of a single frame ``(S, S, 3)``, that of a photo.

    Raises:
        ValueError: there is no frame.
    """
    if not frames:
        raise ValueError("a shot has one frame or more")
    return frames[0] if len(frames) == 1 else np.stack([frames[n] for n in chosen])


def frames_of(image: Pixels) -> Pixels:
    """Give uint8 ``(F, S, S, 3)`` of a photo, or of a shot from `shot_of`."""
    return image if image.ndim == 4 else image[None]
