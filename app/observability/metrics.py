"""The metrics: words of the glossary, base units, and labels from fixed sets.

A label is a route, never a path.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
_PROBABILITIES = tuple(tenth / 10 for tenth in range(1, 11))
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one app, on a registry of its own."""

    def __init__(self) -> None:
        self._first = ""  # until a checkpoint is
        self.registry = CollectorRegistry()
        self._count_requests()
        self._time_requests()
        self._count_batches()
        self._gauge_the_service()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _count_requests(self) -> None:
        registry = self.registry
        self.requests = Counter(
            "caption_requests", "Answers by route, outcome (ok or a code), and checkpoint.",
            ["route", "outcome", "checkpoint"], registry=registry,
        )  # fmt: skip
        self.rejected = Counter(
            "caption_rejected", "Requests turned away before their body was used.",
            ["reason"], registry=registry,
        )  # fmt: skip
        self.images = Counter(
            "caption_images", "Images by outcome (ok or a code), and checkpoint.",
            ["outcome", "checkpoint"], registry=registry,
        )  # fmt: skip
        self.withheld = Counter(
            "caption_withheld", "Captions not told, by reason, and checkpoint.",
            ["reason", "checkpoint"], registry=registry,
        )  # fmt: skip
        self.confidence = Histogram(
            "caption_confidence", "Of the best caption of an image, where it is known.",
            ["checkpoint"], buckets=_PROBABILITIES, registry=registry,
        )  # fmt: skip
        self.cancellations = Counter(
            "caption_cancelled", "Images nobody waited for any more, by stage.",
            ["stage"], registry=registry,
        )  # fmt: skip
        self.result_cache = Counter(
            "caption_result_cache", "Uploads looked up in the result cache: hit, shared or miss.",
            ["outcome"], registry=registry,
        )  # fmt: skip

    def _time_requests(self) -> None:
        registry = self.registry
        self.request_duration = Histogram(
            "caption_request_duration_seconds", "From the headers to the end of the answer.",
            ["route", "checkpoint"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.decode_duration = Histogram(
            "caption_decode_duration_seconds", "Bytes to a fitted image, thread wait included.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.queue_wait = Histogram(
            "caption_queue_wait_seconds", "Wait of an image for its batch.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.inference_duration = Histogram(
            "caption_inference_duration_seconds", "A batch through encode and search.",
            ["stage", "checkpoint"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip

    def _count_batches(self) -> None:
        registry = self.registry
        self.batch_size = Histogram(
            "caption_batch_size", "Images in a batch.", buckets=_IMAGES, registry=registry
        )
        self.batches = Counter(
            "caption_batches", "Batches by the reason why they left: full, or the device was free.",
            ["reason"], registry=registry,
        )  # fmt: skip
        self.out_of_memory = Counter(
            "caption_out_of_memory", "Batches that did not fit into the device.", registry=registry
        )
        self.batch_size_limit = Gauge(
            "caption_batch_size_limit", "Images a batch may have now.", registry=registry
        )

        self.decoders_ended = Counter(
            "caption_decoders_ended", "Decode processes that ended and were replaced.",
            ["reason"], registry=registry,
        )  # fmt: skip

    def _gauge_the_service(self) -> None:
        registry = self.registry
        self.queue_depth = Gauge(
            "caption_queue_depth", "Images that wait for a batch.", registry=registry
        )
        self.inflight_requests = Gauge(
            "caption_inflight_requests", "Requests between admission and answer.", registry=registry
        )
        self.inflight_bytes = Gauge(
            "caption_inflight_bytes", "Bytes of body reserved by them.", registry=registry
        )
        self.connections = Gauge(
            "caption_connections", "Connections of clients.", registry=registry
        )
        self.unread_bytes = Gauge(
            "caption_unread_bytes", "Bytes of answers that clients have not read yet.",
            registry=registry,
        )  # fmt: skip
        self.connections_ended = Counter(
            "caption_connections_ended", "Connections that we ended before their client did.",
            ["reason"], registry=registry,
        )  # fmt: skip
        self.loop_lag = Histogram(
            "caption_loop_lag_seconds", "How late the event loop comes to a call, or a probe.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.ready = Gauge("caption_ready", "1 when /readyz says 200.", registry=registry)
        self.checkpoint = Gauge(
            "caption_checkpoint_info", "The checkpoints served.",
            ["name", "version", "sha256"], registry=registry,
        )  # fmt: skip
        self.canary_share = Gauge(
            "caption_canary_share", "Of requests that ask for no checkpoint: the last one's.",
            registry=registry,
        )  # fmt: skip
        self.reloads = Counter(
            "caption_reloads", "Looks for another checkpoint: served, unchanged or refused.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        for outcome in ("served", "unchanged", "refused"):
            self.reloads.labels(outcome)

    def follow_log(self, dropped_lines: Callable[[], int]) -> None:
        """Tell what the log has lost; it is the process's own, and older than these metrics."""
        self.registry.register(_Dropped(dropped_lines))

    def serve(self, identities: Sequence[Mapping[str, str]]) -> None:
        """Take note of what is served from now on: name, version and sha256; the first leads."""
        self.checkpoint.clear()
        for identity in identities:
            self.checkpoint.labels(**identity).set(1)
            self.withheld.labels("low_confidence", f"{identity['name']}:{identity['version']}")
        self._first = f"{identities[0]['name']}:{identities[0]['version']}"

    def answered(
        self, route: str, outcome: str, checkpoint: str = "", duration_s: float | None = None
    ) -> None:
        """Take note of an answer, by the checkpoint that captioned; else by the first one."""
        checkpoint = checkpoint or self._first
        self.requests.labels(route, outcome, checkpoint).inc()
        if duration_s is not None:
            self.request_duration.labels(route, checkpoint).observe(duration_s)

    def captioned(self, outcome: str, checkpoint: str) -> None:
        """Take note of what became of an image."""
        self.images.labels(outcome, checkpoint).inc()

    def told(self, confidence: float | None, withheld: str | None, checkpoint: str) -> None:
        """Take note of how sure a caption is, and why it is withheld if it is."""
        if confidence is not None:
            self.confidence.labels(checkpoint).observe(confidence)
        if withheld:
            self.withheld.labels(withheld, checkpoint).inc()

    def dispatched(self, waits_s: Sequence[float], reason: str) -> None:
        """Take note of a batch that leaves the queue."""
        self.batches.labels(reason).inc()
        self.batch_size.observe(len(waits_s))
        for wait_s in waits_s:
            self.queue_wait.observe(wait_s)

    def computed(self, stage: str, duration_s: float, images: int, checkpoint: str) -> None:
        """Take note of a stage of a batch: ``encode``, ``search``, or ``decode`` of its images."""
        if stage != "decode":
            self.inference_duration.labels(stage, checkpoint).observe(duration_s)
            return
        for _ in range(images):
            self.decode_duration.observe(duration_s)

    def cancelled(self, stage: str) -> None:
        """Take note of a caller who left during ``decode``, ``queue`` or ``batch``."""
        self.cancellations.labels(stage).inc()

    def looked_up(self, outcome: str) -> None:
        """Take note of a lookup in the result cache: ``hit``, ``shared`` or ``miss``."""
        self.result_cache.labels(outcome).inc()


class _Dropped(Collector):
    """A counter that somebody else counts."""

    def __init__(self, dropped_lines: Callable[[], int]) -> None:
        self._dropped_lines = dropped_lines

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "caption_log_lines_dropped",
            "Log lines that nobody will read: their reader was slow, gone, or had no room.",
            value=self._dropped_lines(),
        )
