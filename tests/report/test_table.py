import dataclasses
import json

import pytest
import results_tree
from results_tree import Story, measurement, write_results

from onestep.files import write_json
from onestep.report import numbers
from onestep.report.cells import cell
from onestep.report.formats import write_table
from onestep.report.table import Entry, build_rows, column_directions, read_table, tabulate
from onestep.report.tabulation import write_tables

COLUMNS = {"fd": "fd.frechet", "recall": "pr.recall"}
DIRECTIONS = {"fd": "lower", "recall": "higher"}


def entry(run, *, fd=(), recall=(), **changes):
    """Return a row with one measurement a number."""
    values = {"fd": [{"frechet": value} for value in fd], "pr": [{"recall": value} for value in recall]}
    found = {
        metric: [
            measurement(model=f"{run}@40", sampler="one_step", seeds=f"{block}", metric=metric, values=numbers)
            for block, numbers in enumerate(blocks)
        ]
        for metric, blocks in values.items()
    }
    row = Entry(
        run=run,
        sampler="one_step",
        label=run,
        dataset="digits",
        nfe=1,
        images_seen=40,
        images=None,
        snapshot=f"{run}@40",
        snapshot_policy="last",
        model=f"{run}@40",
        ema=1000.0,
        frozen_share=0.5,
        trained_with_other_code=False,
        published={},
        sources={},
        measurements=found,
    )
    return dataclasses.replace(row, **changes)


def build(*entries, show="mean"):
    return build_rows(entries, columns=COLUMNS, directions=DIRECTIONS, show=show, first="0")


def test_numbers_are_means_over_the_blocks_with_their_sample_deviation():
    (row,) = build(entry("a", fd=[1.0, 2.0, 6.0], recall=[0.5]))
    assert row.metrics == {"fd": 3.0, "recall": 0.5}
    assert row.std["fd"] == pytest.approx(7**0.5)
    assert row.std["recall"] is None
    assert row.blocks == {"fd": 3, "recall": 1}


@pytest.mark.parametrize(("show", "fd", "recall"), [("mean", 3.0, 0.5), ("first", 2.0, 0.5), ("best", 1.0, 0.75)])
def test_a_table_shows_one_number_of_the_blocks_and_its_json_has_all(show, fd, recall):
    (row,) = build(entry("a", fd=[2.0, 1.0, 6.0], recall=[0.5, 0.25, 0.75], published={"fd": 1.5}), show=show)
    assert (row.show, row.metrics) == (show, {"fd": fd, "recall": recall})
    assert (row.mean, row.first_block) == ({"fd": 3.0, "recall": 0.5}, {"fd": 2.0, "recall": 0.5})
    assert row.best_block == {"fd": 1.0, "recall": 0.75}
    assert row.worst_block == {"fd": 6.0, "recall": 0.25}
    assert row.std["fd"] == pytest.approx(7**0.5)
    assert row.deviation("fd") == (row.std["fd"] if show == "mean" else None)
    shown = cell(row, column="fd", blocks=3)
    difference = float(shown.difference.replace(numbers.MINUS, "-"))
    assert difference == pytest.approx(fd - 1.5, abs=0.5 if show == "mean" else 0)


def test_the_row_that_is_best_is_so_in_the_numbers_that_are_shown():
    steady, lucky = entry("steady", fd=[2.0, 2.0]), entry("lucky", fd=[4.0, 1.0])
    for show, best in (("mean", "steady"), ("first", "steady"), ("best", "lucky")):
        assert [row.run for row in build(steady, lucky, show=show) if row.best] == [best]


def test_another_block_does_not_stand_in_for_the_first():
    row = entry("a", fd=[2.0, 1.0])
    del row.measurements["fd"][0]
    (found,) = build(row, show="first")
    assert (found.metrics["fd"], found.first_block["fd"], found.mean["fd"]) == (None, None, 1.0)
    assert cell(found, column="fd", blocks=2) is None
    (whole,) = build(entry("a", fd=[2.0]), show="first")
    assert cell(whole, column="fd", blocks=2).missing == ""
    (part,) = build(entry("a", fd=[2.0]), show="best")
    assert cell(part, column="fd", blocks=2).missing == "1 of 2 blocks"


def test_the_best_follows_the_direction_of_each_column():
    low, high = build(entry("low", fd=[1.0], recall=[0.1]), entry("high", fd=[5.0], recall=[0.9]))
    assert low.best == ("fd",)
    assert high.best == ("recall",)


def test_equal_rows_are_both_best_and_a_lone_number_is_not():
    first, second = build(entry("a", fd=[1.0], recall=[0.1]), entry("b", fd=[1.0]))
    assert first.best == second.best == ("fd",)


def test_what_was_not_measured_is_none_and_never_best():
    measured, other, missing = build(entry("a", fd=[3.0]), entry("b", fd=[2.0]), entry("c"))
    assert missing.metrics == {"fd": None, "recall": None}
    assert missing.std == {"fd": None, "recall": None}
    assert missing.blocks == {"fd": 0, "recall": 0}
    assert (measured.best, other.best, missing.best) == ((), ("fd",), ())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reference", {"dataset": "digits", "images": 1797, "sha256": "cc" * 32}),
        ("feature_weights_sha256", "dd" * 32),
        ("features", "inception"),
        ("images", 50_000),
        ("precision", "tf32"),
    ],
)
def test_numbers_that_cannot_be_compared_are_refused(key, value):
    other = entry("b", fd=[2.0])
    other.measurements["fd"][0][key] = value
    with pytest.raises(ValueError, match=rf"column fd: {key} is .* in metrics/a@40/one_step/0.fd.json but .*b@40"):
        build(entry("a", fd=[1.0]), other)


def test_blocks_of_one_row_must_be_comparable_too():
    row = entry("a", fd=[1.0, 2.0])
    row.measurements["fd"][1]["feature_weights_sha256"] = "dd" * 32
    with pytest.raises(ValueError, match="column fd: feature_weights_sha256"):
        build(row)


def test_a_column_of_another_precision_is_marked(tmp_path):
    row = entry("a", fd=[1.0, 2.0], recall=[0.5])
    for measured in row.measurements["fd"]:
        measured["precision"] = "tf32"
    row.measurements["pr"][0]["precision"] = "float32"
    metrics = {"fd": {"name": "frechet"}, "pr": {"name": "precision_recall"}}
    layout = {"dataset": "digits", "seeds": ["0-1", "2-3"], "columns": COLUMNS}
    table = tabulate({"tables": {"t": layout}, "metrics": metrics}, name="t", entries=[row])
    assert table.rows[0].precisions == {"fd": "tf32"}
    write_table(tmp_path, table=table, drawn="fd")
    markdown, latex = ((tmp_path / f"t.{suffix}").read_text() for suffix in ("md", "tex"))
    note = "features computed in tf32, not in float32."
    assert markdown.count("\N{DOUBLE DAGGER}") == latex.count(r"$^\ddagger$") == 2
    assert markdown.count(note) == latex.count(note) == 1
    assert json.loads((tmp_path / "t.json").read_text())[0]["precisions"] == {"fd": "tf32"}


def test_a_measurement_without_the_value_is_refused():
    row = entry("a", fd=[1.0])
    row.measurements["fd"][0]["values"] = {"kernel": 1.0}
    with pytest.raises(ValueError, match="no value 'frechet', only kernel"):
        build(row)


def test_directions_come_from_the_metrics_classes():
    metrics = Story().config["metrics"]
    columns = {"fd": "fd.frechet", "is": "is.inception_score", "recall": "pr.recall"}
    assert column_directions(columns, metrics=metrics) == {"fd": "lower", "is": "higher", "recall": "higher"}
    with pytest.raises(ValueError, match="column fd: metric fd gives no 'kernel'; it gives frechet"):
        column_directions({"fd": "fd.kernel"}, metrics=metrics)


def test_the_json_is_the_contract_and_reads_back_as_the_same_table(tmp_path):
    story = Story(published={"digits_d2o": {"fd": 1.66}}, other_code=("digits_d2o_f",))
    write_results(tmp_path / "results", story=story)
    entries = results_tree.entries(tmp_path / "results", story, name="digits")
    table = tabulate(story.config, name="digits", entries=entries)
    path = tmp_path / "results" / "tables" / "digits.json"
    rows = json.loads(path.read_text())
    contract = {"run", "sampler", "nfe", "images_seen", "snapshot", "metrics", "published"}
    assert all(contract <= row.keys() for row in rows)
    assert [(row["run"], row["sampler"], row["nfe"], row["images_seen"], row["snapshot"]) for row in rows] == [
        ("digits_edm", "heun", 35, 100_000, "digits_edm@100000"),
        ("digits_edm", "one_step", 1, 100_000, "digits_edm@100000"),
        ("digits_d2o", "one_step", 1, 40_000, "digits_d2o@40000"),
        ("digits_d2o_f", "one_step", 1, 40_000, "digits_d2o_f@40000"),
    ]
    assert rows[2]["metrics"].keys() == {"fd", "is", "precision", "recall"}
    assert rows[2]["metrics"]["fd"] == pytest.approx(1.9)
    assert rows[2]["published"] == {"fd": 1.66}
    assert [row["trained_with_other_code"] for row in rows] == [False, False, False, True]
    assert read_table(path, config=story.config) == table


def test_the_same_rows_give_the_same_bytes(tmp_path):
    story = Story()
    write_results(tmp_path / "results", story=story)
    table = read_table(tmp_path / "results/tables/digits.json", config=story.config)
    write_table(tmp_path / "again", table=table, drawn="fd")
    for suffix in ("json", "csv", "md", "tex", "svg"):
        once, again = tmp_path / f"results/tables/digits.{suffix}", tmp_path / f"again/digits.{suffix}"
        assert once.read_bytes() == again.read_bytes()


def test_datasets_are_not_compared_with_each_other():
    here = [entry("a", fd=[1.0]), entry("b", fd=[2.0])]
    there = [entry(run, fd=[fd], dataset="letters") for run, fd in (("c", 30.0), ("d", 20.0))]
    for each in there:
        each.measurements["fd"][0]["reference"] = {"dataset": "letters", "images": 26, "sha256": "ee" * 32}
    assert [row.best for row in build(*here, *there)] == [("fd",), (), (), ("fd",)]
    there[1].measurements["fd"][0]["images"] = 7
    with pytest.raises(
        ValueError, match=r"column fd: images is 2000 in metrics/c@40/one_step/0.fd.json but 7 in .*d@40"
    ):
        build(*here, *there)


PLAN = {
    "name": "small",
    "layout": {"title": "Small", "seeds": ["0-9"], "select": "best_fd", "columns": {"fd": "fd.frechet"}},
    "drawn": "fd",
    "metrics": {"fd": {"name": "frechet"}},
}
CHOSEN = "d2o@best-fd.frechet-one_step-10-19-ema50"


def planned(**changes):
    """Return what the plan tells of a row."""
    row = {"label": "x", "dataset": "digits", "published": {}, "sources": {}, "nfe": 1, "images": None, "ema": 50}
    return row | {"run": "d2o", "sampler": "one_step", "images_seen": None, "model": CHOSEN} | changes


def write_tabulated(root, *rows):
    """Write a table of a run with a chosen snapshot, and return its rows."""
    write_json(root / "runs/d2o/summary.json", {"frozen_share": 0.25, "codes": ["old"]})
    choice = {"snapshot": "d2o@300-ema50", "images": 300, "direction": "lower", "seeds": "10-19"}
    write_json(root / f"selections/{CHOSEN}.json", choice | {"candidates": {"200": 3.0, "300": 1.5, "400": 2.0}})
    found = measurement(model=CHOSEN, sampler="one_step", seeds="0-9", metric="fd", values={"frechet": 1.75})
    write_json(root / f"metrics/{CHOSEN}/one_step/0-9.fd.json", found)
    write_tables({**PLAN, "rows": rows}, results=root, training_code={"d2o": "new"}, folder=root / "tables")
    return json.loads((root / "tables/small.json").read_text())


def test_a_chosen_snapshot_is_named_with_its_policy_and_carries_its_runs_facts(tmp_path):
    (row,) = write_tabulated(tmp_path, planned(published={"fd": 1.5}, sources={"fd": "A"}))
    assert (row["snapshot"], row["images_seen"], row["model"]) == ("d2o@300-ema50", 300, CHOSEN)
    assert row["snapshot_policy"] == "lowest FD of 3, seeds 10-19"
    assert (row["metrics"], row["published"], row["sources"]) == ({"fd": 1.75}, {"fd": 1.5}, {"fd": "A"})
    assert (row["frozen_share"], row["trained_with_other_code"], row["ema"]) == (0.25, True, 50)
    text = (tmp_path / "tables/small.md").read_text()
    assert "| lowest FD of 3, seeds 10-19 | 50 images | 1.750 | 1.5 \\[1\\] | +0.250 |" in text


def test_another_method_and_a_teacher_from_outside_have_no_policy(tmp_path):
    nothing = dict.fromkeys(("run", "sampler", "model", "ema"))
    other = planned(**nothing, label="SiD", published={"fd": 1.9}, images="~400 M")
    teacher = planned(run="edm", model="edm", ema=None)
    rows = write_tabulated(tmp_path, other, teacher)
    assert [(row["run"], row["snapshot"], row["snapshot_policy"], row["images_seen"]) for row in rows] == [
        (None, None, None, None),
        ("edm", "edm", None, None),
    ]
    assert rows[0]["metrics"] == {"fd": None} and rows[0]["published"] == {"fd": 1.9}
    assert not any(row["trained_with_other_code"] for row in rows)
