"""Mosec: some processes decode, one captions batches."""

from typing import Any

from engine import DECODERS, MAX_BATCH, WAIT_S, Pixels, load_engine, load_reader
from mosec import Server, Worker


class Decode(Worker):
    """Bytes -> square."""

    def __init__(self) -> None:
        self.read = load_reader()

    def deserialize(self, data: bytes) -> Pixels:
        """Read one upload."""
        return self.read(data)

    def forward(self, data: Pixels) -> Pixels:
        """Pass the square on."""
        return data


class Caption(Worker):
    """Squares -> captions."""

    def __init__(self) -> None:
        self.engine = load_engine()

    def forward(self, data: list[Pixels]) -> list[dict[str, Any]]:
        """Caption a batch."""
        return [{"caption": caption} for caption in self.engine.caption(data)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=DECODERS)
    server.append_worker(Caption, max_batch_size=MAX_BATCH, max_wait_time=int(WAIT_S * 1e3))
    server.run()
