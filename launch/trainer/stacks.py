"""What the main thread of this process is doing, seen from another thread while it is stuck, and written down.

    RUN/logs/stacks-rank-N.txt          every thread's Python stack, newest attempt last
    RUN/logs/nccl-flight-rank-N.pickle  on CUDA: NCCL's flight recorder, for torch's fr_trace

Touches no process group: a thread that joins a collective beside the main thread would break it.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from pathlib import Path
from types import FrameType

_ROOT = str(Path(__file__).resolve().parents[2])
# where Python goes into an exchange between ranks: torch's functions by their names, DeepSpeed's handles that wait
_TORCH_COLLECTIVES = "torch/distributed/distributed_c10d.py"
_DEEPSPEED_COLLECTIVES = ("deepspeed/comm/", "deepspeed/runtime/zero/partition_parameters.py")


def write_stacks(run_dir: Path, rank: int) -> Path:
    """Every thread's stack, by C code that needs no memory. Returns the file."""
    file = run_dir / "logs" / f"stacks-rank-{rank}.txt"
    with file.open("a", encoding="utf-8") as output:
        output.write(f"--- rank {rank}, {time.strftime('%Y-%m-%d %H:%M:%S')} ---\n")
        output.flush()
        faulthandler.dump_traceback(file=output, all_threads=True)
    return file


def write_flight_record(run_dir: Path, rank: int) -> None:
    """NCCL's last collectives and which of them have ended, where torch has NCCL and records them."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return
    record = torch._C._distributed_c10d._dump_nccl_trace()
    (run_dir / "logs" / f"nccl-flight-rank-{rank}.pickle").write_bytes(record)


def main_thread_place() -> tuple[str | None, str]:
    """The collective that the main thread waits in, None if in none, and the innermost line of this project's code."""
    ident = threading.main_thread().ident
    assert ident is not None
    return place_of(sys._current_frames().get(ident))


def place_of(frame: FrameType | None) -> tuple[str | None, str]:
    """`main_thread_place` of a stack, from its innermost frame outwards."""
    collective = None
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_ROOT) and "site-packages" not in file:
            return collective, f"{file.removeprefix(_ROOT).lstrip('/')}:{frame.f_lineno}"
        if file.endswith(_TORCH_COLLECTIVES) or any(part in file for part in _DEEPSPEED_COLLECTIVES):
            # the outermost of its frames names what was called
            collective = frame.f_code.co_qualname if file.endswith(_TORCH_COLLECTIVES) or not collective else collective
        frame = frame.f_back
    return collective, ""
