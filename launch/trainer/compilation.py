"""torch.compile and DeepSpeed's DeepCompile: what can run here, and how long building took.

`layers` builds the decoder layer once and uses it for all of them: what changes from step to step reaches it as
tensors, so nothing is built again. ZeRO-3's hooks are around a layer and never inside (`engine.py`).
`deepcompile` hands the whole model to DeepSpeed's compiler, which schedules ZeRO-3's gathers (arXiv:2504.09983).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from launch.config import Compile, TrainConfig, TrainingError
from model.attention_backends.selection import KERNELS

# An attempt's first steps, up to the last that builds. DeepCompile measures five, then builds the model anew with its
# gathers in another order (DeepSpeed 0.19: init_z3.WARMUP)
WARM_UP_STEPS: dict[Compile, int] = {"none": 1, "layers": 1, "deepcompile": 6}


def check_compile(config: TrainConfig, *, device_type: str, attention: str, first_step: int = 0) -> None:
    """Raises TrainingError, in one line, for what cannot be compiled here. `attention` is the chosen kernel, and
    `first_step` that of the checkpoint that the run goes on from."""
    if config.compile == "deepcompile" and device_type != "cuda":
        raise TrainingError(
            f"compile=deepcompile needs a CUDA device, this is a {device_type} (its collectives are CUDA code); "
            "take compile=layers, or none"
        )
    if config.compile == "deepcompile" and first_step:
        # its passes are due at step 0 and no other (compile/backend.py, launch_compile_passes)
        raise TrainingError(
            f"compile=deepcompile cannot go on from step {first_step}: DeepSpeed 0.19 begins it in a run's first step "
            "only; go on with compile=layers"
        )
    if config.compile == "deepcompile" and not _can_build_deepcompile():
        raise TrainingError(
            "compile=deepcompile needs nvcc, for DeepSpeed builds its operators at the first start, and there is none "
            "here; install the CUDA toolkit (a CUDA image of the devel kind has it), or take compile=layers"
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
    if config.activation_checkpointing.mode == "selective" and not KERNELS[attention].is_traced:
        raise TrainingError(
            "compile=layers with activation_checkpointing=selective needs attention that torch.compile can see into, "
            f"and {attention} is not; take attn_implementation={KERNELS[attention].instead}, "
            "activation_checkpointing=full, or compile=none"
        )


def _can_build_deepcompile() -> bool:
    """Whether nvcc is where DeepSpeed 0.19 asks it for its version (op_builder/builder.py, installed_cuda_version)."""
    import torch
    from deepspeed.git_version_info import installed_ops
    from torch.utils.cpp_extension import CUDA_HOME

    if installed_ops.get("dc", False) or torch.version.hip is not None:
        return True
    return CUDA_HOME is not None and (Path(CUDA_HOME) / "bin" / "nvcc").is_file()


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
