"""What an allocation says, by a scontrol that answers from a script."""

from __future__ import annotations

import pytest

from launch.cluster.slurm import SlurmError, allocated_hosts, ranks_of_allocation


def script(folder, name, text):
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_hosts_are_what_scontrol_lists(tmp_path):
    script(tmp_path, "scontrol", 'echo "$1 $2" > "$0.called"; echo gpu01; echo gpu02')
    environment = {"PATH": f"{tmp_path}:/bin:/usr/bin", "SLURM_JOB_NODELIST": "gpu[01-02]"}
    assert allocated_hosts(environment) == ("gpu01", "gpu02")
    assert (tmp_path / "scontrol.called").read_text() == "show hostnames\n"


def test_outside_an_allocation_is_one_line():
    with pytest.raises(SlurmError, match="SLURM_JOB_NODELIST is not set; start this inside an allocation"):
        allocated_hosts({})


def test_no_scontrol_is_one_line(tmp_path):
    with pytest.raises(SlurmError, match="scontrol is not in PATH"):
        allocated_hosts({"PATH": str(tmp_path), "SLURM_JOB_NODELIST": "a"})


def test_a_failing_scontrol_is_one_line(tmp_path):
    script(tmp_path, "scontrol", "echo 'Invalid hostlist' >&2; exit 1")
    environment = {"PATH": f"{tmp_path}:/bin:/usr/bin", "SLURM_JOB_NODELIST": "gpu[01-"}
    with pytest.raises(SlurmError, match=r"`scontrol show hostnames gpu\[01-` failed: Invalid hostlist"):
        allocated_hosts(environment)


def test_ranks_are_the_gpus_of_a_node():
    assert ranks_of_allocation({"SLURM_GPUS_ON_NODE": "8"}) == 8


@pytest.mark.parametrize("environment", [{}, {"SLURM_GPUS_ON_NODE": "0"}, {"SLURM_GPUS_ON_NODE": "a100:8"}])
def test_no_number_of_gpus_says_what_to_set(environment):
    with pytest.raises(SlurmError, match=r"ask for some with --gpus-per-node, or set launcher\.ranks_per_node"):
        ranks_of_allocation(environment)
