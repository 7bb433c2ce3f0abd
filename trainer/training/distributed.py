"""The ranks of a run, the processes that ``torchrun`` starts: what is whose, and how they agree.

All ranks draw the same batches and take every n-th image of each. Gradients are added up in one
flat tensor after the backward pass. Torch's DistributedDataParallel averages, where the words of
the whole batch weigh alike here, and wraps one ``forward``, where self-critical training goes
through ``start`` and ``step``.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
from torch import distributed, nn

from app.captioner.errors import CaptionerError
from trainer.errors import TrainerError

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")

_ERRORS = (TrainerError, CaptionerError)

# Long enough for one rank to decode a large set while the others wait; torchrun ends the others
# when one fails.
_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run, as one of them sees them.

    Attributes:
        device: torch device string of this rank.
        rank: which one this is; 0 leads, and it alone writes.
        count: how many there are.
    """

    device: str = "cpu"
    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Say whether this rank writes, logs and scores."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Say which images of a batch are this rank's; they lie by length, so each has some."""
        return slice(self.rank, None, self.count)

    def once(
        self, act: Callable[_Params, _Result], *args: _Params.args, **kwargs: _Params.kwargs
    ) -> _Result:
        """Let the leader do something, and give every rank what came of it, be it an error."""
        if not self.leads:
            return self._receive()  # type: ignore[no-any-return]
        try:
            result = act(*args, **kwargs)
        except _ERRORS as error:
            self._broadcast(error)
            raise
        self._broadcast(result)
        return result

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the leader go first, so that the others find on disk what it made."""
        if not self.leads:
            self._receive()
            yield
            return
        try:
            yield
        except _ERRORS as error:
            self._broadcast(error)
            raise
        self._broadcast(None)

    def _broadcast(self, value: object) -> None:
        if self.count > 1:
            distributed.broadcast_object_list([value])

    def _receive(self) -> Any:
        received: list[Any] = [None]
        distributed.broadcast_object_list(received)
        if isinstance(received[0], _ERRORS):
            raise received[0]
        return received[0]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each rank the sum of all ranks' gradients; one that is missing counts as zero."""
        if self.count == 1:
            return
        learning = [each for each in parameters if each.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for parameter, gradient, part in zip(learning, gradients, parts, strict=True):
            parameter.grad = gradient.copy_(part.view_as(gradient))

    def total(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Add up figures of all ranks by name."""
        if self.count == 1:
            return dict(metrics)
        gathered: list[dict[str, float]] = [{} for _ in range(self.count)]
        distributed.all_gather_object(gathered, dict(metrics))
        names = dict.fromkeys(name for each in gathered for name in each)
        return {name: sum(each.get(name, 0.0) for each in gathered) for name in names}


def is_leader() -> bool:
    """Say whether this process speaks for all: the only one, or rank 0."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Join the other ranks where ``torchrun`` started this process, else be alone.

    Args:
        device: torch device string; ``cuda`` means, of several ranks, to each its own.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    # with both, words and numbers go by gloo: a rank that waits for them keeps its GPU idle
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield Ranks(device, distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
