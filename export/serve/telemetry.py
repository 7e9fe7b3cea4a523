"""What a server counts, in Prometheus' text format: requests by path and status, their seconds, samples, batches, the queue."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts values by the first bound that is not below them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        total, comma = 0, "," if labels else ""
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{comma}le="{bound}"}} {total}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {self.sum}"
        yield f"{name}_count{braces} {total}"


class Telemetry:
    """The counts of one server. Its threads add to them, too."""

    def __init__(self, **about: str) -> None:
        self.lock, self.about = threading.Lock(), about
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.batches, self.computing = Histogram(SAMPLES), Histogram(SECONDS)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request; `path` is one of ours, or `other`."""
        with self.lock:
            self.requests[path, status] += 1
            self.seconds.setdefault(path, Histogram(SECONDS)).add(seconds)

    def batch(self, samples: int, seconds: float) -> None:
        """Count one call of the model."""
        with self.lock:
            self.batches.add(samples)
            self.computing.add(seconds)

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Return all counts; `gauges` are names with what they mean, and what they are now."""
        with self.lock:
            return "\n".join([*self._lines(gauges), ""])

    def _lines(self, gauges: Mapping[str, tuple[str, float]]) -> Iterator[str]:
        yield from _head("trainyard_model_info", "gauge", "the model that is served")
        yield f"trainyard_model_info{{{_labels(self.about)}}} 1"
        for name, (meaning, value) in gauges.items():
            yield from _head(f"trainyard_{name}", "gauge", meaning)
            yield f"trainyard_{name} {value:g}"
        yield from _head("trainyard_requests_total", "counter", "requests that were answered, by path and status")
        for (path, status), count in sorted(self.requests.items()):
            yield f"trainyard_requests_total{{{_labels({'path': path, 'status': str(status)})}}} {count}"
        yield from _head("trainyard_request_seconds", "histogram", "from the first byte of a request to its answer")
        for path, histogram in sorted(self.seconds.items()):
            yield from histogram.lines("trainyard_request_seconds", _labels({"path": path}))
        yield from _head("trainyard_batch_samples", "histogram", "samples that were computed by one call of the model")
        yield from self.batches.lines("trainyard_batch_samples", "")
        yield from _head("trainyard_model_seconds", "histogram", "one call of the model")
        yield from self.computing.lines("trainyard_model_seconds", "")


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"


def _labels(values: Mapping[str, str]) -> str:
    escaped = {k: v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for k, v in values.items()}
    return ",".join(f'{name}="{text}"' for name, text in escaped.items())
