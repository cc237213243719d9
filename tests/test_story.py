"""The lines of the terminal, from records as Snakemake makes them."""

import logging

import pytest

from onestep.plan.pace import Pace
from onestep.plan.story import Job, Story, own_lines, summary_lines


def record(text="", **facts):
    made = logging.LogRecord("snakemake", logging.INFO, "", 0, text, (), None)
    made.__dict__.update(facts)
    return made


def job(rule, message="", reason="", **wildcards):
    facts = {"rule_name": rule, "rule_msg": message, "wildcards": wildcards, "reason": reason, "log": []}
    return record(event="job_info", **facts)


def shown(story, *records, dry=False):
    return [story.format(each) for each in records if story.keeps(each, dry=dry)]


def test_a_job_is_one_line_with_its_message_and_without_snakemakes_own():
    lines = shown(
        Story(None),
        record("Select jobs to execute..."),
        job("sample", "sample d2o@40000 by one_step, seeds 0-1999"),
        job("all"),
        record("Execute 1 jobs...", event="job_started"),
        record("Something else."),
    )
    assert [line.partition("  ")[2] or line for line in lines] == [
        "sample d2o at 40,000 images by one_step, seeds 0-1999",
        "Something else.",
    ]


def test_a_job_shows_how_many_are_done():
    story = Story(None)
    plan = record("Job stats: ...", event="run_info", stats={"fetch": 1, "measure_a": 2, "all": 1, "total": 4})
    first, second = job("fetch", "fetch digits"), job("measure_a", "measure a")
    first.__dict__["jobid"] = 7
    done = [record(event="job_finished", job_id=7), record(None, event="progress", done=1, total=4)]
    lines = shown(story, record("Provided cores: 2", event="resources_info"), plan, first, *done, second)
    assert [line.partition("  ")[2] for line in lines][0] == "[0/3]  fetch digits"
    assert lines[1].partition("  ")[2].startswith("[1/3") and lines[1].endswith("measure a")
    assert len(lines) == 2


def test_the_time_left_is_that_of_jobs_like_those_that_ended():
    pace = Pace()
    pace.plan({"train": 4, "measure": 10})
    for name in ("a", "b"):  # two at once
        pace.begin(name, "train", 0.0)
    assert pace.left(50.0) is None
    pace.end("a", 100.0), pace.end("b", 100.0)
    # 200 s of work in 100 s: 2 trainings of 100 s, and 10 jobs of which none has ended.
    assert pace.left(100.0) == pytest.approx((2 * 100 + 10 * 100) / 2)
    for name in range(5):
        pace.begin(name, "measure", 100.0)
        pace.end(name, 102.0)
    assert pace.left(102.0) == pytest.approx((2 * 100 + 5 * 2) * 102 / 210)
    pace.begin("c", "train", 102.0)
    assert pace.left(152.0) == pytest.approx((2 * 100 + 5 * 2 - 50) * 152 / 260)
    assert pace.text(102.0).startswith("7/14, ")
    pace.end("unknown", 200.0)
    assert pace.done == 7


def test_nothing_is_known_of_a_workflow_without_a_plan():
    pace = Pace()
    pace.begin(1, "measure", 0.0)
    pace.end(1, 5.0)
    assert pace.text(6.0) == ""
    pace.plan({"measure": 101})
    assert pace.left(6.0) is None and pace.text(6.0) == "1/101"


def test_a_dry_run_is_a_line_for_each_subject():
    story = Story(None)
    records = [
        job("measure", reason="Input files updated by another job: a", model="d2o@320", seeds="0-31"),
        job("train_d2o", "train d2o: 320 images", "Params have changed since last execution"),
        job("measure", reason="Missing output files: b", model="d2o@160", seeds="0-31"),
        job("fetch", reason="Missing output files: c", input="digits"),
        job("tabulate", table="t"),
        job("all"),
        record("This was a dry-run (flag -n)."),
    ]
    (text,) = shown(story, *records, dry=True)
    lines = [" ".join(line.split()) for line in text.splitlines() if line.startswith("  ")]
    assert lines == [
        "inputs fetch (new)",
        "d2o measure 2, 320 images (its config has changed, new)",
        "tables tabulate",
    ]
    assert "5 jobs" in text


def test_reasons_that_are_all_alike_are_named_once():
    jobs = [Job(rule="fetch", message="", subject="inputs", reasons=("new",))] * 3
    text = "\n".join(summary_lines(jobs))
    assert text.count("new") == 0 and "fetch 3" in text


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("a\nonestep train: x: got 1, expected 2\nb\n", ["onestep train: x: got 1, expected 2"]),
        ("Traceback\nKilled\n", ["Traceback", "Killed"]),
        (None, []),
    ],
)
def test_a_failure_has_the_line_of_its_log(log, expected, tmp_path):
    path = tmp_path / "train.log"
    if log is not None:
        path.write_text(log)
    assert own_lines(path) == expected
    story = Story(None)
    story.keeps(record(event="job_error", rule_name="train_d2o", rule_msg="train d2o", log=[str(path)]), dry=False)
    lines = story.failure_lines()
    assert lines[-1] == (expected or ["no line in its log"])[-1] and "train d2o" in lines[0]


def test_of_a_group_that_fails_the_job_with_the_error_is_shown(tmp_path):
    logs = {name: tmp_path / name for name in ("observe", "measure", "absent")}
    logs["observe"].write_text("100 images\n")
    logs["measure"].write_text("onestep measure: fd: x.npz: got nothing\n")
    story = Story(None)
    for name, path in logs.items():
        failed = record(event="job_error", rule_name=name, rule_msg=name, log=[str(path)], indent=True)
        assert story.keeps(failed, dry=False) == (name == "measure")
    assert story.failure_lines()[1:] == ["onestep measure: fd: x.npz: got nothing"]
