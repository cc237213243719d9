"""What stages read from each other is whole, of the right shape and of the right block, or named in one line."""

import json
import os

import pytest

from onestep import files
from onestep.escapes import csv_cell, markdown, markup, one_line
from onestep.records import differing, found_at, iter_log, read_measurement, read_run_config, read_summary

BLOCK = {"model": "d2o@64", "sampler": "one_step", "seeds": "0-31"}
PLACE = "results/metrics/d2o@64/one_step/0-31.fd.json"


def at(folder, text, name=PLACE):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1, 2]",
        "null",
        '{"values": {"fd": "1.5"}}',
        '{"values": {"fd": NaN}}',
        '{"values": {"fd": 1e999}}',
        '{"values": {"fd": true}}',
        '{"values": [1]}',
        "[" * 100_000 + "]" * 100_000,
        b'{"values": "\xff"}',
        "1" * 5000,
        '{"values": {"fd": 1.5}, "seeds": 3}',
        json.dumps({"values": {"fd": 1.5}, **BLOCK, "model": "d2o@32"}),
        json.dumps(files.sealed({"values": {"fd": 1.5}, **BLOCK})).replace("1.5", "1.25"),
    ],
    ids=range(15),
)
def test_what_is_no_measurement_is_one_line_with_the_file(tmp_path, text):
    path = at(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        read_measurement(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    content, fault = found_at(path, read_measurement)
    assert content is None and fault.startswith(f"damaged: {path}")


@pytest.mark.parametrize("place", ["/dev/zero", "a folder", "a pipe", "a loop", "a cut link"])
def test_what_is_no_file_is_refused_before_it_is_read(tmp_path, place):
    path = tmp_path / "x.json"
    {
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a loop": lambda: path.symlink_to("x.json"),
        "a cut link": lambda: path.symlink_to("nothing"),
        "/dev/zero": lambda: path.symlink_to("/dev/zero"),
    }[place]()
    assert found_at(path, read_measurement)[1].startswith(f"damaged: {path}: got ")


def test_sound_records_are_read_with_and_without_a_digest(tmp_path):
    record = {"values": {"fd": 1.5}, **BLOCK}
    assert read_measurement(at(tmp_path, json.dumps(record))) == record
    assert read_measurement(at(tmp_path, json.dumps(files.sealed(record))))["values"] == {"fd": 1.5}
    assert found_at(tmp_path / "none.json", read_measurement) == (None, f"missing: {tmp_path / 'none.json'}")


@pytest.mark.parametrize("fact", ["features", "feature_weights_sha256", "precision", "reference", "images", "options"])
def test_recorded_facts_decide_whether_numbers_are_compared(fact):
    one = {"features": "a", "reference": {"images": 5}, "images": 32, "options": {"k": 3}}
    assert differing(one, one | {"precision": "float32"}) == []
    assert differing(one, one | {fact: "other"}) == [fact]


@pytest.mark.parametrize(
    "text",
    [
        "{}\n",
        "[]\n",
        '{"images_seen": 64}\n{"images',
        '{"images_seen": 64, "losses": {"g": "1"}}\n',
        "\0" * 50,
        b"\xff\n",
    ],
)
def test_what_is_no_log_is_one_line_with_the_file(tmp_path, text):
    path = at(tmp_path, text, "log.jsonl")
    with pytest.raises(ValueError, match=r"log\.jsonl, line \d"):
        list(iter_log(path))


@pytest.mark.parametrize("text", ["", "{}", "run: other", "a: [", "- 1", "run: 2026-02-30", "x: !!int abc", b"\xff"])
def test_what_is_no_run_config_is_one_line_with_the_file(tmp_path, text):
    path = at(tmp_path, text, "run.yaml")
    with pytest.raises(ValueError, match=r"run\.yaml: ") as caught:
        read_run_config(path, run="d2o")
    assert "\n" not in str(caught.value)


def test_the_summary_of_another_run_is_refused(tmp_path):
    path = at(tmp_path, '{"run": "edm", "seconds": 1.5}', "summary.json")
    assert read_summary(path, run="edm", keys=("seconds",))["seconds"] == 1.5
    with pytest.raises(ValueError, match=r"summary\.json: .* edm"):
        read_summary(path, run="d2o", keys=("seconds",))
    with pytest.raises(ValueError, match=r"summary\.json: codes"):
        read_summary(path, run="edm", keys=("codes",))


@pytest.mark.parametrize("mark", ["\r", "\n", "\r\n", "\u2028", "\u2029", "\u0085", "\0", "\x0b", "\x1b"])
def test_line_breaks_and_control_characters_leave_no_line(mark):
    assert one_line(f"a{mark}b") == "a b" and one_line(f"{mark}a{mark}") == "a"
    assert markdown(f"a{mark}|_b") == r"a \|\_b"
    assert csv_cell(f"{mark}=1+1") == "'=1+1"
    assert mark not in markup(f"a{mark}b") or mark in "\n\u2028\u2029"


@pytest.mark.parametrize("text", ["=cmd|'/C calc'!A0", "+1", "-1", "@SUM(1)", " =1", "\t=1", "\uff1d1"])
def test_no_cell_of_csv_is_a_formula(text):
    assert csv_cell(text).startswith("'")
    assert csv_cell("a-b=c") == "a-b=c"
