"""How a node is doing, from /proc and the devices: metrics `system/node-N/…` with MLflow's own names behind.

One rank a node tells them, into the event log of its own rank, at the end of a step and not more often than it is told
to; rates and shares are means since the last time, so that nothing runs beside the training. What a machine does not
tell (no /proc, no driver's library) is left out.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from checkpoint.events import EventWriter
from launch.config import TrainConfig
from launch.trainer.ranks import RankEnvironment

_MB = 1e6
_PROC = Path("/proc")


class NodeTeller:
    """Of the node that this rank is the first of."""

    def __init__(self, config: TrainConfig, ranks: RankEnvironment, events: EventWriter, *, proc: Path = _PROC) -> None:
        self._every_s, self._run_dir, self._proc, self._events = (
            config.logging.system_every_s, config.run_dir, proc, events,
        )  # fmt: skip
        # of equal nodes, whose ranks are numbered node by node
        self._prefix = f"system/node-{ranks.rank // ranks.local_size}/"
        self._local_size = ranks.local_size
        self._counters, self._read_s = read_counters(proc), time.monotonic()

    def look(self, step: int) -> None:
        """At the end of a step. Raises OSError if the disk does not take it."""
        elapsed_s = time.monotonic() - self._read_s
        if elapsed_s < self._every_s:
            return
        counters = read_counters(self._proc)
        metrics = {
            **rates(self._counters, counters, elapsed_s=elapsed_s),
            **memory(self._proc),
            **disk(self._run_dir),
            **devices(self._local_size),
        }
        self._counters, self._read_s = counters, time.monotonic()
        self._events.write("metrics", step=step, **{self._prefix + key: value for key, value in metrics.items()})


def read_counters(proc: Path) -> dict[str, float]:
    """What only ever grows: ticks of all cores together, busy and in all, and bytes of the network."""
    counters: dict[str, float] = {}
    with contextlib.suppress(OSError, IndexError, ValueError):  # where it is not Linux
        ticks = [int(word) for word in (proc / "stat").read_text().splitlines()[0].split()[1:9]]
        # idle and iowait; a guest's ticks, which follow, are counted in user's already
        counters |= {"ticks": sum(ticks), "busy_ticks": sum(ticks) - ticks[3] - ticks[4]}
        interfaces = [line.split(":") for line in (proc / "net" / "dev").read_text().splitlines()[2:]]
        words = [rest.split() for name, rest in interfaces if name.strip() != "lo"]
        counters |= {"received": sum(int(one[0]) for one in words), "sent": sum(int(one[8]) for one in words)}
    return counters


def rates(before: Mapping[str, float], now: Mapping[str, float], *, elapsed_s: float) -> dict[str, float]:
    """Percent of all cores, and MB a second."""
    grown = {key: now[key] - before[key] for key in now if key in before}
    found = {}
    if grown.get("ticks"):
        found["cpu_utilization_percentage"] = 100 * grown["busy_ticks"] / grown["ticks"]
    if "received" in grown and elapsed_s > 0:
        found["network_receive_megabytes_per_second"] = grown["received"] / _MB / elapsed_s
        found["network_transmit_megabytes_per_second"] = grown["sent"] / _MB / elapsed_s
    return found


def memory(proc: Path) -> dict[str, float]:
    """What processes hold, not what caches do."""
    try:
        lines = (line.split(":") for line in (proc / "meminfo").read_text().splitlines())
        kilobytes = {name: int(rest.split()[0]) for name, rest in lines}
        used = kilobytes["MemTotal"] - kilobytes["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return {}
    return {
        "system_memory_usage_megabytes": used * 1024 / _MB,
        "system_memory_usage_percentage": 100 * used / kilobytes["MemTotal"],
    }


def disk(folder: Path) -> dict[str, float]:
    """Of the file system that the run's folder is on."""
    usage = shutil.disk_usage(folder)
    return {
        "disk_usage_percentage": 100 * usage.used / (usage.used + usage.free),
        "disk_available_megabytes": usage.free / _MB,
    }


def devices(count: int) -> dict[str, float]:
    """Of the node's GPUs, by local rank, where the driver's library (NVML, extra `gpu`) tells; without it the memory of
    this rank's own."""
    found: dict[str, float] = {}
    for device in range(min(count, torch.cuda.device_count())):
        # a metric must never end a run, and NVML's errors (under MIG, in a container that lost it) are plain Exceptions
        with contextlib.suppress(Exception):
            used_bytes, total_bytes = _used_bytes(device), torch.cuda.get_device_properties(device).total_memory
            found[f"gpu_{device}_memory_usage_megabytes"] = used_bytes / _MB
            found[f"gpu_{device}_memory_usage_percentage"] = 100 * used_bytes / total_bytes
        with contextlib.suppress(Exception):
            found[f"gpu_{device}_utilization_percentage"] = float(torch.cuda.utilization(device))
    return found


def _used_bytes(device: int) -> int:
    """By all processes. Raises what NVML raises, where the device is not this rank's own."""
    try:
        return torch.cuda.device_memory_used(device)
    except Exception:
        if device != torch.cuda.current_device():
            # mem_get_info would make a CUDA context there: hundreds of MB of what is another rank's
            raise
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return total_bytes - free_bytes
