"""The shipped configs, the systemd unit and the Kubernetes manifest, each read by what will read it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkpoint.cli import build_parser
from checkpoint.config import ServiceConfig
from configs.load import ConfigError, load

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "service"
UNIT = FOLDER / "smollm2-checkpoint.service"


@pytest.mark.parametrize("name", ["default.yaml", "cluster.yaml"])
def test_shipped_configs_load(name: str) -> None:
    load(FOLDER / name, ServiceConfig)


def test_the_default_config_says_what_the_defaults_are() -> None:
    assert load(FOLDER / "default.yaml", ServiceConfig) == ServiceConfig()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("poll_secs=1", "unknown key poll_secs; did you mean poll_seconds?"),
        ("exports=all", "exports=all: input should be 'newest' or 'every'"),
        ("publish_to=[gs://x]", "'gs://x' is no destination; wanted s3://BUCKET/PREFIX, hf://OWNER/NAME or /a/folder"),
        ("jobs.longest_pause_s=1", "jobs.longest_pause_s is below jobs.first_pause_s; raise it"),
        ("http.port=99999", "http.port=99999: input should be less than or equal to 65535"),
        ("retention.disk_high_water_fraction=90", "retention.disk_high_water_fraction=90: input should be less than"),
    ],
)
def test_a_mistake_in_the_config_is_one_line(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(FOLDER / "default.yaml", ServiceConfig, [override])
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def check_command(words: list[str]) -> None:
    """A command line of ours, with the folders of the deployment: it must parse, and its overrides must load."""
    assert words[1] == "checkpoint"
    arguments = build_parser().parse_args(words[2:])
    # the image keeps the repository's configs there
    load(ROOT / arguments.config.removeprefix("/opt/smollm2/"), ServiceConfig, arguments.overrides)


def test_the_command_of_the_unit_is_one_of_ours() -> None:
    (line,) = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart=")]
    # systemd puts the folder of the credentials there
    check_command(shlex.split(line.removeprefix("ExecStart=").replace("%d", "/run/credentials")))


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    # its program has to be there
    program = tmp_path / "smollm2"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/srv/smollm2/.venv/bin/smollm2", str(program)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, told) == (0, []), done.stderr
    unit.write_text(unit.read_text().replace("TimeoutStopSec=30", "TimeoutStopSeconds=30"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert "TimeoutStopSeconds" in done.stderr


def test_kubernetes_takes_the_manifest() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate").validate
    documents: list[Any] = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
    for document in documents:
        validate(document, "1.29", strict=True)
    spec = documents[0]["spec"]["template"]["spec"]
    check_command([*spec["containers"][0]["command"], *spec["containers"][0]["args"]])
    assert {one["name"] for one in spec["volumes"]} == {one["name"] for one in spec["containers"][0]["volumeMounts"]}
    documents[0]["spec"]["replicas"] = "one"
    with pytest.raises(Exception, match="'one'"):
        validate(documents[0], "1.29", strict=True)
