"""BentoML: one service decodes, another captions the batches that the framework adapts."""

import asyncio
from pathlib import Path

import bentoml
import numpy as np
from engine import MAX_BATCH, TIMEOUT_S, load_engine, load_reader


@bentoml.service(workers=1, traffic={"timeout": TIMEOUT_S})
class Network:
    """Squares in, captions out."""

    def __init__(self) -> None:
        self.engine = load_engine()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=int(TIMEOUT_S * 1e3))
    def caption(self, images: np.ndarray) -> list[str]:
        """Caption a batch."""
        return self.engine.caption(list(images))


@bentoml.service(workers=1, traffic={"timeout": TIMEOUT_S})
class Captions:
    """Photos in, captions out."""

    network = bentoml.depends(Network)

    def __init__(self) -> None:
        self.read = load_reader()

    @bentoml.api
    async def predict(self, image: Path) -> dict[str, str]:
        """Answer one request."""
        square = await asyncio.to_thread(lambda: self.read(image.read_bytes()))
        (caption,) = await self.network.to_async.caption(square[np.newaxis])
        return {"caption": caption}
