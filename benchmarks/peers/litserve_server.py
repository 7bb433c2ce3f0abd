"""LitServe: one worker, which decodes and captions batches."""

import litserve
from engine import DEVICE, MAX_BATCH, PORT, TIMEOUT_S, WAIT_S, Pixels, load_engine
from fastapi import Request


class CaptionAPI(litserve.LitAPI):
    """Photos in, captions out."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the network in the worker."""
        self.engine = load_engine()

    def decode_request(self, request: Request) -> Pixels:
        """Read one upload; what comes is the request's form."""
        return self.engine.read(request["image"].file.read())

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        """Leave the stacking to the engine."""
        return inputs

    def predict(self, images: list[Pixels]) -> list[str]:
        """Caption a batch."""
        return self.engine.caption(images)

    def unbatch(self, output: list[str]) -> list[str]:
        """Give each request its caption."""
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        """Answer one request."""
        return {"caption": output}


if __name__ == "__main__":
    api = CaptionAPI(max_batch_size=MAX_BATCH, batch_timeout=WAIT_S)
    server = litserve.LitServer(
        api, accelerator=DEVICE, devices=1, workers_per_device=1, timeout=TIMEOUT_S
    )
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False)
