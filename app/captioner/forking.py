"""The process that lanes are forked from: it imports torch and does nothing else.

What it has imported is in the memory of all its children only once, and nothing that runs when they
are forked can be left half done in them. This module itself imports no torch.
"""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

MOST_LANES = 8
"""Of one network: each process has a copy of the weights, and threads wait for Python's lock."""
_PRELOADED = ["app.captioner.pipeline"]


def context() -> ForkServerContext:
    """Give what makes processes, pipes and common memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def begin() -> None:
    """Start it, so that it imports while the caller goes on."""
    context()
    forkserver.ensure_running()
