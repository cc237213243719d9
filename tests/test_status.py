"""One line for each run: finished, under way with the newest number and job, not begun."""

from onestep.files import write_json
from onestep.launch.journal import JobSeen
from onestep.status import status_lines


def test_a_line_has_the_progress_the_newest_number_and_the_job(tmp_path):
    results, state = tmp_path / "results", tmp_path / "state"
    summary = {"codes": ["old"], "images_seen": 64, "seconds": 900.0, "world_size": 2, "device": "A", "restarts": 3}
    write_json(results / "runs/a/summary.json", summary)
    (state / "b/spec").mkdir(parents=True)
    (state / "b/spec/log.jsonl").write_text(
        '{"images_seen": 1280, "losses": {"generator": 0.5, "r1": null}}\n{"images_se'
    )
    for model, distance in (("b@640", 31.5), ("b@1280", 22.25), ("b@best-fd.frechet-one_step-0-31", 1.0)):
        write_json(results / f"metrics/{model}/one_step/0-31.fd.json", {"values": {"frechet": distance}})
    job = JobSeen(job_id="12", state="RUNNING", restarts=2, gpu_hours=1.25)
    lines = status_lines(
        {"a": 64, "b": 6400, "c": 64},
        codes={"a": "new", "b": "new", "c": "new"},
        job_of={"a": job, "b": job, "c": None}.get,
        metrics={"is": "inception_score", "fd": "frechet"},
        results=results,
        state=state,
    )
    finished, under_way, not_begun = ([part.strip() for part in line.split(";")] for line in lines)
    assert finished[0] == "a  finished, 64 images, 0.50 GPU hours, restarted 3 times"
    assert len(finished) == 2  # the code has changed
    assert under_way == [
        "b  at 1,280 of 6,400 images, generator 0.5",
        "fd 22.25 at 1,280 images",
        "job 12 RUNNING, requeued 2 times, 1.2 GPU hours",
    ]
    assert not_begun == ["c  not begun"]
