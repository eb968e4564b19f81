"""What cannot be compiled is refused in one line; builds are timed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.config import TrainConfig, TrainingError
from launch.trainer.compilation import WARM_UP_STEPS, check_compile


def refusal(config: TrainConfig, *, device_type: str = "cpu", attention: str = "eager", first_step: int = 0) -> str:
    with pytest.raises(TrainingError) as caught:
        check_compile(config, device_type=device_type, attention=attention, first_step=first_step)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_deepcompile_is_refused_on_a_cpu(train_config: Callable[..., TrainConfig]) -> None:
    config = train_config(compile="deepcompile", precision="float32")
    assert "compile=deepcompile needs a CUDA device, this is a cpu" in refusal(config)


def test_deepcompile_is_refused_where_a_run_goes_on(train_config: Callable[..., TrainConfig]) -> None:
    config = train_config(compile="deepcompile", precision="float32")
    assert "compile=deepcompile cannot go on from step 40" in refusal(config, device_type="cuda", first_step=40)


def test_deepcompile_is_refused_without_nvcc(
    train_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = train_config(compile="deepcompile", precision="float32")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # triton, which a machine without GPUs may lack
    for home in (None, str(tmp_path)):  # a CUDA image of the runtime kind has the folder, and no compiler in it
        monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", home)
        assert "compile=deepcompile needs nvcc, for DeepSpeed builds" in refusal(config, device_type="cuda")
        check_compile(train_config(compile="layers"), device_type="cuda", attention="sdpa")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    check_compile(config, device_type="cuda", attention="sdpa")


def test_missing_compiler_is_named(train_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    words = refusal(train_config(compile="layers"))
    assert "needs a C++ compiler and there is no no-such-compiler; install it" in words
    check_compile(train_config(), device_type="cpu", attention="eager")


def test_missing_triton_is_named(train_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs the Python package triton on a cuda device" in refusal(
        train_config(compile="layers"), device_type="cuda"
    )


def test_selective_over_a_kernel_that_the_compiler_cannot_follow_is_refused(
    train_config: Callable[..., TrainConfig],
) -> None:
    config = train_config(compile="layers", activation_checkpointing="selective")
    assert (
        "and flash_attention_3 is not; take attn_implementation=flash_attention_2 or sdpa, "
        "activation_checkpointing=full, or compile=none"
    ) in refusal(config, attention="flash_attention_3")
    check_compile(config, device_type="cpu", attention="sdpa")
    full = train_config(compile="layers", activation_checkpointing="full")
    check_compile(full, device_type="cpu", attention="flash_attention_3")


def test_build_clock_counts_what_was_built_since_it_was_asked() -> None:
    # in a process of its own: what this one has built before is not the test's
    program = """if True:
        import torch
        from launch.trainer.compilation import BuildClock
        clock, double = BuildClock(), torch.compile(lambda x: x + x, backend="aot_eager")
        before = clock.new_seconds()
        double(torch.ones(2))
        built = clock.new_seconds()
        double(torch.ones(2))
        print(before, built > 0, clock.new_seconds())
    """
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["0.0", "True", "0.0"]


def test_deepcompile_warms_up_until_deepspeed_has_built_anew() -> None:
    from deepspeed.compile.init_z3 import WARMUP

    # the model is built anew in the step after as many
    assert WARM_UP_STEPS["deepcompile"] == WARMUP + 1
