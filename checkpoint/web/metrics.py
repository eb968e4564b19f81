"""The service's status as Prometheus metrics. Values are those of the last look; no state is kept here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from checkpoint.status import ServiceStatus

_MAX_REASON_CHARACTERS = 200


def render(status: ServiceStatus) -> bytes:
    """The text that a Prometheus server scrapes."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(status))
    return bytes(generate_latest(registry))


class _Snapshot:
    def __init__(self, status: ServiceStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from self._of_service()
        yield from self._of_runs()

    def _of_service(self) -> Iterator[Metric]:
        status = self._status
        plain = {
            "smollm2_last_look_timestamp_seconds": ("Unix time of the last look at all runs", status.looked_s),
            "smollm2_queue_length": ("jobs that run or wait", len(status.queue)),
            "smollm2_problems": ("lines that a person should read", len(status.problems)),
            "smollm2_disk_used_bytes": ("of the disk that holds the runs", status.disk.used_bytes),
            "smollm2_disk_total_bytes": ("of the disk that holds the runs", status.disk.total_bytes),
        }
        for name, (meaning, value) in plain.items():
            yield GaugeMetricFamily(name, meaning, value=value)
        jobs = CounterMetricFamily(
            "smollm2_jobs", "jobs that ended, by kind and by who was to blame", labels=("kind", "blame")
        )
        for count in status.ended_jobs:
            jobs.add_metric((count.kind, count.blame), count.count)
        yield jobs

    def _of_runs(self) -> Iterator[Metric]:
        runs = GaugeMetricFamily("smollm2_runs", "runs by state", labels=("state",))
        for state, count in sorted(Counter(run.state for run in self._status.runs).items()):
            runs.add_metric((state,), count)
        yield runs
        checkpoints = GaugeMetricFamily("smollm2_checkpoints", "complete checkpoints", labels=("run",))
        newest = GaugeMetricFamily("smollm2_newest_step", "of a checkpoint", labels=("run",))
        exports = GaugeMetricFamily("smollm2_exports", "of the checkpoints on the page", labels=("run", "state"))
        quarantined = GaugeMetricFamily(
            "smollm2_quarantined_info", "what is not tried again, and why", labels=("run", "what", "reason")
        )
        for run in self._status.runs:
            checkpoints.add_metric((run.name,), run.checkpoint_count)
            if run.checkpoints:
                newest.add_metric((run.name,), run.checkpoints[0].step)
            for state, count in sorted(Counter(one.export for one in run.checkpoints).items()):
                exports.add_metric((run.name, state), count)
            for trouble in run.troubles:
                if trouble.is_final:
                    reason = " ".join(trouble.reason.split())[:_MAX_REASON_CHARACTERS]
                    quarantined.add_metric((run.name, trouble.what, reason), 1)
        yield from (checkpoints, newest, exports, quarantined)
