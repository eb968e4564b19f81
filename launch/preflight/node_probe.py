"""What one node has and sees, as one JSON line on stdout: `python -m launch.preflight.node_probe JOB`.

Run on every node by ssh or srun with the environment of DeepSpeed's launcher, so that it finds what the ranks would
find. It judges nothing: `comparison.py` does, which sees all nodes. No torch; GPUs are asked of nvidia-smi.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from checkpoint.events import code_revision
from pipeline.shards.format import DatasetError, digest_file, read_manifest

PREFIX = "PREFLIGHT "
PACKAGES = ("torch", "deepspeed", "numpy", "pyarrow", "pydantic")
ROOMS = ("configs", "pipeline", "model", "launch", "checkpoint")
PROBE_FOLDER = ".preflight"
_GPU_FIELDS = "index,name,memory.total,memory.used"


class Job(BaseModel):
    """What to look at. `port` is tried to be bound on the first node alone (None: not here)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    token: str
    run_dir: Path
    datasets: dict[str, Path]
    tokenizer: Path | None = None
    port: int | None = None
    write_bytes: int = 1 << 26


def encode(payload: BaseModel) -> str:
    """One word that no shell changes."""
    return base64.urlsafe_b64encode(payload.model_dump_json().encode()).decode()


def decode(word: str) -> str:
    return base64.urlsafe_b64decode(word).decode()


def look(job: Job) -> dict[str, Any]:
    """Every part apart: one that cannot be looked at leaves the reason under its own name."""
    parts: dict[str, Any] = {
        "versions": _versions,
        "revision": code_revision,
        "source_digest": _source_digest,
        "cores": lambda: len(os.sched_getaffinity(0)),
        "gpus": _gpus,
        "disk": lambda: _disk(job),
        "datasets": lambda: {name: _dataset_digest(path) for name, path in job.datasets.items()},
        "tokenizer": lambda: None if job.tokenizer is None else digest_file(job.tokenizer),
        "port": lambda: None if job.port is None else _port(job.port),
    }
    seen: dict[str, Any] = {"name": job.name, "hostname": socket.gethostname(), "errors": {}}
    for name, part in parts.items():
        try:
            seen[name] = part()
        except Exception as error:
            where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            seen["errors"][name] = f"{where}{reason}" or type(error).__name__
    seen["time_s"] = time.time()
    return seen


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _source_digest() -> str:
    """Of this code as it lies here: two nodes may have the same commit with different changes on top, or no git."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for room in ROOMS:
        for file in sorted((root / room).rglob("*.py")):
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _gpus() -> dict[str, Any] | None:
    """None where there is no nvidia-smi. `busy` are processes by GPU index."""
    if shutil.which("nvidia-smi") is None:
        return None
    table = _nvidia_smi(f"--query-gpu={_GPU_FIELDS},uuid")
    processes = _nvidia_smi("--query-compute-apps=gpu_uuid,pid,process_name,used_memory")
    return {
        "devices": [
            {
                "index": int(index),
                "name": name,
                "total_mib": int(total),
                "used_mib": int(used),
                "processes": [f"pid {pid} ({program})" for owner, pid, program, _ in processes if owner == uuid],
            }
            for index, name, total, used, uuid in table
        ]
    }


def _nvidia_smi(query: str) -> list[list[str]]:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _disk(job: Job) -> dict[str, Any]:
    """Of the run folder: what a save does, done once. The token stays for the other nodes to see."""
    folder = job.run_dir / PROBE_FOLDER / job.token
    folder.mkdir(parents=True, exist_ok=True)
    partial, whole = folder / f"{job.name}.partial", folder / f"{job.name}.whole"
    block = os.urandom(1 << 20)
    started_s = time.perf_counter()
    with partial.open("wb") as file:
        for _ in range(max(1, job.write_bytes // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    written_s = time.perf_counter() - started_s
    size = partial.stat().st_size
    partial.rename(whole)
    renamed = whole.is_file() and not partial.exists()
    with whole.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # a file system that grants everything locks nothing
        with whole.open("r+b") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locks = False
            except BlockingIOError:
                locks = True
    whole.unlink()
    (folder / f"{job.name}.token").write_text(job.token)
    return {
        "free_bytes": shutil.disk_usage(job.run_dir).free,
        "written_bytes_per_s": size / written_s,
        "renamed": renamed,
        "locks": locks,
    }


def _dataset_digest(path: Path) -> str:
    """The digest, or what is wrong with it after a `!`."""
    try:
        return read_manifest(path).digest()
    except (DatasetError, OSError) as error:
        return f"!{error}"


def _port(port: int) -> str:
    """Empty, or why it cannot be bound."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
            listener.listen()
        except OSError as error:
            return error.strerror or str(error)
    return ""


def tokens_seen(run_dir: Path, token: str) -> list[str]:
    """Names of the nodes whose token is visible from here."""
    return sorted(file.stem for file in (run_dir / PROBE_FOLDER / token).glob("*.token"))


if __name__ == "__main__":
    given = Job.model_validate_json(decode(sys.argv[1]))
    if sys.argv[2:] == ["--tokens"]:
        print(PREFIX + json.dumps(tokens_seen(given.run_dir, given.token)), flush=True)
    else:
        print(PREFIX + json.dumps(look(given)), flush=True)
