"""What a rank on this machine is told where a benchmark starts it without DeepSpeed's launcher."""

from __future__ import annotations

import socket


def free_port() -> int:
    """One of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def rank_variables(rank: int = 0, *, world_size: int = 1, port: int) -> dict[str, str]:
    """For the environment of one of `world_size` ranks, which meet at the port."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
