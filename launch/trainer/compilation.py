"""torch.compile and DeepSpeed's DeepCompile: what can run here, and how long building took.

`layers` builds the decoder layer once and uses it for all of them: what changes from step to step reaches it as
tensors, so nothing is built again. ZeRO-3's hooks are around a layer and never inside (`engine.py`).
`deepcompile` hands the whole model to DeepSpeed's compiler, which schedules ZeRO-3's gathers (arXiv:2504.09983).
"""

from __future__ import annotations

import importlib.util
import os
import shutil

from launch.config import TrainConfig, TrainingError


def check_compile(config: TrainConfig, *, device_type: str, attention: str) -> None:
    """Raises TrainingError, in one line, for what cannot be compiled here. `attention` is the chosen kernel."""
    if config.compile == "deepcompile" and device_type != "cuda":
        raise TrainingError(
            f"compile=deepcompile needs a CUDA device, this is a {device_type} (its collectives are CUDA code); "
            "take compile=layers, or none"
        )
    if config.compile == "none":
        return
    if device_type == "cpu":
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise TrainingError(
                f"compile={config.compile} needs a C++ compiler and there is no {compiler}; install it (on Debian: "
                "apt-get install g++), name one in CXX, or take compile=none"
            )
    elif importlib.util.find_spec("triton") is None:
        raise TrainingError(
            f"compile={config.compile} needs the Python package triton on a {device_type} device, which is not "
            "installed; install it, or take compile=none"
        )
    by_document = device_type == "cpu" and attention == "sdpa" and config.data.document_masking
    if by_document and config.activation_checkpointing.mode == "selective":
        raise TrainingError(
            "compile=layers with activation_checkpointing=selective needs attention that torch.compile can see into, "
            "and on CPUs sdpa goes from document to document; take attn_implementation=eager, "
            "activation_checkpointing=full, or compile=none"
        )


class BuildClock:
    """Seconds that torch.compile has spent building, from one question to the next."""

    def __init__(self) -> None:
        self._told_s = 0.0

    def new_seconds(self) -> float:
        """Since the last question, or since the process began."""
        from torch._dynamo.utils import calculate_time_spent  # a second to import, for those who compile

        total_s = float(calculate_time_spent().get("total_wall_time", 0.0))
        new_s, self._told_s = total_s - self._told_s, total_s
        return new_s
