"""Which device to train on when nobody names one, and in which arithmetic."""

import torch

PRECISIONS = ("float32", "bfloat16")


def available_device() -> str:
    """Name the GPU where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
