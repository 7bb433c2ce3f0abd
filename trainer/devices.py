"""Which device to train on when nobody names one."""

import torch


def available_device() -> str:
    """Name the GPU where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
