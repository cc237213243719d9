"""The doctor of a site: recorded answers of a SLURM, and what follows when one of them is another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from onestep.cli import main
from onestep.config import read_launch
from onestep.config.schema import to_values
from onestep.launch import machine_checks
from onestep.launch.cluster import Cluster
from onestep.launch.doctor import Doctor, profile_lines
from onestep.launch.finding import Mark
from onestep.launch.machine_checks import mount_of, python_finding, state_findings
from onestep.launch.slurm_checks import Site
from tiny import REPOSITORY

SETTINGS = {
    "AccountingStorageEnforce": "associations,limits,qos",
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AuthInfo": "socket=/run/munge.socket,cred_expire=5",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "MinJobAge": "300 sec",
    "PreemptMode": "REQUEUE",
    "PreemptType": "preempt/partition_prio",
    "SLURM_VERSION": "22.05.8",
    "SlurmctldParameters": "preempt_send_user_signal",
}
PARTITIONS = (
    "main*|infinite|gpu:a100:8|idle|2",
    "short|1-12:00:00|gpu:a100:8(S:0-1)|mixed|3",
    "cpus|30:00|(null)|idle|9",
)
NOT_TO_BE_HAD = "allocation failure: Requested node configuration is not available"
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
    """Put a SLURM into PATH whose answers a test may change."""
    monkeypatch.delenv("SLURM_CONF", raising=False)

    def write(
        *, settings=SETTINGS, partitions=PARTITIONS, refused="nothing", accounts=("root", "test"), default="test"
    ):
        shown = "\n".join(f"{name:23} = {value}" for name, value in settings.items())
        ping = "echo 'Slurmctld(primary) at vm is UP'"
        program("scontrol", script=f"case $1 in ping) {ping};; show) echo '{shown}';; esac")
        refusal = f"case \"$*\" in *{refused}*) echo '{NOT_TO_BE_HAD}' >&2; exit 1;; esac"
        program("sbatch", "slurm-wlm 22.05.8", script=refusal)
        program("sinfo", *partitions)
        listed = "\n".join(accounts)
        program("sacctmgr", script=f"case $4 in user) echo {default};; *) echo '{listed}';; esac")
        for name in ("squeue", "sacct", "scancel", "srun"):
            program(name)

    write()
    return write


def changed(**settings):
    """Return the settings of the site with others in place of some."""
    return {**SETTINGS, **settings}


def section(launch):
    """Return what a config says in its section `launch`."""
    experiment, problems = to_values({"launch": launch or {}})
    assert not problems, problems
    return experiment.launch


def found(launch=None):
    """Return what is found out about the SLURM in PATH, by subject."""
    site = Site.of(Cluster(timeout_seconds=5.0), launch=section(launch))
    return {finding.subject: finding for finding in site.findings()}


def test_a_good_site_has_nothing_to_mend(slurm):
    findings = found()
    assert {finding.mark for finding in findings.values()} == {Mark.OK}
    assert findings["scontrol"].found == "Slurmctld(primary) at vm is UP"
    assert findings["GPUs"].found == "8 a100 on a node of partition main"
    assert findings["asking for GPUs"].found == "by gres and gpus"
    assert "5 s" in findings["requeue"].found
    listed = findings["partitions"].found
    assert "main (default), 2 of 2 nodes up, without time limit; short, 3 of 3 nodes up, up to 36 h" in listed
    assert "cpus, 9 of 9 nodes up, up to 0.5 h" in listed
    assert list(profile_lines(findings.values())) == []


@pytest.mark.parametrize("name", ["sbatch", "squeue", "scontrol", "srun", "scancel"])
def test_a_command_that_is_absent_is_bad(slurm, tmp_path, name):
    (tmp_path / "bin" / name).unlink()
    finding = found()[name]
    assert finding.mark is Mark.BAD and "not in PATH" in finding.line()


def test_a_command_that_fails_is_bad_and_says_why(slurm, program):
    program("squeue", code=1, complaint="slurm_load_jobs error: Unable to contact slurm controller")
    finding = found()["squeue"]
    assert finding.mark is Mark.BAD and "Unable to contact slurm controller" in finding.line()


def test_a_controller_that_is_down_is_bad(slurm, program):
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
def test_without_accounting_snakemake_must_ask_squeue(slurm, program, settings, sacct, profile):
    slurm(settings=changed(**settings))
    program("sacct", **sacct)
    finding = found()["accounting"]
    assert finding.mark is Mark.NOTE and sacct.get("complaint", "") in finding.line()
    lines = ["", "Put into your profile:", "slurm-status-command: squeue", *profile]
    assert list(profile_lines([finding])) == lines


def test_accounting_without_sacct_is_as_good_as_none(slurm, tmp_path):
    (tmp_path / "bin" / "sacct").unlink()
    finding = found()["accounting"]
    assert finding.mark is Mark.NOTE and finding.profile["slurm-status-command"] == "squeue"


@pytest.mark.parametrize(("script", "mark"), [("", Mark.OK), ('[ -n "$SLURM_CONF" ] || exit 1', Mark.BAD)])
def test_a_configuration_known_by_environment_alone_is_lost_in_snakemakes_jobs(
    slurm, program, monkeypatch, script, mark
):
    monkeypatch.setenv("SLURM_CONF", "/opt/slurm.conf")
    program("scontrol", "Slurmctld(primary) at vm is UP", script=script)
    assert found()["SLURM_CONF"].mark is mark


@pytest.mark.parametrize(
    ("launch", "subject", "said"),
    [
        ({"partition": "nosuch"}, "partitions", "launch.partition is 'nosuch'"),
        ({"partition": "cpus"}, "GPUs", "name one that has: main, short"),
        ({"gpu_type": "h100"}, "GPUs", "launch.gpu_type is 'h100'"),
        ({"partition": "short", "hours": 48}, "time limit", "short ends jobs after 36 h, launch.hours is 48"),
        ({"account": "nosuch"}, "account", "root, test"),
    ],
)
def test_what_the_site_does_not_have_is_named(slurm, launch, subject, said):
    finding = found(launch)[subject]
    assert finding.mark is Mark.BAD and said in finding.line()


def test_a_site_without_a_default_partition_wants_one_named(slurm):
    slurm(partitions=[line.replace("*", "") for line in PARTITIONS])
    assert found()["partitions"].mark is Mark.BAD
    named = found({"partition": "short"})["partitions"]
    assert named.mark is Mark.OK and named.profile == {"default-resources": {"slurm_partition": "short"}}


def test_several_partitions_may_be_named(slurm):
    assert found({"partition": "short,main"})["partitions"].mark is Mark.OK
    assert found({"partition": "short,nosuch"})["partitions"].mark is Mark.BAD


def test_gpus_of_no_named_type(slurm):
    slurm(partitions=("main*|infinite|gpu:4(S:0-1)|idle|2", "main*|infinite|gpu:v100:2,gpu:t4:1|idle|2"))
    assert found()["GPUs"].found.startswith("4 of no named type, 2 v100, 1 t4")


def test_training_on_processors_asks_for_no_gpu(slurm):
    assert not {"GPUs", "asking for GPUs"} & found({"device": "cpu", "gpus": "none"}).keys()


@pytest.mark.parametrize(
    ("refused", "launch", "mark", "said"),
    [
        ("--gpus-per-node", {}, Mark.OK, "by gres"),
        ("--gpus-per-node", {"gpus": "gpus"}, Mark.BAD, "say `launch: {gpus: gres}`"),
        ("--gres", {}, Mark.BAD, "say `launch: {gpus: gpus}`"),
        ("--gres", {"gpus": "gpus"}, Mark.OK, "by gpus"),
        ("gpu", {}, Mark.BAD, NOT_TO_BE_HAD),
        ("--test-only", {}, Mark.NOTE, "even a job without GPUs is refused"),
    ],
)
def test_both_ways_of_asking_for_gpus_are_tried(slurm, refused, launch, mark, said):
    slurm(refused=refused)
    finding = found(launch)["asking for GPUs"]
    assert finding.mark is mark and said in finding.line()


def test_the_jobs_of_the_config_are_shown_to_slurm(slurm):
    slurm(refused="--time=2880")
    launch = {"gpus": "gres", "gpu_type": "a100", "processes_per_node": 8, "memory_gib": 64, "hours": 24}
    more = {"sbatch": {"exclusive": True, "reservation": "lab"}, "runs": {"long": {"hours": 48}}}
    findings = found({**launch, **more})
    assert findings["a job as launch asks for it"].mark is Mark.OK
    refused = findings["a job as launch.runs.long asks for it"]
    assert refused.mark is Mark.BAD and NOT_TO_BE_HAD in refused.found
    asked = "--mem=64G --gres=gpu:a100:8 --nodes=1 --ntasks-per-node=8 --cpus-per-task=1 --time=2880 --exclusive"
    assert f"({asked} --reservation=lab)" in refused.remedy


@pytest.mark.parametrize("state", ["down", "drained", "unknown", "idle*"])
def test_nodes_that_are_down_are_no_fault_of_the_config(slurm, state):
    slurm(refused="--test-only", partitions=[f"main*|infinite|gpu:a100:8|{state}|2"])
    findings = found({"hours": 24})
    assert "0 of 2 nodes up" in findings["partitions"].found
    assert findings["a job as launch asks for it"].mark is Mark.NOTE
    assert not [finding.line() for finding in findings.values() if finding.mark is Mark.BAD]


@pytest.mark.parametrize(
    ("accounts", "default", "enforce", "mark"),
    [
        ((), "", "associations", Mark.BAD),
        ((), "", "none", Mark.OK),
        (("test",), "", "associations", Mark.BAD),
        (("test",), "test", "associations", Mark.OK),
    ],
)
def test_an_account_is_needed_where_accounts_are_enforced(slurm, accounts, default, enforce, mark):
    slurm(settings=changed(AccountingStorageEnforce=enforce), accounts=accounts, default=default)
    assert found()["account"].mark is mark


@pytest.mark.parametrize(
    ("settings", "subject", "said"),
    [
        ({"JobRequeue": "0"}, "JobRequeue", "slurm-requeue: true"),
        ({"KillWait": "3 sec"}, "KillWait", "launch.signal_seconds"),
        ({"MinJobAge": "10 sec"}, "MinJobAge", "launch.poll_seconds"),
        ({"SlurmctldParameters": "(null)"}, "preemption", "preempt_send_user_signal"),
        ({"PreemptMode": "CANCEL"}, "preemption", "launch.resubmissions"),
    ],
)
def test_how_jobs_end_before_their_time(slurm, settings, subject, said):
    slurm(settings=changed(**settings))
    finding = found()[subject]
    assert finding.mark is Mark.NOTE and said in finding.remedy


def test_a_newer_slurm_names_the_signal_at_preemption_otherwise(slurm):
    slurm(settings=changed(SlurmctldParameters="(null)", PreemptParameters="send_user_signal"))
    assert found()["preemption"].mark is Mark.OK


def test_a_requeue_waits_two_minutes_unless_the_site_says_otherwise(slurm):
    slurm(settings=changed(AuthInfo="(null)"))
    assert "120 s" in found()["requeue"].found


@pytest.mark.parametrize(
    ("folder", "kind", "at", "shared"),
    [
        ("/home/me/state", "nfs4", "/home", True),
        ("/project/state", "lustre", "/project", True),
        ("/project/scratch/state", "tmpfs", "/project/scratch", False),
        ("/projects/state", "ext4", "/", False),
        ("/my old/state", "nfs", "/my old", True),
    ],
)
def test_the_innermost_mount_of_a_folder_counts(folder, kind, at, shared):
    mount = mount_of(Path(folder), mounts=MOUNTS)
    assert (mount.kind, mount.at, mount.is_shared) == (kind, Path(at), shared)


def test_the_last_of_two_mounts_at_one_place_counts():
    assert mount_of(Path("/work"), mounts=MOUNTS + "x /work beegfs rw 0 0\n").kind == "beegfs"


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """Let /proc/mounts say what the test says of its folder."""

    def write(kind, options="rw"):
        (tmp_path / "mounts").write_text(f"/dev/vda / ext4 rw 0 0\nx {tmp_path} {kind} {options} 0 0\n")
        monkeypatch.setattr(machine_checks, "_MOUNTS", tmp_path / "mounts")
        return {finding.subject: finding for finding in state_findings(tmp_path / "not" / "yet", shared=True)}

    return write


@pytest.mark.parametrize(("kind", "mark"), [("nfs", Mark.OK), ("lustre", Mark.OK), ("tmpfs", Mark.NOTE)])
def test_the_state_must_be_where_the_nodes_see_it(mounted, tmp_path, kind, mark):
    findings = mounted(kind)
    assert findings["state folder"].mark is mark and kind in findings["state folder"].found
    assert findings["file locks"].mark is Mark.OK
    assert [path.name for path in tmp_path.iterdir()] == ["mounts"]


@pytest.mark.parametrize("options", ["rw,nolock", "rw,local_lock=all", "rw,localflock"])
def test_locks_that_other_nodes_do_not_see_are_bad(mounted, options):
    finding = mounted("nfs", options)["file locks"]
    assert finding.mark is Mark.BAD and options.split(",")[1] in finding.found


@pytest.mark.parametrize(("complaint", "said"), [(OSError(38, "Function not implemented"), "not impl"), (None, "two")])
def test_locks_that_do_not_hold_are_bad(mounted, monkeypatch, complaint, said):
    def flock(file, operation):
        if complaint:
            raise complaint

    monkeypatch.setattr(machine_checks.fcntl, "flock", flock)
    finding = mounted("nfs")["file locks"]
    assert finding.mark is Mark.BAD and said in finding.found


@pytest.mark.parametrize(("gib", "mark"), [(500, Mark.OK), (10, Mark.NOTE), (0.5, Mark.BAD)])
def test_little_space_is_said(mounted, monkeypatch, gib, mark):
    usage = type("Usage", (), {"free": int(gib * 2**30)})
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda folder: usage)
    assert mounted("nfs")["free space"].mark is mark


def interpreter_answer(version, absent):
    return f"onestep-doctor {json.dumps({'version': version, 'absent': absent})}"


@pytest.mark.parametrize(
    ("version", "absent", "setup", "mark", "said"),
    [
        (sys.version_info[:2], [], [], Mark.OK, "torch, submitit"),
        (sys.version_info[:2], ["torch (No module)"], [], Mark.BAD, "without torch (No module)"),
        (sys.version_info[:2], ["torch (No module)"], ["module load torch"], Mark.NOTE, "without torch"),
        ((3, 8), [], [], Mark.BAD, "is 3.8, this one is 3."),
    ],
)
def test_the_jobs_interpreter_is_of_the_same_version_and_has_what_they_need(
    program, version, absent, setup, mark, said
):
    program("inside", "a banner", interpreter_answer(version, absent))
    finding = python_finding(section({"python": "inside image.sif python", "setup": setup}))
    assert finding.mark is mark and said in finding.found


@pytest.mark.parametrize("python", ["nosuch", "fails"])
def test_an_interpreter_that_does_not_run_is_bad(program, python):
    program("fails", code=1)
    assert python_finding(section({"python": python})).mark is Mark.BAD


def test_a_machine_without_slurm_runs_everything_itself(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    program("python", interpreter_answer(sys.version_info[:2], []))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok    backend: local (no SLURM in PATH): everything runs on this machine"
    assert not any("sbatch" in line or "profile" in line for line in lines)


def test_slurm_that_is_asked_for_must_be_there(program, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("launch: {backend: slurm}\n")
    doctor = Doctor.of(config, state=tmp_path / "state", cluster=Cluster())
    assert next(doctor.findings()).mark is Mark.BAD


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("launch: {hours: '24'}", "launch.hours: found the text '24', expected a number"),
        ("launch: {partitions: gpu}", "launch.partitions: unknown key"),
        ("launch: fast", "launch: found the text 'fast', expected a mapping"),
    ],
)
def test_a_wrong_launch_section_is_one_line(tmp_path, capsys, given, expected):
    config = tmp_path / "config.yaml"
    config.write_text(f"runs: {{also: wrong}}\n{given}\n")
    assert main(["doctor", "--config", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onestep doctor: config.yaml: ") and expected in line


def test_a_name_that_looks_like_a_date_is_a_name(tmp_path):
    (tmp_path / "config.yaml").write_text("launch: {account: 2026-11-21}\n")
    assert read_launch(tmp_path / "config.yaml").account == "2026-11-21"


def test_slurm_that_is_not_wanted_is_not_looked_at(slurm, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("launch: {backend: local}\n")
    first = next(Doctor.of(config, state=tmp_path / "state", cluster=Cluster()).findings())
    assert first.mark is Mark.OK and "launch.backend says so" in first.found


def test_inputs_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (finding,) = machine_checks.input_findings(REPOSITORY / "config.yaml")
    assert finding.mark is Mark.NOTE and "not cifar10, afhqv2," in finding.found
    assert "onestep fetch --offline" in finding.remedy


def test_a_driver_without_torch_cannot_check_the_config(tmp_path, monkeypatch):
    def read(config):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(machine_checks.Plan, "read", read)
    (finding,) = machine_checks.input_findings(tmp_path / "config.yaml")
    assert finding.mark is Mark.NOTE and "torch" in finding.found


def test_a_config_that_is_wrong_is_bad(tmp_path):
    (tmp_path / "config.yaml").write_text("runs: {}\nrun: {}\n")
    findings = list(machine_checks.input_findings(tmp_path / "config.yaml"))
    assert findings and {finding.mark for finding in findings} == {Mark.BAD}


def test_a_config_that_is_absent_is_one_line(tmp_path, capsys):
    assert main(["doctor", "--config", str(tmp_path / "absent.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onestep doctor: ") and "absent.yaml" in line


def test_nothing_that_runs_beside_slurm_imports_torch():
    modules = "onestep.launch.cluster, onestep.launch.judgement, onestep.launch.doctor"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'submitit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
