"""What the server counts, as Prometheus reads it at /metrics. Keys stand there by name, so only some may read it."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_PICTURES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Metrics:
    """The counts of one server. For any thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        # Requests.
        self.requests = Counter(
            "velatura_requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self.request_s = Histogram(
            "velatura_request_seconds", "From a request's first byte to its answer's last.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip

        # Pictures and their batches.
        self.pictures = Counter("velatura_pictures", "Pictures drawn, by key.", ["key"], registry=registry)
        self.dropped = Counter(
            "velatura_pictures_not_drawn", "Pictures that were wanted and not drawn, by reason.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.waited_s = Histogram(
            "velatura_wait_seconds", "From a picture's request to the beginning of its batch.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch_s = Histogram("velatura_batch_seconds", "Drawing of one batch.", buckets=_SECONDS, registry=registry)
        self.batch_pictures = Histogram(
            "velatura_batch_pictures", "Pictures of one batch.", buckets=_PICTURES, registry=registry
        )
        self.batch_stacks = Histogram(
            "velatura_batch_stacks", "Different stacks in one batch.", buckets=_PICTURES, registry=registry
        )
        self.apart = Counter(
            "velatura_batches_apart", "Times that pictures could have been one batch and were begun one by one, which "
            "is faster.", registry=registry,
        )  # fmt: skip

        # Joining: pictures come while a batch is drawn.
        self.joins = Counter(
            "velatura_joins", "Pictures drawn, by whether one could be begun at once as they came, or they had to join "
            "the next batch.", ["batch"], registry=registry,
        )  # fmt: skip
        self.join_wait_s = Histogram(
            "velatura_join_wait_seconds", "Wait for the batch that was being drawn as a picture came.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip

        # What is kept, and who waits.
        self.reads = Counter(
            "velatura_adapter_reads", "Adapters that a picture needed, by where they were.", ["where"],
            registry=registry,
        )  # fmt: skip
        self.queue = Gauge("velatura_queue_pictures", "Pictures that wait.", registry=registry)
        self.replicas = Gauge("velatura_replicas", "Replicas that draw, by base.", ["base"], registry=registry)
        self.adapter_bytes = Gauge("velatura_adapter_bytes", "Memory of the adapters that are kept.", registry=registry)
        self.device_adapter_bytes = Gauge(
            "velatura_adapter_gpu_bytes", "Memory of the adapters that are kept on the GPU.", registry=registry
        )
        self.result_bytes = Gauge(
            "velatura_result_bytes", "Memory of pictures kept for url results.", registry=registry
        )
        self.is_ready = Gauge("velatura_ready", "1 while new requests are taken.", registry=registry)
        self.uploads = Counter("velatura_uploads", "LoRAs uploaded, by key.", ["key"], registry=registry)

    def joined(self, waits_s: Iterable[float]) -> None:
        """Count how long each picture of a batch waited for the batch that was drawn as it came; 0 if none was."""
        for wait_s in waits_s:
            self.joins.labels("next" if wait_s else "at once").inc()
            if wait_s:
                self.join_wait_s.observe(wait_s)

    def text(self) -> bytes:
        """All of them as text."""
        written: bytes = generate_latest(self.registry)
        return written
