"""How a node is doing, from counters worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch

from checkpoint.events import EventWriter, events_file, read_events
from launch.config import TrainConfig
from launch.trainer.node_metrics import NodeTeller, devices, disk, memory, rates, read_counters
from launch.trainer.ranks import RankEnvironment

NETWORK = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9000000       1    0    0    0     0          0         0  9000000       1    0    0    0     0       0          0
  eth0: {received}       1    0    0    0     0          0         0 {sent}       1    0    0    0     0       0          0
"""  # noqa: E501


def write_proc(folder: Path, *, busy: int, idle: int, received: int = 0, sent: int = 0) -> Path:
    (folder / "net").mkdir(parents=True, exist_ok=True)
    # user nice system idle iowait irq softirq steal guest guest_nice
    (folder / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 7 0\ncpu0 1 2 3\n")
    (folder / "net" / "dev").write_text(NETWORK.format(received=received, sent=sent))
    (folder / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 250 kB\n")
    return folder


def test_shares_and_rates_are_means_since_the_last_time(tmp_path: Path) -> None:
    before = read_counters(write_proc(tmp_path, busy=100, idle=300, received=1_000_000))
    now = read_counters(write_proc(tmp_path, busy=130, idle=370, received=5_000_000, sent=2_000_000))
    assert rates(before, now, elapsed_s=2) == {
        "cpu_utilization_percentage": 30.0,
        "network_receive_megabytes_per_second": 2.0,
        "network_transmit_megabytes_per_second": 1.0,
    }


def test_memory_is_what_processes_hold(tmp_path: Path) -> None:
    assert memory(write_proc(tmp_path, busy=1, idle=1)) == {
        "system_memory_usage_megabytes": 0.768,
        "system_memory_usage_percentage": 75.0,
    }


def test_machine_without_proc_tells_nothing_of_it(tmp_path: Path) -> None:
    assert read_counters(tmp_path / "none") == rates({}, {}, elapsed_s=1) == memory(tmp_path / "none") == {}
    assert 0 < disk(tmp_path)["disk_usage_percentage"] <= 100


class NVMLError(Exception):
    """As pynvml's: derived from Exception alone."""


def refuse(device: int) -> NoReturn:
    raise NVMLError("Not Supported")


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two GPUs of 1 GB, 250 MB of each in use, the first this rank's; in the list those on which a context is made."""
    made: list[int] = []

    def mem_get_info(device: int) -> tuple[int, int]:
        made.append(device)
        return 750_000_000, 1_000_000_000

    stand_ins = {
        "device_count": lambda: 2,
        "current_device": lambda: 0,
        "get_device_properties": lambda device: SimpleNamespace(total_memory=1_000_000_000),
        "device_memory_used": lambda device: 250_000_000,
        "utilization": lambda device: 90,
        "mem_get_info": mem_get_info,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return made


def told_of(device: int) -> dict[str, float]:
    return {
        f"gpu_{device}_memory_usage_megabytes": 250.0,
        f"gpu_{device}_memory_usage_percentage": 25.0,
        f"gpu_{device}_utilization_percentage": 90.0,
    }


def test_gpus_of_other_ranks_are_told_without_a_context_on_them(contexts: list[int]) -> None:
    assert devices(8) == told_of(0) | told_of(1)
    assert contexts == []


def test_what_the_drivers_library_refuses_is_left_out(contexts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert devices(1).keys() == told_of(0).keys() - {"gpu_0_utilization_percentage"}


def test_without_the_drivers_library_a_rank_tells_the_memory_of_its_own_gpu(
    contexts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("device_memory_used", "utilization"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    assert devices(2) == {"gpu_0_memory_usage_megabytes": 250.0, "gpu_0_memory_usage_percentage": 25.0}
    assert contexts == [0]


@pytest.mark.parametrize(("rank", "node"), [(0, 0), (8, 1), (16, 2)])
def test_each_node_tells_under_its_own_name_when_its_time_has_come(
    train_config: Callable[..., TrainConfig], tmp_path: Path, rank: int, node: int
) -> None:
    ranks = RankEnvironment(rank, 24, 0, None, local_size=8)
    proc = write_proc(tmp_path / "proc", busy=100, idle=300)
    log = events_file(tmp_path, rank)
    (tmp_path / "run").mkdir()
    with EventWriter(log) as events:
        for every_s, step in ((3600, 1), (0, 2)):
            teller = NodeTeller(train_config(logging={"system_every_s": every_s}), ranks, events, proc=proc)
            write_proc(tmp_path / "proc", busy=110, idle=300)
            teller.look(step)
    [(event, _)] = read_events(log)
    assert (event.kind, event.step) == ("metrics", 2)
    assert {key.rpartition("/")[0] for key in event.fields} == {f"system/node-{node}"}
    assert event.fields[f"system/node-{node}/system_memory_usage_percentage"] == 75.0
