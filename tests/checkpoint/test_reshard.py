"""Checkpoints that DeepSpeed wrote, for another number of ranks and back: bit for bit, and as DeepSpeed has it."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import reshard
from checkpoint.cli import main
from checkpoint.consolidate import consolidate_checkpoint
from checkpoint.lock import exclusive_lock
from checkpoint.manifest import (
    CheckpointError,
    checkpoint_directory,
    read_manifest,
    verify_checkpoint,
    write_durably,
)
from checkpoint.rank_file import read_rank_file
from checkpoint.reshard import _write_ranks, reshard_checkpoint, resharded_directory
from checkpoint.zero3_state import read_state, split_sub_groups

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("tied-float32", "untied-float32", "tied-bfloat16", "muon-float32")


class Anything:
    """Stands for DeepSpeed's objects, as a careful reader would have it."""

    def __init__(self, *arguments: Any) -> None:
        pass


ALLOWED: list[Any] = [
    (Anything, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (Anything, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
]


def write(source: Path, target: Path, world_size: int) -> Path:
    target.mkdir(parents=True)
    _write_ranks(read_state(source), target, world_size=world_size, size_bytes=0)
    return target


def load(zero: Path, kind: str) -> list[dict[str, Any]]:
    """The contents of all ranks' files, by torch."""
    files = {int(path.name.split("zero_pp_rank_")[1].split("_")[0]): path for path in zero.glob(f"*_{kind}_states.pt")}
    return [torch.load(files[rank], weights_only=False) for rank in range(len(files))]


def whole_state(zero: Path) -> dict[tuple[str, str], Any]:
    """The state of every parameter by name and key, put together the plain way; padding has to be zeros."""
    ranks = [contents["optimizer_state_dict"] for contents in load(zero, "optim")]
    found: dict[tuple[str, str], Any] = {}
    for index, shapes in enumerate(load(zero, "model")[0]["param_shapes"]):
        entries = [
            {"master": rank["fp32_flat_groups"][index], **rank["optimizer_state_dict"]["state"].get(index, {})}
            for rank in ranks
        ]
        for key, first in entries[0].items():
            position = 0
            for name, shape in shapes.items():
                share = math.ceil(math.prod(shape) / len(ranks))
                if not torch.is_tensor(first) or first.ndim == 0:
                    [found[name, key]] = {float(entry[key]) for entry in entries}
                    continue
                padded = torch.cat([entry[key].data[position : position + share] for entry in entries])
                found[name, key] = padded[: math.prod(shape)].reshape(shape)
                position += share
        [group] = [g for g in ranks[0]["optimizer_state_dict"]["param_groups"] if index in g["params"]]
        settings = {key: value for key, value in group.items() if key != "params"}
        found |= {(name, "settings"): settings for name in shapes}
    return dict(sorted(found.items()))


def same(ours: Any, theirs: Any) -> bool:
    """Equal to the last bit, NaN included, and of the same kind."""
    if torch.is_tensor(theirs):
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and bits(ours) == bits(theirs)
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    if type(theirs).__name__ in ("LossScaler", "DynamicLossScaler"):
        return type(ours) is type(theirs) and vars(ours) == vars(theirs)
    return bool(ours == theirs) and type(ours) is type(theirs)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("world_size", [1, 3, 5, 64])
def test_there_and_back_is_the_same_state_to_the_last_bit(
    zero3_folder: Callable[[int], Path], tmp_path: Path, variant: str, world_size: int
) -> None:
    source = zero3_folder(2) / variant / "zero"
    there = write(source, tmp_path / "there", world_size)
    back = write(there, tmp_path / "back", 2)
    expected = whole_state(source)
    assert {key for _, key in expected} > {"master", "settings"}
    for zero in (there, back):
        assert same(whole_state(zero), expected)
    # and the files are those of a conversion that changes nothing but the padding
    unchanged = write(source, tmp_path / "unchanged", 2)
    for path in unchanged.iterdir():
        assert path.read_bytes() == (back / path.name).read_bytes()


def test_what_is_not_partitioned_is_carried_over(zero3_folder: Callable[[int], Path], tmp_path: Path) -> None:
    source = zero3_folder(2) / "tied-float32" / "zero"
    for path in source.glob("*_model_states.pt"):
        contents = torch.load(path, weights_only=False)
        contents |= {"client": {"ledger": [1, 2]}, "lr_scheduler": {"last": 3}, "rng": torch.arange(7)}
        (tmp_path / "source").mkdir(exist_ok=True)
        torch.save(contents, tmp_path / "source" / path.name)
    for path in source.glob("*_optim_states.pt"):
        shutil.copy(path, tmp_path / "source")
    before = load(tmp_path / "source", "model")
    after = load(write(tmp_path / "source", tmp_path / "target", 3), "model")
    shapes = {name: shape for group in before[0]["param_shapes"] for name, shape in group.items()}
    assert before[0]["shared_params"]
    for rank, contents in enumerate(after):
        told = {name: shape for group in contents.pop("param_shapes") for name, shape in group.items()}
        assert same(told, shapes)
        assert contents.pop("dp_world_size") == 3
        assert contents.pop("shared_params") == (before[0]["shared_params"] if rank == 0 else {})
        assert same(contents, {key: value for key, value in before[0].items() if key in contents})
        assert contents["lr_scheduler"] == {"last": 3}
        assert torch.equal(contents["rng"], torch.arange(7))


def test_the_tied_head_stays_one_storage_under_two_names(zero3_folder: Callable[[int], Path], tmp_path: Path) -> None:
    source = zero3_folder(2) / "tied-float32" / "zero"
    for zero in (source, write(source, tmp_path / "target", 3)):
        module = read_rank_file(zero / "zero_pp_rank_0_mp_rank_00_model_states.pt")["module"]
        assert module["lm_head.weight"].storage is module["embed_tokens.weight"].storage


def test_torch_reads_the_files_in_every_way(zero3_folder: Callable[[int], Path], tmp_path: Path) -> None:
    written = write(zero3_folder(2) / "tied-bfloat16" / "zero", tmp_path / "zero", 3)
    assert len(list(written.iterdir())) == 6
    for path in written.iterdir():
        assert zipfile.ZipFile(path).testzip() is None  # its checksums hold
        with torch.serialization.safe_globals(ALLOWED):
            for mmap in (False, True):
                assert isinstance(torch.load(path, weights_only=True, mmap=mmap), dict)
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for record in archive.infolist():
                file.seek(record.header_offset)
                header = file.read(30)
                lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                assert (record.header_offset + 30 + lengths) % 64 == 0


def test_deepspeed_loads_it_and_so_does_the_trainer_without_it(
    zero3_folder: Callable[[int], Path], tmp_path: Path, run_ranks: Callable[..., Any]
) -> None:
    for variant in VARIANTS:
        write(zero3_folder(2) / variant / "zero", tmp_path / "resharded" / variant / "zero", 1)
    script = Path(__file__).with_name("reload_rank.py")
    folders = (zero3_folder(2), tmp_path / "resharded", tmp_path / "saved")
    run_ranks(1, script, *folders, *VARIANTS)
    for variant in VARIANTS:
        for kind in ("optim", "model"):
            [ours] = load(tmp_path / "resharded" / variant / "zero", kind)
            for way in ("deepspeed", "trainer"):
                [theirs] = load(tmp_path / "saved" / way / variant / "zero", kind)
                assert same(ours, theirs), (variant, kind, way)


@given(
    numels=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    world_size=st.integers(1, 9),
    sub_group_size=st.integers(1, 120),
)
def test_sub_groups_are_deepspeeds(numels: list[int], world_size: int, sub_group_size: int) -> None:
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    parameters = [
        SimpleNamespace(name=str(number), partition_numel=lambda numel=numel: math.ceil(numel / world_size))
        for number, numel in enumerate(numels)
    ]
    settings: Any = SimpleNamespace(sub_group_size=sub_group_size)
    theirs = DeepSpeedZeroOptimizer_Stage3._create_fp16_sub_groups(settings, parameters)
    shapes = {str(number): (numel,) for number, numel in enumerate(numels)}
    ours = split_sub_groups(shapes, world_size=world_size, sub_group_size=sub_group_size)
    assert [list(group) for group in ours] == [[parameter.name for parameter in group] for group in theirs]


def test_command_makes_a_checkpoint_that_says_what_it_is_of(
    make_run: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("bfloat16")
    monkeypatch.setattr(sys, "argv", ["checkpoint", "reshard", str(run), "--step", "2", "--world-size", "3"])
    assert main() == 0
    made = resharded_directory(run, 2, world_size=3)
    assert capsys.readouterr().out.startswith(f"{made}: 3 ranks, 6 files, ")
    assert sorted(path.name for path in made.parent.iterdir()) == ["step-00000002"]
    source, manifest = read_manifest(checkpoint_directory(run, 2)), read_manifest(made)
    assert manifest.resharded_from is not None
    assert manifest.resharded_from.world_size == 2
    changed = {"world_size", "files", "resharded_from", "seal"}
    assert manifest.model_dump(exclude=changed) == source.model_dump(exclude=changed)
    assert verify_checkpoint(made) == []
    # in the place of the one it was made of, the other readers of checkpoints take it
    shutil.rmtree(checkpoint_directory(run, 4))
    consolidate_checkpoint(run, 2, tmp_path / "before", dtype="float32")
    shutil.rmtree(checkpoint_directory(run, 2))
    made.rename(checkpoint_directory(run, 2))
    consolidate_checkpoint(run, 2, tmp_path / "after", dtype="float32")
    weights = "model.safetensors"
    assert (tmp_path / "before" / weights).read_bytes() == (tmp_path / "after" / weights).read_bytes()


def test_neither_torch_nor_deepspeed_is_imported() -> None:
    code = "import sys, checkpoint.reshard; sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_output_that_exists_is_refused(make_run: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match=r"there exists already; remove it or name another folder"):
        reshard_checkpoint(make_run("float32"), 4, tmp_path / "there", world_size=3)


def test_the_same_number_of_ranks_is_nothing_to_do(make_run: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-00000004 is of 2 ranks already: nothing to do$"):
        reshard_checkpoint(make_run("float32"), 4, tmp_path / "made", world_size=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "3", "--world-size", "3"], "has no checkpoint of step 3; it has 2, 4"),
        (["--world-size", "0"], "'0' is not a number of ranks, such as 16"),
        ([], "the following arguments are required: --world-size"),
    ],
)
def test_mistake_is_one_line(
    make_run: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["checkpoint", "reshard", str(make_run("float32")), *arguments])
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main())
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_damaged_file_is_named(make_run: Callable[[str], Path], tmp_path: Path) -> None:
    run = make_run("float32")
    name = "zero/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = bytearray((checkpoint_directory(run, 4) / name).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint_directory(run, 4) / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"step-00000004/{name}: contents changed .*; take another step"):
        reshard_checkpoint(run, 4, tmp_path / "made", world_size=3)
    assert not (tmp_path / "made").exists()


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    contents = torch.load(path, weights_only=False)
    change(contents["optimizer_state_dict"]["optimizer_state_dict"]["state"])
    torch.save(contents, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state[0].update(step=torch.tensor(9.0)), "step of the optimizer differs between ranks"),
        (lambda state: state[0].pop("exp_avg"), "sub-group 0 has no exp_avg, as others have"),
        (lambda state: state[0].update(exp_avg=torch.zeros(3)), "exp_avg of sub-group 0 is not as long as its weights"),
    ],
)
def test_ranks_that_do_not_fit_together_are_refused(
    zero3_folder: Callable[[int], Path], tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    zero = shutil.copytree(zero3_folder(2) / "tied-float32" / "zero", tmp_path / "zero")
    rewrite(zero / "zero_pp_rank_1_mp_rank_00_optim_states.pt", change)
    with pytest.raises(CheckpointError, match=rf"rank_1_mp_rank_00_optim_states.pt: {words}.*; take another step"):
        read_state(zero)


def test_killed_conversion_is_invisible_and_the_next_one_goes_on(
    make_run: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output, ranks = make_run("float32"), tmp_path / "made", 300
    command = [sys.executable, "-m", "checkpoint", "reshard", str(run), "--world-size", str(ranks)]
    command += ["--output", str(output)]
    zero = tmp_path / ".partial-made" / "zero"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        while len(list(zero.glob("*_optim_states.pt"))) < 5:
            assert job.poll() is None, job.communicate()
            time.sleep(0.001)
        job.send_signal(signal.SIGKILL)
        job.communicate()
    assert not output.exists()
    whole = [path for path in zero.iterdir() if not path.name.startswith(".")]
    assert 5 <= len(whole) < 2 * ranks
    made = reshard_checkpoint(run, 4, output, world_size=ranks)
    assert made.kept == len(whole)
    assert verify_checkpoint(output) == []
    assert [path.name for path in output.rglob(".*")] == []
    again = reshard_checkpoint(run, 4, tmp_path / "again", world_size=ranks)
    assert again.kept == 0
    for record in read_manifest(output).files:
        assert (output / record.path).read_bytes() == (tmp_path / "again" / record.path).read_bytes()


def test_kill_at_the_very_end_costs_the_hashing_only(
    make_run: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def die(path: Path, content: bytes) -> None:
        if path.name == "manifest.json":
            path.write_bytes(content)
            raise KilledError
        write_durably(path, content)

    run, output = make_run("float32"), tmp_path / "made"
    monkeypatch.setattr(reshard, "write_durably", die)
    with pytest.raises(KilledError):
        reshard_checkpoint(run, 4, output, world_size=3)
    monkeypatch.undo()
    assert reshard_checkpoint(run, 4, output, world_size=3).kept == 6
    assert verify_checkpoint(output) == []
    assert "manifest.json" not in {record.path for record in read_manifest(output).files}


def test_another_stage_is_refused_by_its_number(
    make_run: Callable[[str], Path], edit_manifest: Callable[..., None], tmp_path: Path
) -> None:
    run = make_run("float32")
    edit_manifest(run, 4, zero_stage=2)
    with pytest.raises(
        CheckpointError, match=r"step-00000004 is of ZeRO stage 2; only those of stage 3 are resharded$"
    ):
        reshard_checkpoint(run, 4, tmp_path / "made", world_size=3)


def test_what_another_conversion_left_is_not_gone_on_with(make_run: Callable[[str], Path], tmp_path: Path) -> None:
    run, partial = make_run("float32"), tmp_path / ".partial-made"
    (partial / "zero").mkdir(parents=True)
    (partial / "source.json").write_text("of another checkpoint")
    (partial / "zero" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_text("of another checkpoint")
    assert reshard_checkpoint(run, 4, tmp_path / "made", world_size=3).kept == 0
    assert verify_checkpoint(tmp_path / "made") == []


def test_second_conversion_at_the_same_time_is_refused(make_run: Callable[[str], Path], tmp_path: Path) -> None:
    with (
        exclusive_lock(tmp_path / ".lock-made", busy=""),
        pytest.raises(CheckpointError, match=r"another reshard is at work on .*made; wait for it"),
    ):
        reshard_checkpoint(make_run("float32"), 4, tmp_path / "made", world_size=3)


def test_full_disk_is_told_and_what_is_written_is_kept(
    make_run: Callable[[str], Path], mount_tmpfs: Callable[[str], Path]
) -> None:
    run = make_run("float32")
    disk = mount_tmpfs("size=100k")
    with pytest.raises(CheckpointError, match=r"has [\d,]+ bytes free, what is left to write takes [\d,]+; free some"):
        reshard_checkpoint(run, 4, disk / "made", world_size=3)
    # two hundred files have more to say than their few elements, which no estimate knows
    mount_tmpfs("remount,size=2m")
    with pytest.raises(CheckpointError, match=r"no space left on the disk of .*made; free some and run the same"):
        reshard_checkpoint(run, 4, disk / "made", world_size=100)
    assert not (disk / "made").exists()
    mount_tmpfs("remount,size=30m")
    made = reshard_checkpoint(run, 4, disk / "made", world_size=100)
    assert 0 < made.kept < 200
    assert verify_checkpoint(disk / "made") == []
