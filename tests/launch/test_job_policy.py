"""Decisions on SLURM's answers: every state, and sequences observed on real clusters."""

from __future__ import annotations

import pytest

from onestep.launch.cluster import ACTIVE, Sighting
from onestep.launch.job_policy import JobPolicy, Verdict

EVERYBODY = frozenset({"squeue", "sacct", "scontrol"})
GRACE, VANISHED, PATIENCE = 180.0, 60.0, 1800.0
NO_FAULT = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "TIMEOUT", "REVOKED", "RECONFIG_FAIL")
OWN_ENDS = ("FAILED", "OUT_OF_MEMORY", "CANCELLED", "DEADLINE")


def seen(state, *, reason="", restarts=0, nodes="", answered=EVERYBODY):
    return Sighting(state=state, reason=reason, restarts=restarts, nodes=nodes, answered=frozenset(answered))


UNKNOWN = seen(None, restarts=None)
SILENCE = seen(None, restarts=None, answered=())


class Watch:
    """A policy with a clock that the test sets."""

    def __init__(self):
        self.policy = JobPolicy(grace_seconds=GRACE, vanished_seconds=VANISHED, patience_seconds=PATIENCE)

    def __call__(self, now, sighting, *, done=False, exit_code=None, stopped=False):
        return self.policy.decide(sighting, now=now, done=done, exit_code=exit_code, stopped=stopped)

    def verdicts(self, *sightings, **files):
        return [self(now, sighting, **files).verdict for now, sighting in sightings]


@pytest.fixture
def watch():
    return Watch()


def standing(sighting, times):
    """Return sightings of an unchanged job."""
    return [(now, sighting) for now in times]


@pytest.mark.parametrize(
    "sighting", [seen("RUNNING"), seen("FAILED"), seen("CANCELLED"), seen("ODD"), UNKNOWN, SILENCE]
)
def test_a_finished_run_is_finished_in_every_slurm_state(watch, sighting):
    assert watch(0.0, sighting, done=True, exit_code=1, stopped=True).verdict is Verdict.FINISHED


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_an_active_job_is_waited_for_without_limit(watch, state):
    verdicts = watch.verdicts(*standing(seen(state), (0.0, 1e3, 1e6)), exit_code=85, stopped=True)
    assert verdicts == [Verdict.WAIT] * 3


@pytest.mark.parametrize(
    ("sighting", "described", "held"),
    [
        (seen("RUNNING", nodes="n[1-2]"), "RUNNING on n[1-2]", False),
        (seen("PENDING", reason="Resources"), "PENDING (Resources)", False),
        (seen("PENDING", reason="JobHeldUser"), "PENDING (JobHeldUser)", True),
        (seen("PENDING", reason="launch failed requeued held"), "PENDING (launch failed requeued held)", True),
        (seen("REQUEUE_HOLD"), "REQUEUE_HOLD", True),
        (seen("SPECIAL_EXIT"), "SPECIAL_EXIT", True),
    ],
)
def test_a_decision_to_wait_describes_the_job_and_the_release_of_a_held_one(watch, sighting, described, held):
    because = watch(0.0, sighting).because
    assert because.startswith(described) and ("scontrol release" in because) is held


def test_the_reason_of_waiting_changes_only_when_the_job_does(watch):
    assert watch(0.0, seen("NODE_FAIL")).because == watch(100.0, seen("NODE_FAIL")).because
    assert watch(120.0, SILENCE).because == watch(1200.0, SILENCE).because


@pytest.mark.parametrize("state", OWN_ENDS)
def test_a_final_state_must_persist(watch, state):
    verdicts = watch.verdicts(*standing(seen(state), (0.0, 4.9, 5.0)), exit_code=1)
    assert verdicts == [Verdict.WAIT, Verdict.WAIT, Verdict.FAILED]


def test_a_failed_job_waits_for_a_delayed_exit_code(watch):
    assert watch.verdicts(*standing(seen("FAILED"), (0.0, 6.0, 59.0))) == [Verdict.WAIT] * 3
    lost = watch(59.5, seen("FAILED"), exit_code=85)
    assert lost.verdict is Verdict.LOST and "saved its state" in lost.because


def test_a_failed_job_that_left_no_exit_code_fails(watch):
    assert watch.verdicts(*standing(seen("FAILED"), (0.0, 60.0))) == [Verdict.WAIT, Verdict.FAILED]


@pytest.mark.parametrize("state", NO_FAULT)
def test_an_end_without_fault_is_lost_after_grace_seconds(watch, state):
    verdicts = watch.verdicts(*standing(seen(state), (0.0, 179.0, 180.0)))
    assert verdicts == [Verdict.WAIT, Verdict.WAIT, Verdict.LOST]


@pytest.mark.parametrize(
    ("state", "exit_code", "stopped", "verdict"),
    [
        ("FAILED", 85, False, Verdict.LOST),
        ("FAILED", 1, True, Verdict.LOST),
        ("FAILED", 1, False, Verdict.FAILED),
        ("FAILED", None, True, Verdict.LOST),
        ("COMPLETED", 85, False, Verdict.LOST),
        ("COMPLETED", None, True, Verdict.LOST),
        ("COMPLETED", 0, False, Verdict.FAILED),
        ("COMPLETED", None, False, Verdict.FAILED),
        ("COMPLETED", 1, False, Verdict.FAILED),
        ("TIMEOUT", None, True, Verdict.LOST),
        ("TIMEOUT", 1, False, Verdict.LOST),
        ("OUT_OF_MEMORY", 137, False, Verdict.FAILED),
        ("DEADLINE", 85, True, Verdict.LOST),
        # A cancelled job has no successor, even if the training saved its state.
        ("CANCELLED", 85, True, Verdict.FAILED),
        ("CANCELLED", None, False, Verdict.FAILED),
        (None, None, False, Verdict.FAILED),
        (None, 0, False, Verdict.FAILED),
        (None, 1, False, Verdict.FAILED),
        (None, 85, False, Verdict.LOST),
        (None, None, True, Verdict.LOST),
    ],
)
def test_exit_code_and_stopped_mark_decide_an_end(watch, state, exit_code, stopped, verdict):
    watch(0.0, seen(state), exit_code=exit_code, stopped=stopped)
    judged = watch(500.0, seen(state), exit_code=exit_code, stopped=stopped)
    assert judged.verdict is verdict
    if verdict is Verdict.FAILED and exit_code and state != "CANCELLED":
        assert f"exit code {exit_code}" in judged.because


def test_a_completed_job_waits_for_done_json(watch):
    assert watch.verdicts(*standing(seen("COMPLETED"), (0.0, 59.0))) == [Verdict.WAIT] * 2
    assert watch(59.5, seen("COMPLETED"), done=True).verdict is Verdict.FINISHED


def test_a_job_without_a_record_has_vanished_after_vanished_seconds(watch):
    assert watch.verdicts(*standing(UNKNOWN, (0.0, 59.0))) == [Verdict.WAIT] * 2
    judged = watch(60.0, UNKNOWN)
    assert judged.verdict is Verdict.FAILED and "vanished" in judged.because


@pytest.mark.parametrize("answered", [("squeue",), ("scontrol",), ("squeue", "scontrol")])
def test_a_forgotten_job_vanishes_while_accounting_is_down(watch, answered):
    forgotten = seen(None, restarts=None, answered=answered)
    sightings = [(0.0, seen("RUNNING", answered={"squeue"})), *standing(forgotten, (30.0, 34.9, 35.0))]
    assert watch.verdicts(*sightings, exit_code=1) == [Verdict.WAIT, Verdict.WAIT, Verdict.WAIT, Verdict.FAILED]


def test_a_forgotten_job_with_exit_code_0_waits_for_done_json(watch):
    sightings = standing(UNKNOWN, (0.0, 59.0, 60.0))
    assert watch.verdicts(*sightings, exit_code=0) == [Verdict.WAIT, Verdict.WAIT, Verdict.FAILED]


def test_no_record_in_accounting_alone_is_no_end(watch):
    lagging = seen(None, restarts=None, answered={"sacct"})
    assert watch.verdicts(*standing(lagging, (0.0, 1799.0))) == [Verdict.WAIT] * 2
    assert watch(1800.0, lagging).verdict is Verdict.UNREACHABLE


def test_no_answer_is_unreachable_after_patience_seconds(watch):
    assert watch.verdicts((0.0, seen("RUNNING")), (1000.0, SILENCE), (1799.0, SILENCE)) == [Verdict.WAIT] * 3
    assert watch(1800.0, SILENCE, exit_code=1).verdict is Verdict.UNREACHABLE
    assert watch(1810.0, seen("RUNNING")).verdict is Verdict.WAIT
    assert watch(3600.0, SILENCE).verdict is Verdict.WAIT


def test_no_answer_from_the_first_query_on_is_unreachable_as_well(watch):
    assert watch.verdicts(*standing(SILENCE, (100.0, 1899.0, 1900.0))) == [
        Verdict.WAIT,
        Verdict.WAIT,
        Verdict.UNREACHABLE,
    ]


def test_no_answer_in_between_does_not_restart_the_grace(watch):
    sightings = [(0.0, seen("NODE_FAIL")), (60.0, SILENCE), (120.0, seen("NODE_FAIL")), (180.0, seen("NODE_FAIL"))]
    assert watch.verdicts(*sightings) == [Verdict.WAIT] * 3 + [Verdict.LOST]


def test_a_requeue_passes_through_states_that_are_no_end(watch):
    sightings = [
        (0.0, seen("RUNNING")),
        (1.0, seen("COMPLETING")),
        (2.0, seen("PENDING", reason="BeginTime", restarts=1)),
        (3.0, seen("REQUEUED", restarts=1)),
        (130.0, seen("RUNNING", restarts=1)),
    ]
    # The first life was stopped: what it left does not end the second.
    assert watch.verdicts(*sightings, exit_code=85, stopped=True) == [Verdict.WAIT] * 5


def test_a_lost_node_and_a_requeue_within_the_grace(watch):
    sightings = [
        (0.0, seen("RUNNING")),
        (10.0, seen("NODE_FAIL")),
        (170.0, seen("NODE_FAIL")),
        (180.0, seen("PENDING", reason="BeginTime", restarts=1)),
        (300.0, seen("RUNNING", restarts=1)),
        (310.0, seen("NODE_FAIL", restarts=1)),
        (480.0, seen("NODE_FAIL", restarts=1)),
    ]
    assert watch.verdicts(*sightings) == [Verdict.WAIT] * 7
    assert watch(490.0, seen("NODE_FAIL", restarts=1)).verdict is Verdict.LOST


def test_the_same_end_of_another_start_has_its_own_grace(watch):
    sightings = [(0.0, seen("TIMEOUT")), (190.0, seen("TIMEOUT", restarts=1)), (370.0, seen("TIMEOUT", restarts=1))]
    assert watch.verdicts(*sightings) == [Verdict.WAIT, Verdict.WAIT, Verdict.LOST]


def test_an_unknown_number_of_restarts_is_the_same_start(watch):
    sightings = [(0.0, seen("TIMEOUT")), (100.0, seen("TIMEOUT", restarts=None)), (180.0, seen("TIMEOUT"))]
    assert watch.verdicts(*sightings) == [Verdict.WAIT, Verdict.WAIT, Verdict.LOST]


@pytest.mark.parametrize(
    ("state", "verdict", "at"), [("NODE_FAIL", Verdict.LOST, 180.0), ("FAILED", Verdict.FAILED, 60.0)]
)
def test_an_end_counts_after_slurm_forgets_it(watch, state, verdict, at):
    """Without accounting, squeue forgets a job after MinJobAge, which can be shorter than the grace."""
    watch(0.0, seen(state, answered={"squeue"}))
    forgotten = seen(None, restarts=None, answered={"squeue", "scontrol"})
    assert watch.verdicts(*standing(forgotten, (at - 1, at))) == [Verdict.WAIT, verdict]


def test_an_unknown_state_is_unreachable_after_patience_seconds(watch):
    assert watch.verdicts(*standing(seen("LEVITATING"), (0.0, 1799.0))) == [Verdict.WAIT] * 2
    judged = watch(1800.0, seen("LEVITATING"))
    assert judged.verdict is Verdict.UNREACHABLE and "LEVITATING" in judged.because
