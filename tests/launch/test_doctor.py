"""Checks of a site: recorded answers of a SLURM, and the findings where one of them differs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onestep.cli import main
from onestep.config import Launch, read_launch
from onestep.launch.cluster import Cluster
from onestep.launch.doctor import (
    Mark,
    examine,
    input_findings,
    mount_of,
    profile_lines,
    python_finding,
    slurm_findings,
    state_findings,
)
from onestep.plan import Plan
from tiny import REPOSITORY

SETTINGS = {"AccountingStorageType": "accounting_storage/slurmdbd", "MinJobAge": "300 sec"}
# Partition, time limit, generic resources, allocated/idle/other/total nodes.
PARTITIONS = (
    "main*|infinite|gpu:a100:8|1/1/0/2",
    "short|1-12:00:00|gpu:a100:8(S:0-1)|3/0/0/3",
    "cpus|30:00|(null)|0/9/0/9",
)
UNAVAILABLE = "allocation failure: Requested node configuration is not available"
MOUNTS = """\
proc /proc proc rw,relatime 0 0
/dev/vda / ext4 rw,relatime 0 0
filer:/home /home nfs4 rw,relatime,vers=4.2 0 0
mds@tcp:/project /project lustre rw,flock 0 0
tmpfs /project/scratch tmpfs rw 0 0
filer:/old /my\\040old nfs rw,nolock 0 0
"""


@pytest.fixture
def slurm(program, monkeypatch):
    """A SLURM in PATH with changeable answers."""
    monkeypatch.delenv("SLURM_CONF", raising=False)

    def write(*, settings=SETTINGS, partitions=PARTITIONS, refused="nothing"):
        shown = "\n".join(f"{name:23} = {value}" for name, value in settings.items())
        ping = "echo 'Slurmctld(primary) at vm is UP'"
        program("scontrol", script=f"case $1 in ping) {ping};; show) echo '{shown}';; esac")
        refusal = f"case \"$*\" in *{refused}*) echo '{UNAVAILABLE}' >&2; exit 1;; esac"
        program("sbatch", "slurm-wlm 22.05.8", script=refusal)
        program("sinfo", *partitions)
        for name in ("squeue", "sacct", "scancel", "srun"):
            program(name)

    write()
    return write


@pytest.fixture
def section(tmp_path):
    """Return the values of a section `launch`."""

    def read(launch):
        (tmp_path / "launch.yaml").write_text(json.dumps({"launch": launch}))
        return read_launch(tmp_path / "launch.yaml")

    return read


@pytest.fixture
def found(section):
    """Return the findings on the SLURM in PATH by subject, that of the partitions as `partitions`."""

    def examine_slurm(launch=None):
        findings = slurm_findings(Cluster(timeout_seconds=5.0), section(launch or {}))
        return {finding.subject.partition(" (")[0]: finding for finding in findings}

    return examine_slurm


def test_a_good_site_needs_no_fix(slurm, found):
    findings = found()
    assert {finding.mark for finding in findings.values()} == {Mark.OK}
    assert findings.keys() == {
        *("sbatch", "squeue", "scontrol", "scancel", "srun"),
        *("accounting", "partitions", "job of launch"),
    }
    listed = findings["partitions"].found
    assert all(name in listed for name in ("main*", "short", "cpus", "gpu:a100:8", "1-12:00:00", "0/9/0/9"))
    assert list(profile_lines(findings.values())) == []


@pytest.mark.parametrize("name", ["sbatch", "squeue", "scontrol", "srun", "scancel"])
def test_an_absent_command_is_bad(slurm, found, tmp_path, name):
    (tmp_path / "bin" / name).unlink()
    assert found()[name].mark is Mark.BAD


def test_a_failing_command_is_bad_with_its_reason(slurm, found, program):
    program("squeue", code=1, complaint="slurm_load_jobs error: Unable to contact slurm controller")
    finding = found()["squeue"]
    assert finding.mark is Mark.BAD and "Unable to contact slurm controller" in finding.line()


def test_a_controller_that_is_down_is_bad(slurm, found, program):
    program("scontrol", "Slurmctld(primary) at vm is DOWN")
    findings = found()
    assert findings["scontrol"].mark is findings["controller"].mark is Mark.BAD


@pytest.mark.parametrize(
    ("settings", "sacct", "profile"),
    [
        ({"AccountingStorageType": "accounting_storage/none"}, {"code": 1}, ["slurm-no-account: true"]),
        ({"AccountingStorageType": "(null)"}, {"code": 1}, ["slurm-no-account: true"]),
        ({"MinJobAge": "60 sec"}, {"code": 1}, ["slurm-init-seconds-before-status-checks: 20"]),
        ({}, {"code": 1, "complaint": "sacct: error: Problem talking to the database: Connection refused"}, []),
    ],
)
def test_without_accounting_snakemake_must_query_squeue(slurm, found, program, settings, sacct, profile):
    slurm(settings={**SETTINGS, **settings})
    program("sacct", **sacct)
    finding = found()["accounting"]
    assert finding.mark is Mark.NOTE and sacct.get("complaint", "") in finding.line()
    assert list(profile_lines([finding]))[2:] == ["slurm-status-command: squeue", *profile]


def test_accounting_without_sacct_is_no_accounting(slurm, found, tmp_path):
    (tmp_path / "bin" / "sacct").unlink()
    finding = found()["accounting"]
    assert finding.mark is Mark.NOTE and finding.profile["slurm-status-command"] == "squeue"


@pytest.mark.parametrize(("script", "mark"), [("", Mark.OK), ('[ -n "$SLURM_CONF" ] || exit 1', Mark.BAD)])
def test_a_configuration_only_in_the_environment_is_lost_in_snakemakes_jobs(
    slurm, found, program, monkeypatch, script, mark
):
    monkeypatch.setenv("SLURM_CONF", "/opt/slurm.conf")
    program("scontrol", "Slurmctld(primary) at vm is UP", script=script)
    assert found()["SLURM_CONF"].mark is mark


@pytest.mark.parametrize(
    ("launch", "longest"),
    [
        ({"partition": "short", "hours": 48}, "36"),
        ({"partition": "cpus", "hours": 1}, "0.5"),
        ({"partition": "cpus,short", "hours": 48}, "36"),
        ({"partition": "short", "hours": 36}, None),
        ({"partition": "short,main", "hours": 48}, None),
        ({"hours": 8_000}, None),
    ],
)
def test_a_longer_job_than_its_partition_permits_is_bad(slurm, found, launch, longest):
    finding = found(launch).get("time limit")
    assert (finding is None) is (longest is None)
    assert finding is None or (finding.mark is Mark.BAD and f"at most {longest};" in finding.fix)


def test_the_profile_gets_partition_and_account(slurm, found):
    profile = found({"partition": "short,main", "account": "lab"})["partitions"].profile
    assert profile == {"default-resources": {"slurm_partition": "short,main", "slurm_account": "lab"}}


@pytest.mark.parametrize(
    ("refused", "launch", "mark", "reported"),
    [
        ("--gpus-per-node", {}, Mark.OK, "accepts"),
        ("--gpus-per-node", {"gpus": "gpus"}, Mark.BAD, "{gpus: gres}"),
        ("--gres", {}, Mark.BAD, "{gpus: gpus}"),
        ("--gres", {"gpus": "gpus"}, Mark.OK, "accepts"),
        ("gpu", {}, Mark.BAD, UNAVAILABLE),
        ("--test-only", {}, Mark.BAD, UNAVAILABLE),
        ("gpu", {"device": "cpu", "gpus": "none"}, Mark.OK, "accepts"),
    ],
)
def test_both_ways_to_request_gpus_are_tried(slurm, found, refused, launch, mark, reported):
    slurm(refused=refused)
    finding = found(launch)["job of launch"]
    assert finding.mark is mark and reported in finding.line()


def test_the_jobs_of_the_config_are_tested(slurm, found):
    slurm(refused="--time=2880")
    launch = {"gpus": "gres", "gpu_type": "a100", "processes_per_node": 8, "memory_gib": 64, "hours": 24}
    more = {"sbatch": {"exclusive": True, "reservation": "lab"}, "runs": {"long": {"hours": 48}}}
    findings = found({**launch, **more})
    assert findings["job of launch"].mark is Mark.OK
    refused = findings["job of launch.runs.long"]
    assert refused.mark is Mark.BAD and UNAVAILABLE in refused.found
    options = "--mem=64G --gres=gpu:a100:8 --nodes=1 --ntasks-per-node=8 --cpus-per-task=1 --time=2880 --exclusive"
    assert f"({options} --reservation=lab)" in refused.fix


def test_nodes_that_are_down_are_not_an_error_of_the_config(slurm, found):
    slurm(refused="--test-only", partitions=["main*|infinite|gpu:a100:8|0/0/2/2"])
    findings = found({"hours": 24})
    assert findings["job of launch"].mark is Mark.NOTE
    assert not [finding.line() for finding in findings.values() if finding.mark is Mark.BAD]


@pytest.mark.parametrize(
    ("folder", "kind", "at", "options"),
    [
        ("/home/me/state", "nfs4", "/home", {"rw", "relatime", "vers=4.2"}),
        ("/project/state", "lustre", "/project", {"rw", "flock"}),
        ("/project/scratch/state", "tmpfs", "/project/scratch", {"rw"}),
        ("/projects/state", "ext4", "/", {"rw", "relatime"}),
        ("/my old/state", "nfs", "/my old", {"rw", "nolock"}),
    ],
)
def test_the_innermost_mount_of_a_folder_counts(folder, kind, at, options):
    assert mount_of(Path(folder), mounts=MOUNTS) == (kind, Path(at), options)


def test_the_last_of_two_mounts_of_one_folder_counts():
    assert mount_of(Path("/work"), mounts=MOUNTS + "x /work beegfs rw 0 0\n")[0] == "beegfs"


@pytest.fixture
def mounted(tmp_path):
    """Return the findings on a folder under a given mount table."""

    def examine_state(kind, options="rw"):
        mounts = tmp_path / "mounts"
        mounts.write_text(f"/dev/vda / ext4 rw 0 0\nx {tmp_path} {kind} {options} 0 0\n")
        findings = state_findings(tmp_path / "not" / "yet", shared=True, mounts=mounts)
        return {finding.subject: finding for finding in findings}

    return examine_state


@pytest.mark.parametrize(
    ("kind", "mark"), [("nfs", Mark.OK), ("fuse.ceph", Mark.OK), ("beegfs_nodev", Mark.OK), ("tmpfs", Mark.NOTE)]
)
def test_the_state_must_be_visible_to_compute_nodes(mounted, tmp_path, kind, mark):
    findings = mounted(kind)
    assert findings["state folder"].mark is mark and kind in findings["state folder"].found
    assert findings["file locks"].mark is Mark.OK
    assert [path.name for path in tmp_path.iterdir()] == ["mounts"]


@pytest.mark.parametrize("options", ["rw,nolock", "rw,local_lock=all", "rw,localflock"])
def test_locks_that_other_nodes_do_not_see_are_bad(mounted, options):
    finding = mounted("nfs", options)["file locks"]
    assert finding.mark is Mark.BAD and options.split(",")[1] in finding.found


@pytest.mark.parametrize(("gib", "mark"), [(500, Mark.OK), (10, Mark.NOTE), (0.5, Mark.BAD)])
def test_little_space_is_reported(mounted, monkeypatch, gib, mark):
    usage = type("Usage", (), {"free": int(gib * 2**30)})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert mounted("nfs")["free space"].mark is mark


OWN_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.mark.parametrize(
    ("version", "absent", "setup", "mark", "reported"),
    [
        (OWN_VERSION, [], [], Mark.OK, OWN_VERSION),
        (OWN_VERSION, ["torch (No module)"], [], Mark.BAD, "torch (No module)"),
        (OWN_VERSION, ["torch (No module)"], ["module load torch"], Mark.NOTE, "torch"),
        ("3.8", [], [], Mark.BAD, "is 3.8,"),
    ],
)
def test_the_jobs_interpreter_has_the_same_version_and_the_packages(
    program, section, version, absent, setup, mark, reported
):
    program("inside", "a banner", f"onestep-doctor {json.dumps([version, absent])}")
    finding = python_finding(section({"python": "inside image.sif python", "setup": setup}))
    assert finding.mark is mark and reported in finding.found


@pytest.mark.parametrize("python", ["nosuch", "fails"])
def test_an_interpreter_that_does_not_run_is_bad(program, section, python):
    program("fails", code=1)
    assert python_finding(section({"python": python})).mark is Mark.BAD


def test_the_query_runs_in_a_real_interpreter():
    finding = python_finding(Launch())
    assert finding.mark is Mark.OK and OWN_VERSION in finding.found


def test_a_machine_without_slurm_runs_everything_itself(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    program("python", f"onestep-doctor {json.dumps([OWN_VERSION, []])}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok    backend: local ")
    assert not any("sbatch" in line or "profile" in line for line in lines)


def test_a_requested_slurm_must_exist(program, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("launch: {backend: slurm}\n")
    finding = next(examine(config, state=tmp_path / "state", cluster=Cluster()))
    assert (finding.subject, finding.mark) == ("backend", Mark.BAD)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("launch: {hours: '24'}", "launch.hours: "),
        ("launch: {partitions: gpu}", "launch.partitions: "),
        ("launch: fast", "launch: "),
    ],
)
def test_a_wrong_launch_section_is_one_line(tmp_path, capsys, given, place):
    config = tmp_path / "config.yaml"
    config.write_text(f"runs: {{also: wrong}}\n{given}\n")
    assert main(["doctor", "--config", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"onestep doctor: config.yaml: {place}")


def test_a_name_that_looks_like_a_date_is_a_name_in_quotes(tmp_path):
    (tmp_path / "config.yaml").write_text("launch: {account: '2026-11-21'}\n")
    assert read_launch(tmp_path / "config.yaml").account == "2026-11-21"


def test_an_unused_slurm_is_not_checked(slurm, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("launch: {backend: local}\n")
    findings = examine(config, state=tmp_path / "state", cluster=Cluster())
    first, second = next(findings), next(findings)
    assert first.mark is Mark.OK and "launch.backend" in first.found and second.subject == "state folder"


def test_missing_inputs_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (finding,) = input_findings(REPOSITORY / "config.yaml")
    assert finding.mark is Mark.NOTE and "cifar10, afhqv2," in finding.found
    assert "onestep fetch --offline" in finding.fix


def test_a_login_node_without_torch_cannot_check_the_config(tmp_path, monkeypatch):
    def read(config):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(Plan, "read", read)
    (finding,) = input_findings(tmp_path / "config.yaml")
    assert finding.mark is Mark.NOTE and "torch" in finding.found


def test_a_wrong_config_is_bad(tmp_path):
    (tmp_path / "config.yaml").write_text("runs: {}\nrun: {}\n")
    findings = list(input_findings(tmp_path / "config.yaml"))
    assert findings and {finding.mark for finding in findings} == {Mark.BAD}


def test_an_absent_config_is_one_line(tmp_path, capsys):
    assert main(["doctor", "--config", str(tmp_path / "absent.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onestep doctor: ") and "absent.yaml" in line


def test_the_launcher_imports_neither_torch_nor_submitit():
    modules = "onestep.launch.launcher, onestep.launch.doctor, onestep.launch.journal"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'submitit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
