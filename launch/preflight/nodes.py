"""Asks every node at once: by ssh for a hostfile's hosts, by srun in a Slurm allocation, by a child on this machine.

A node's command gets the environment that DeepSpeed's pdsh launcher would give it: PYTHON… of here, `.deepspeed_env` of
the home folder and of the current one, and the current folder.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.cluster.hostfile import Host
from launch.cluster.launcher import Hostfile, Placement, Slurm
from launch.cluster.remote_environment import remote_environment
from launch.preflight.node_probe import PREFIX

PROBE_MODULE = "launch.preflight.node_probe"
_CONNECT_TIMEOUT_S = 10
_MAX_AT_ONCE = 64


@dataclass(frozen=True)
class Answer:
    """`said` is the probe's JSON, None if there is none and `failure` says why."""

    host: Host
    said: Any
    failure: str
    asked_s: float
    answered_s: float


def ask(
    placement: Placement,
    hosts: Sequence[Host],
    arguments: Mapping[str, Sequence[str]],
    *,
    environment: Mapping[str, str],
    timeout_s: float,
) -> list[Answer]:
    """The probe's answer of every host, in their order; `arguments` of the probe by the host's name."""

    def ask_one(host: Host) -> Answer:
        command = node_command(placement, host, arguments[host.name], environment=environment)
        asked_s = time.time()
        try:
            done = subprocess.run(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            return Answer(host, None, f"did not answer in {timeout_s:g} s", asked_s, time.time())
        except FileNotFoundError:
            return Answer(host, None, f"{command[0]} is not in PATH", asked_s, time.time())
        answered_s = time.time()
        for line in done.stdout.splitlines():
            if line.startswith(PREFIX):
                return Answer(host, json.loads(line.removeprefix(PREFIX)), "", asked_s, answered_s)
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        return Answer(host, None, said[-1].strip(), asked_s, answered_s)

    with ThreadPoolExecutor(min(_MAX_AT_ONCE, len(hosts))) as pool:
        return list(pool.map(ask_one, hosts))


def node_command(
    placement: Placement, host: Host, arguments: Sequence[str], *, environment: Mapping[str, str]
) -> list[str]:
    """What asks one node."""
    probe = [sys.executable, "-m", PROBE_MODULE, *arguments]
    if isinstance(placement, Hostfile):
        port = [] if placement.settings.ssh_port is None else ["-p", str(placement.settings.ssh_port)]
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_TIMEOUT_S}"]
        exports = "".join(
            f"export {name}={shlex.quote(value)}; " for name, value in remote_environment(environment).items()
        )
        return ["ssh", *options, *port, host.name, f"{exports}cd {shlex.quote(str(Path.cwd()))} && {shlex.join(probe)}"]
    if isinstance(placement, Slurm):
        return ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host.name}", "--export=ALL", *probe]
    return probe
