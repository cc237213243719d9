"""SLURM's commands: recorded answers, and programs that fail in every possible way."""

from __future__ import annotations

import os
import time

import pytest

from onestep.launch.cluster import Cluster, Sighting

UNKNOWN_JOB = "slurm_load_jobs error: Invalid job id specified"
RECORD = (
    "JobId=4 JobName=r UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=0 Nice=0 Account=test QOS=normal "
    "JobState=PENDING Reason=job requeued in held state Dependency=(null) Requeue=1 Restarts=2 BatchFlag=1 "
    "ReqNodeList=(null) ExcNodeList=(null) NodeList=n[1-2] BatchHost=n1 NumNodes=2 StdOut=/dev/null Power="
)
# JobIDRaw, State, ExitCode, ElapsedRaw, NodeList, JobName
STARTS = (
    "6|REQUEUED|0:0|3|n2|onestep-r-0123abcd",
    "6|CANCELLED by 1000|0:15|4|n1|onestep-r-0123abcd",
)


def queue_row(state, reason, nodes, restarts):
    return f"4|{state}|{restarts}|{nodes}|{reason}|"


@pytest.fixture
def queue_forgot(program):
    program("squeue", code=1, complaint=UNKNOWN_JOB)


def sighting(state, *, answered, reason="", restarts=None, nodes=""):
    return Sighting(state=state, reason=reason, restarts=restarts, nodes=nodes, answered=frozenset(answered))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (("RUNNING", "None", "n[1-2]", 0), {"state": "RUNNING", "restarts": 0, "nodes": "n[1-2]"}),
        (("PENDING", "BeginTime", "", 1), {"state": "PENDING", "reason": "BeginTime", "restarts": 1}),
        (
            ("PENDING", "job requeued in held state", "", 2),
            {"state": "PENDING", "reason": "job requeued in held state", "restarts": 2},
        ),
        (
            ("FAILED", "NonZeroExitCode", "n1", 0),
            {"state": "FAILED", "reason": "NonZeroExitCode", "nodes": "n1", "restarts": 0},
        ),
        (("RUNNING", "None", "n1", "N/A"), {"state": "RUNNING", "nodes": "n1"}),
    ],
)
def test_an_answer_of_squeue_is_enough(program, row, expected):
    program("squeue", queue_row(*row))
    assert Cluster().look("4") == sighting(**expected, answered={"squeue"})


def test_the_newest_start_counts_in_accounting(program, queue_forgot):
    program("sacct", *STARTS)
    assert Cluster().look("6") == sighting(
        "CANCELLED", reason="by 1000, exit code 0:15", restarts=1, nodes="n1", answered={"squeue", "sacct"}
    )


@pytest.mark.parametrize(("rows", "restarts"), [(STARTS[:1], 1), (("6|RUNNING|0:0|3|n2|onestep-r-0123abcd",), 0)])
def test_accounting_replaces_a_squeue_that_does_not_answer(program, rows, restarts):
    program("sacct", *rows)
    found = Cluster().look("6")
    assert found.state in ("REQUEUED", "RUNNING") and found.restarts == restarts


def test_a_job_that_runs_only_in_accounting_has_ended_unrecorded(program, queue_forgot):
    program("sacct", "6|RUNNING|0:0|3|n2|onestep-r-0123abcd")
    program("scontrol", code=1, complaint=UNKNOWN_JOB)
    assert Cluster().look("6") == sighting(None, answered={"squeue", "sacct", "scontrol"})


def test_scontrol_is_queried_last(program):
    program("squeue", code=1, complaint="slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    program("sacct", code=1, complaint="Slurm accounting storage is disabled")
    program("scontrol", RECORD)
    assert Cluster().look("4") == sighting(
        "PENDING", reason="job requeued in held state", restarts=2, nodes="n[1-2]", answered={"scontrol"}
    )


@pytest.mark.parametrize(
    ("answers", "answered"),
    [
        ({}, set()),
        ({"squeue": {"code": 1, "complaint": "Unable to contact slurm controller"}}, set()),
        ({"squeue": {"code": 1, "complaint": UNKNOWN_JOB}}, {"squeue"}),
        ({"squeue": {}}, {"squeue"}),
        ({"sacct": {}}, {"sacct"}),
        (
            {"sacct": {"code": 1, "complaint": "sacct: error: Problem talking to the database: Connection refused"}},
            set(),
        ),
        ({"scontrol": {"code": 1, "complaint": UNKNOWN_JOB}}, {"scontrol"}),
        ({"scontrol": {"code": 127, "complaint": "libslurm.so.38: cannot open shared object file"}}, set()),
    ],
)
def test_answers_and_failures_are_distinguished(program, answers, answered):
    for name, answer in answers.items():
        program(name, **answer)
    assert Cluster().look("99999") == sighting(None, answered=answered)


def test_a_reason_may_hold_the_separator_and_another_cluster_writes_its_name_first(program):
    program("squeue", "CLUSTER: other", queue_row("PENDING", "a|b", "n1", 3))
    assert Cluster(name="other").look("4") == sighting(
        "PENDING", reason="a|b", restarts=3, nodes="n1", answered={"squeue"}
    )


@pytest.mark.parametrize("name", ["other", None])
def test_every_program_is_asked_about_the_cluster(program, tmp_path, name):
    calls = tmp_path / "calls"
    for each in ("squeue", "sacct", "scontrol", "scancel"):
        program(each, script=f'echo "{each} $*" >> {calls}')
    cluster = Cluster(name=name, cancel_seconds=0.3)
    cluster.look("4")
    cluster.active_jobs("x")
    cluster.cancel("4")
    cluster.run_seconds("4")
    asked = [line.split() for line in calls.read_text().splitlines()]
    assert {words[0] for words in asked} == {"squeue", "sacct", "scontrol", "scancel"}
    for words in asked:
        named = [word for word in words if word.startswith("--clusters")]
        assert named == ([] if name is None else [f"--clusters={name}"])


def test_a_program_that_hangs_did_not_answer(program):
    # The sleeping child of this script keeps the pipe open.
    program("squeue", script="/bin/sleep 60")
    began = time.monotonic()
    assert Cluster(timeout_seconds=0.5).look("4") == sighting(None, answered=set())
    assert time.monotonic() - began < 10


def test_a_program_that_may_not_be_run_did_not_answer(program, tmp_path):
    program("squeue")
    (tmp_path / "bin" / "squeue").chmod(0o644)
    assert Cluster().look("4").answered == frozenset()


def test_commands_run_in_english_with_the_configuration(program, monkeypatch):
    for name, value in {"SLURM_CONF": "/c", "LC_ALL": "de_DE", "SQUEUE_STATES": "PD", "SLURM_CLUSTERS": "b"}.items():
        monkeypatch.setenv(name, value)
    program("squeue", script='echo "$SLURM_CONF $LC_ALL ${SQUEUE_STATES-unset} ${SLURM_CLUSTERS-unset}"')
    assert Cluster().ask("squeue").stdout.split() == ["/c", "C", "unset", "unset"]
    assert Cluster().ask("squeue", unset=["SLURM_CONF"]).stdout.split()[0] == "C"
    assert os.environ["SQUEUE_STATES"] == "PD"


def test_active_jobs_have_exactly_this_name(program):
    name = "onestep-r-0123abcd"
    states = ("RUNNING", "PENDING", "COMPLETING", "CANCELLED", "COMPLETED", "NODE_FAIL")
    program("squeue", *[f"{at}|{state}|{name}" for at, state in enumerate(states)], f"9|RUNNING|{name}e")
    assert Cluster().active_jobs(name) == ["0", "1", "2"]


def test_no_active_job_is_not_the_same_as_no_answer(program):
    assert Cluster().active_jobs("x") is None
    program("squeue", code=1, complaint="Unable to contact slurm controller")
    assert Cluster().active_jobs("x") is None
    program("squeue")
    assert Cluster().active_jobs("x") == []


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "COMPLETED"])
def test_a_cancelled_job_is_gone_or_about_to_go(program, tmp_path, state):
    program("scancel", script=f'echo "$@" > {tmp_path}/cancelled')
    program("squeue", queue_row(state, "None", "n1", 0))
    assert Cluster().cancel("4") is True
    assert (tmp_path / "cancelled").read_text() == "4\n"


def test_a_job_that_slurm_forgot_is_gone(program, queue_forgot):
    program("scancel", code=1, complaint="scancel: error: Kill job error on job id 4: Invalid job id specified")
    assert Cluster().cancel("4") is True


def test_a_cancel_takes_a_moment(program, tmp_path):
    program("scancel")
    running, gone = queue_row("RUNNING", "None", "n1", 0), queue_row("COMPLETING", "None", "n1", 0)
    seen = tmp_path / "seen"
    program("squeue", script=f"if [ -e {seen} ]; then echo '{gone}'; else echo '{running}'; fi; : > {seen}")
    assert Cluster().cancel("4") is True


@pytest.mark.parametrize(
    "queue",
    [
        {"script": f"echo '{queue_row('RUNNING', 'None', 'n1', 0)}'"},
        {"script": f"echo '{queue_row('COMPLETING', 'None', 'n1', 1)}'"},
        {"code": 1},
    ],
)
def test_an_unconfirmed_cancel_is_not_reported_as_done(program, queue):
    program("scancel", code=1, complaint="Access/permission denied")
    program("squeue", **queue)
    assert Cluster(cancel_seconds=0.3).cancel("4") is False


def test_run_seconds_sum_over_restarts(program):
    assert Cluster().run_seconds("6") is None
    program("sacct", *STARTS)
    assert Cluster().run_seconds("6") == 7
    program("sacct")
    assert Cluster().run_seconds("6") is None


def test_run_seconds_do_not_count_an_older_job_of_the_same_id(program):
    program("sacct", "6|COMPLETED|0:0|500|n1|another-name", *STARTS)
    assert Cluster().run_seconds("6") == 7
    assert Cluster().look("6").restarts == 1
