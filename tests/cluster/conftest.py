"""Two nodes on one machine: network namespaces with an sshd each, and the tiny run that they train.

A node is one process, `unshare --pid --kill-child`, whose end takes everything on the node with it. The launcher has a
PID namespace of its own too: DeepSpeed's pdsh runner answers signals with `pkill -f` on every host, which must reach
nothing else of this machine. The disk is shared, as a cluster's file system is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from checkpoint.events import Event, events_file, read_events
from pipeline.shards import format as contract

ROOT = Path(__file__).resolve().parents[2]
NODES = ("nodea", "nodeb")
ADDRESSES = {"nodea": "10.77.0.1", "nodeb": "10.77.0.2"}
SSH_PORT = 2222
STARTED_S = 30.0
SETTINGS = {
    "steps": 12,
    "schedule": {"name": "wsd", "warmup_steps": 3, "decay_steps": 4},
    "checkpoint": {"every_steps": 6},
    "validation": {"every_steps": 6, "sequences": 21},
    "launcher": {"master_port": 29900},
}


@dataclass
class Cluster:
    """Both nodes up; `folder` holds the config `tiny.yaml`, the hostfile and the run."""

    folder: Path
    namespaces: dict[str, str]
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`python -m launch ARGUMENTS` on nodea, in a PID namespace of its own."""
        return self.start_on("nodea", sys.executable, "-m", "launch", *arguments)

    def start_on(self, node: str, *command: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),  # where DeepSpeed looks for .deepspeed_env
            "DS_ACCELERATOR": "cpu",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
        named = ["sh", "-c", f'hostname {node} && exec "$@"', "sh"]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespaces[node], *inside, *named, *command],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def train(self, *overrides: str) -> subprocess.Popen[str]:
        hostfile = f"launcher.hostfile={self.folder / 'hostfile'}"
        return self.start("train", str(self.folder / "tiny.yaml"), hostfile, *overrides)

    def processes(self, node: str, *words: str) -> list[int]:
        """Of one node, by its network namespace, those whose command line has all the words."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespaces[node]], capture_output=True, text=True)
        found = []
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if all(word in command for word in words):
                    found.append(pid)
        return found

    def ranks(self, node: str) -> list[int]:
        """The trainers of a node, without DeepSpeed's watcher."""
        watchers = self.processes(node, "deepspeed.launcher.launch")
        return [pid for pid in self.processes(node, "launch.train") if pid not in watchers and _is_python(pid)]

    def wait_for_step(self, step: int, process: subprocess.Popen[str], *, timeout_s: float = 200) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not any("train/loss" in event.fields and event.step >= step for event in self.events()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s, f"step {step} did not come"
            time.sleep(0.02)

    def events(self) -> list[Event]:
        return [event for event, _ in read_events(events_file(self.folder / "run"))]

    def losses(self) -> dict[int, float]:
        return {event.step: event.fields["train/loss"] for event in self.events() if "train/loss" in event.fields}

    def assert_out(self, *, within_s: float) -> None:
        """No trainer is left on either node."""
        deadline_s = time.monotonic() + within_s
        while any(self.ranks(node) for node in NODES):
            assert time.monotonic() < deadline_s, {node: self.ranks(node) for node in NODES}
            time.sleep(0.1)

    def inside(self, node: str, *command: str) -> None:
        """Run a command where the node's processes are, in its mounts and its network."""
        [first] = Path(f"/proc/{self.nodes[node].pid}/task/{self.nodes[node].pid}/children").read_text().split()
        subprocess.run(["nsenter", "-t", first, "-m", "-n", *command], check=True)

    def stop(self) -> None:
        # a test that has failed leaves what it has started
        for process in (*self.started, *self.nodes.values()):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
        for namespace in self.namespaces.values():
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)
            shutil.rmtree(f"/etc/netns/{namespace}", ignore_errors=True)


@pytest.fixture
def cluster(tmp_path: Path, tiny_config: Callable[..., str]) -> Iterator[Cluster]:
    """Two nodes for one test; skips, with the reason, where they cannot be had."""
    _need_what_it_takes()
    cluster = Cluster(tmp_path, {node: f"smollm2-{os.getpid()}-{node}" for node in NODES})
    try:
        _connect(cluster)
        _write_configs(cluster)
        config = tiny_config(tmp_path / "run", {"random": _write_dataset(tmp_path / "data")}, **SETTINGS)
        (tmp_path / "tiny.yaml").write_text(config)
        for node in NODES:
            _start_node(cluster, node)
        yield cluster
    finally:
        cluster.stop()


def _need_what_it_takes() -> None:
    if os.geteuid() != 0:
        pytest.skip("two network namespaces need root")
    wanted = {
        "ip": "iproute2",
        "sshd": "openssh-server",
        "ssh": "openssh-client",
        "pdsh": "pdsh",
        "unshare": "util-linux",
    }
    search = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [package for program, package in wanted.items() if shutil.which(program, path=search) is None]
    if missing:
        pytest.skip(f"needs the Debian packages {' '.join(missing)}")
    probe = f"smollm2-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    subprocess.run(["ip", "netns", "del", probe], check=True)


def _connect(cluster: Cluster) -> None:
    """A pair of cables, one end in each namespace, both called eth0."""
    ends = {node: f"s{os.getpid() % 100000}{node[-1]}" for node in NODES}
    for namespace in cluster.namespaces.values():
        _ip("netns", "add", namespace)
    _ip("link", "add", ends["nodea"], "type", "veth", "peer", "name", ends["nodeb"])
    for node, namespace in cluster.namespaces.items():
        _ip("link", "set", ends[node], "netns", namespace, "name", "eth0")
        _ip("-n", namespace, "address", "add", f"{ADDRESSES[node]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", namespace, "link", "set", device, "up")


def _write_configs(cluster: Cluster) -> None:
    folder = cluster.folder
    for key in ("identity", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "identity.pub", folder / "authorized_keys")
    hosts = "127.0.0.1 localhost\n" + "".join(f"{address} {node}\n" for node, address in ADDRESSES.items())
    client = (
        f"Host *\n  Port {SSH_PORT}\n  IdentityFile {folder / 'identity'}\n  StrictHostKeyChecking no\n"
        "  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n  ServerAliveInterval 5\n  ServerAliveCountMax 2\n"
        "  ConnectTimeout 5\n"
    )
    for namespace in cluster.namespaces.values():
        etc = Path("/etc/netns") / namespace
        (etc / "ssh").mkdir(parents=True)
        (etc / "hosts").write_text(hosts)
        (etc / "ssh" / "ssh_config").write_text(client)
    (folder / "sshd_config").write_text(
        f"Port {SSH_PORT}\nHostKey {folder / 'host_key'}\nAuthorizedKeysFile {folder / 'authorized_keys'}\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
    )
    (folder / "hostfile").write_text("".join(f"{node} slots=1\n" for node in NODES))
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    (folder / ".deepspeed_env").write_text(
        f"PATH={path}\nOMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\nGLOO_SOCKET_IFNAME=eth0\n"
    )


def _start_node(cluster: Cluster, node: str) -> None:
    Path("/run/sshd").mkdir(exist_ok=True)
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
    sshd = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin")
    daemon = f"hostname {node} && exec {sshd} -D -e -f {cluster.folder / 'sshd_config'}"
    with (cluster.folder / f"sshd-{node}.log").open("wb") as log:
        cluster.nodes[node] = subprocess.Popen(
            ["ip", "netns", "exec", cluster.namespaces[node], *inside, "sh", "-c", daemon], stdout=log, stderr=log
        )
    deadline_s = time.monotonic() + STARTED_S
    reach = ["ip", "netns", "exec", cluster.namespaces[node], "ssh", node, "hostname"]
    while subprocess.run(reach, capture_output=True, text=True).stdout.strip() != node:
        log_text = (cluster.folder / f"sshd-{node}.log").read_text()
        assert time.monotonic() < deadline_s, f"{node} did not come up: {log_text}"
        time.sleep(0.1)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _is_python(pid: int) -> bool:
    try:
        return "python" in Path(f"/proc/{pid}/exe").resolve().name
    except OSError:
        return False


def _write_dataset(folder: Path) -> Path:
    folder.mkdir()
    (folder / contract.TOKENIZER_FILE).write_text('{"made_for": "tests"}')
    random = np.random.default_rng(0)
    splits: dict[contract.Split, contract.SplitRecord] = {}
    sizes: dict[contract.Split, int] = {"train": 400, "validation": 60}
    for split, count in sizes.items():
        rows = [[*random.integers(1, 256, size=99).tolist(), 0] for _ in range(count)]
        file = contract.split_directory(folder, split) / "data-00000-000.arrow"
        file.parent.mkdir(exist_ok=True)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, contract.SCHEMA) as writer:
            names = [f"{split}-{number}" for number in range(count)]
            writer.write_batch(pa.record_batch([rows, names], schema=contract.SCHEMA))
        shard = contract.ShardRecord(
            path=file.relative_to(folder).as_posix(),
            documents=count,
            tokens=100 * count,
            size_bytes=file.stat().st_size,
            digest=contract.digest_file(file),
        )
        splits[split] = contract.SplitRecord(documents=count, tokens=100 * count, shards=(shard,))
    tokenizer = contract.TokenizerRecord(
        digest=contract.digest_file(folder / contract.TOKENIZER_FILE), vocab_size=256, eos_token_id=0
    )
    manifest = contract.DatasetManifest(
        name="random", tokenizer=tokenizer, splits=splits, documents_in=460, text_bytes_kept=0, config_digest=""
    )
    contract.write_manifest(folder, manifest)
    return folder
