"""What Prometheus reads, by vLLM's names with our prefix. Every server has a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from esdllm.serving.requests import Completion, FinishReason
from esdllm.serving.session import Session

__all__ = ["Metrics"]

_LABEL = "model_name"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """Counters and histograms of a server, and what its session says of itself when it is asked."""

    def __init__(self, session: Session, model: str) -> None:
        self._registry, self._model = CollectorRegistry(), model
        self._first = self._histogram(
            "time_to_first_token_seconds", "of streams, from the request to its first settled token"
        )
        self._whole = self._histogram("e2e_request_latency_seconds", "from the request to its last token")
        self._queued = self._histogram("request_queue_time_seconds", "waiting for a slot")
        self._errors = Counter(
            "esdllm:http_errors", "requests answered with an error", [_LABEL, "status"], registry=self._registry
        )
        self._registry.register(_SessionCollector(session, model))

    def _histogram(self, name: str, help: str) -> Histogram:
        found = Histogram(f"esdllm:{name}", help, [_LABEL], registry=self._registry, buckets=_SECONDS)
        return found.labels(self._model)

    def first_token(self, seconds: float) -> None:
        """Note that a row's first token is settled."""
        self._first.observe(seconds)

    def ended(self, completion: Completion, seconds: float) -> None:
        """Note that a row ended."""
        self._whole.observe(seconds)
        self._queued.observe(completion.queued)

    def refused(self, status: int) -> None:
        """Note that a request was answered with an error."""
        self._errors.labels(self._model, str(status)).inc()

    def written(self, accept: str) -> tuple[bytes, str]:
        """Return all of it, and its content type, as whoever asks `accept`s it."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type


class _SessionCollector(Collector):
    """Reads the session's state when it is asked."""

    def __init__(self, session: Session, model: str) -> None:
        self._session, self._model = session, model

    def collect(self) -> Iterator[Metric]:
        state = self._session.state()
        steps = max(1, state.forwards)
        gauges = {
            "num_requests_running": ("rows in slots", state.running),
            "num_requests_waiting": ("rows that wait for a slot", state.waiting),
            "slots": ("slots there are", state.slots),
            "slots_busy": ("slots with a row", state.running),
            "slots_busy_share": ("of the slots, the share that had a row, since the start", state.busy),
            "tokens_per_forward": ("settled tokens per forward pass, since the start", state.generation_tokens / steps),
            "refresh_share": ("forward passes that refreshed all positions", state.refreshes / steps),
            "stuck_seconds": ("since the last step, where one is due", state.stuck_for),
        }
        counters = {
            "forwards": ("forward passes", state.forwards),
            "prompt_tokens": ("prompt tokens of rows that ended", state.prompt_tokens),
            "generation_tokens": ("settled tokens of rows that ended", state.generation_tokens),
        }
        for name, (told, value) in gauges.items():
            gauge = GaugeMetricFamily(f"esdllm:{name}", told, labels=[_LABEL])
            gauge.add_metric([self._model], value)
            yield gauge
        for name, (told, value) in counters.items():
            counter = CounterMetricFamily(f"esdllm:{name}", told, labels=[_LABEL])
            counter.add_metric([self._model], value)
            yield counter
        ends = CounterMetricFamily(
            "esdllm:request_success", "rows that ended, by reason", labels=[_LABEL, "finished_reason"]
        )
        for reason in FinishReason:
            ends.add_metric([self._model, reason.value], state.finished.get(reason, 0))
        yield ends
