"""Ray Serve: one replica, its batches put together by the framework."""

import asyncio
from typing import Any

import ray
from engine import MAX_BATCH, PORT, TIMEOUT_S, WAIT_S, Pixels, load_engine
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=4 * MAX_BATCH, max_queued_requests=128)
class Captions:
    """Photos in, captions out."""

    def __init__(self) -> None:
        self.engine = load_engine()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)
    async def caption(self, images: list[Pixels]) -> list[str]:
        """Caption a batch beside the event loop."""
        return await asyncio.to_thread(self.engine.caption, images)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Answer one request."""
        async with request.form() as form:
            data = await form["image"].read()
        image = await asyncio.to_thread(self.engine.read, data)
        return {"caption": await self.caption(image)}


if __name__ == "__main__":
    ray.init(include_dashboard=False)  # its processes would take cores and memory from the service
    serve.start(http_options={"host": "127.0.0.1", "port": PORT, "request_timeout_s": TIMEOUT_S})
    serve.run(Captions.bind(), route_prefix="/predict", blocking=True)
