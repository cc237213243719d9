"""Benchmark records: their shape, their seal, their order, and those of a workflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from onestep.bench.recording import Stopwatch, read_benchmark, read_benchmarks, source_digest, write_benchmark
from onestep.cli import main
from onestep.files import write_json
from onestep.report.table import Number, Row, Table, as_json

TOOK = {"seconds": 2.0, "cpu_seconds": 1.5}


def test_a_record_has_what_was_measured_where_and_with_which_code(tmp_path):
    numbers = {"a": 1.5, "b": None, "c": "out of memory"}
    path = write_benchmark(
        tmp_path, name="thing", about="A thing.", took=TOOK, numbers=numbers, command=["/a/x", "y z"]
    )
    record = read_benchmark(path)
    assert record["numbers"] == numbers and record["command"] == ".../x 'y z'"
    assert record["machine"]["cores"] == len(os.sched_getaffinity(0)) and record["machine"]["gpu"] is None
    assert (record["seconds"], record["cpu_seconds"]) == (2.0, 1.5)
    assert record["source_sha256"] == source_digest()
    assert record["commit"] is None or len(record["commit"]) == 40


def test_a_record_of_code_that_was_edited_meanwhile_is_not_clean(tmp_path):
    took = {**Stopwatch().read(), "source_sha256": "0" * 64}
    record = read_benchmark(write_benchmark(tmp_path, name="thing", about="A thing.", took=took, numbers={}))
    assert record["source_sha256"] == "0" * 64 and not record["clean"]


@pytest.mark.parametrize("change", ["number", "name", "shape", "file"])
def test_a_record_that_was_changed_is_refused(tmp_path, change):
    path = write_benchmark(tmp_path, name="thing", about="A thing.", took=TOOK, numbers={"a": 1.5})
    record = json.loads(path.read_text())
    if change == "number":
        record["numbers"]["a"] = 2.5
    elif change == "name":
        record["name"] = "other"
    elif change == "shape":
        del record["machine"], record["content_sha256"]
    write_json(path, record)
    if change == "file":
        path = path.rename(tmp_path / "other-20200101T000000Z.json")
    with pytest.raises(ValueError, match=f"^{path}: "):
        read_benchmarks(tmp_path)


def test_numbers_are_finite(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_benchmark(tmp_path, name="thing", about="A thing.", took=TOOK, numbers={"a": float("nan")})
    assert not list(tmp_path.glob("*.json"))


def test_cpu_seconds_are_those_of_other_processes_too():
    watch = Stopwatch()
    subprocess.run([sys.executable, "-c", "while __import__('time').process_time() < 0.1: pass"], check=True)
    assert 0.1 <= watch.read()["cpu_seconds"] < 5


@pytest.fixture
def demo(tmp_path):
    """A folder with a workflow's results, and a command that makes its benchmarks."""
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "config.yaml").write_text("title: x")
    numbers = {"fd": Number(shown=4.0, std=1.2), "is": Number()}
    row = Row(run="r", label="R", sampler="one_step", dataset="d", nfe=1, numbers=numbers)
    columns = {"fd": "fd.frechet", "is": "is.inception_score"}
    shown = {"columns": columns, "directions": {"fd": "lower", "is": "higher"}, "drawn": "fd", "show": "mean"}
    table = Table(name="t", title="T", dataset="d", seeds=("0-9",), rows=(row,), **shown)
    write_json(folder / "results" / "tables" / "t.json", as_json(table))
    head = "s\th:m:s\tmax_rss\tmean_load\tcpu_time\n"
    jobs = {"train/r.tsv": "10.5\t0\t700.1\t90\t9.25\n", "measure/a/b.tsv": "1.5\t0\t-\t-\tNA\n"}
    text = f"from pathlib import Path\nfor name, row in {jobs}.items():\n"
    text += f"    path = Path({str(folder / 'benchmarks')!r}, name); path.parent.mkdir(parents=True, exist_ok=True)\n"
    text += f"    path.write_text({head!r} + row)\n"
    (tmp_path / "make.py").write_text(text)
    return ["--config", str(folder / "config.yaml"), "--record", str(tmp_path / "records"), "--name", "demo", "--"]


def test_a_workflow_is_recorded_with_its_stages_and_tables(demo, tmp_path):
    assert main(["bench", "workflow", *demo, sys.executable, str(tmp_path / "make.py")]) == 0
    (record,) = read_benchmarks(tmp_path / "records")
    assert record["numbers"] == {
        "jobs": 2,
        **{"measure.seconds": 1.5, "measure.cpu_seconds": 0.0, "train.seconds": 10.5, "train.cpu_seconds": 9.25},
        **{"t.r.one_step.fd": 4.0, "t.r.one_step.fd_std": 1.2, "t.r.one_step.is": None},
    }
    assert record["memory_mib"] == 700.1 and record["command"].endswith("make.py")


def test_a_workflow_that_was_done_before_or_fails_is_not_recorded(demo, tmp_path, capsys):
    assert main(["bench", "workflow", *demo, sys.executable, "-c", "import sys; sys.exit(3)"]) == 3
    subprocess.run([sys.executable, str(tmp_path / "make.py")], check=True)
    for path in (tmp_path / "demo" / "benchmarks").rglob("*.tsv"):
        os.utime(path, (1, 1))
    assert main(["bench", "workflow", *demo, sys.executable, "-c", ""]) == 0
    assert "2 of 2 jobs" in capsys.readouterr().out and not (tmp_path / "records").exists()
    assert main(["bench", "workflow", *demo[:-1]]) == 1
    assert "got no command" in capsys.readouterr().err
