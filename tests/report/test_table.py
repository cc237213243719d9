import dataclasses
import json

import pytest
from results_tree import Story, measurement, write_results

from onestep.config import read_experiment
from onestep.files import write_json
from onestep.report import numbers
from onestep.report.cells import REFERENCE, cell, notes
from onestep.report.evidence import layout_of
from onestep.report.table import Row, Table, as_json, column_directions, fill, read_rows
from onestep.report.tabulation import tabulate, write_table

COLUMNS = {"fd": "fd.frechet", "recall": "pr.recall"}
LAYOUT = Table(
    name="t",
    title="T",
    dataset="digits",
    seeds=("0", "1", "2"),
    show="mean",
    columns=COLUMNS,
    directions={"fd": "lower", "recall": "higher"},
    drawn="fd",
)


def entry(run, *, fd=(), recall=(), **changes):
    """Return a row and its measurements, one of each number a block."""
    values = {"fd": [{"frechet": value} for value in fd], "pr": [{"recall": value} for value in recall]}
    found = {
        metric: [
            measurement(model=f"{run}@40", sampler="one_step", seeds=f"{block}", metric=metric, values=numbers)
            for block, numbers in enumerate(blocks)
        ]
        for metric, blocks in values.items()
    }
    facts = {"run": run, "sampler": "one_step", "label": run, "dataset": "digits", "nfe": 1, "model": f"{run}@40"}
    return Row(**(facts | changes)), [found]


def build(*entries, show="mean"):
    return fill(dataclasses.replace(LAYOUT, show=show), entries).rows


def shown(row):
    return {column: each.shown for column, each in row.numbers.items()}


def best(row):
    return [column for column, each in row.numbers.items() if each.is_best]


def test_numbers_are_means_over_the_blocks_with_their_sample_deviation():
    (row,) = build(entry("a", fd=[1.0, 2.0, 6.0], recall=[0.5]))
    assert shown(row) == {"fd": 3.0, "recall": 0.5}
    assert row.numbers["fd"].std == pytest.approx(7**0.5)
    assert row.numbers["recall"].std is None
    assert [each.blocks for each in row.numbers.values()] == [3, 1]


@pytest.mark.parametrize(("show", "fd", "recall"), [("mean", 3.0, 0.5), ("first", 2.0, 0.5), ("best", 1.0, 0.75)])
def test_a_table_shows_one_number_of_the_blocks_and_its_json_has_all(show, fd, recall):
    table = dataclasses.replace(LAYOUT, show=show)
    table = fill(table, [entry("a", fd=[2.0, 1.0, 6.0], recall=[0.5, 0.25, 0.75], published={"fd": 1.5})])
    (row,), (document,) = table.rows, as_json(table)
    assert (document["show"], document["metrics"]) == (show, {"fd": fd, "recall": recall})
    assert (document["mean"], document["first_block"]) == ({"fd": 3.0, "recall": 0.5}, {"fd": 2.0, "recall": 0.5})
    assert document["best_block"] == {"fd": 1.0, "recall": 0.75}
    assert document["worst_block"] == {"fd": 6.0, "recall": 0.25}
    assert document["std"]["fd"] == pytest.approx(7**0.5)
    assert table.deviation(row, "fd") == (document["std"]["fd"] if show == "mean" else None)
    difference = float(cell(row, column="fd", table=table).difference.replace(numbers.MINUS, "-"))
    assert difference == pytest.approx(fd - 1.5, abs=0.5 if show == "mean" else 0)


def test_the_row_that_is_best_is_so_in_the_numbers_that_are_shown():
    steady, lucky = entry("steady", fd=[2.0, 2.0]), entry("lucky", fd=[4.0, 1.0])
    for show, winner in (("mean", "steady"), ("first", "steady"), ("best", "lucky")):
        assert [row.run for row in build(steady, lucky, show=show) if best(row)] == [winner]


def test_another_block_does_not_replace_the_first():
    row, (found,) = entry("a", fd=[2.0, 1.0])
    del found["fd"][0]
    (row,) = build((row, [found]), show="first")
    assert shown(row)["fd"] is None
    assert (row.numbers["fd"].first_block, row.numbers["fd"].mean) == (None, 1.0)
    table = dataclasses.replace(LAYOUT, show="first", seeds=("0", "1"))
    assert cell(row, column="fd", table=table) is None
    (whole,) = build(entry("a", fd=[2.0]), show="first")
    assert cell(whole, column="fd", table=table).missing == ""
    (part,) = build(entry("a", fd=[2.0]), show="best")
    assert cell(part, column="fd", table=dataclasses.replace(table, show="best")).missing == "1 of 2 blocks"


def test_the_best_follows_the_direction_of_each_column():
    low, high = build(entry("low", fd=[1.0], recall=[0.1]), entry("high", fd=[5.0], recall=[0.9]))
    assert (best(low), best(high)) == (["fd"], ["recall"])


def test_equal_rows_are_both_best_and_a_lone_number_is_not():
    first, second = build(entry("a", fd=[1.0], recall=[0.1]), entry("b", fd=[1.0]))
    assert best(first) == best(second) == ["fd"]


def test_what_was_not_measured_is_none_and_never_best():
    measured, other, missing = build(entry("a", fd=[3.0]), entry("b", fd=[2.0]), entry("c"))
    assert shown(missing) == {"fd": None, "recall": None}
    assert [(each.std, each.blocks) for each in missing.numbers.values()] == [(None, 0), (None, 0)]
    assert (best(measured), best(other), best(missing)) == ([], ["fd"], [])


def family(*runs, **changes):
    """Return the row of a family and the measurements of its runs."""
    members = [entry(f"x.seed={seed}", **numbers) for seed, numbers in enumerate(runs)]
    row = dataclasses.replace(members[0][0], run="x", model=None, models=tuple(str(each.model) for each, _ in members))
    return dataclasses.replace(row, **changes), [found for _, (found,) in members]


@pytest.mark.parametrize(("show", "values"), [("mean", (2.0, 4.0, 9.0)), ("first", (1.0, 3.0, 8.0))])
def test_a_row_of_several_runs_shows_mean_and_deviation_over_runs(show, values):
    rows = family({"fd": [1.0, 3.0]}, {"fd": [3.0, 5.0]}, {"fd": [8.0, 10.0]}), entry("other", fd=[1.0, 1.0])
    table = fill(dataclasses.replace(LAYOUT, show=show, seeds=("0", "1")), rows)
    found = table.rows[0].numbers["fd"]
    assert found.shown == found.mean == pytest.approx(sum(values) / 3)
    assert found.std == table.deviation(table.rows[0], "fd") == pytest.approx(13**0.5)
    assert (found.best_block, found.worst_block, found.blocks) == (values[0], values[2], 2)
    assert as_json(table)[0]["runs"] == ["x.seed=0", "x.seed=1", "x.seed=2"]
    assert "runs" not in as_json(table)[1]
    assert cell(table.rows[0], column="fd", table=table).std is not None
    assert any("x.seed=0: 3" in note for note in notes(table))


def test_runs_of_a_family_without_numbers_are_left_out_and_others_must_be_comparable():
    (row,) = build(family({"fd": [1.0]}, {}))
    assert (row.numbers["fd"].shown, row.numbers["fd"].std, row.numbers["fd"].blocks) == (1.0, None, 0)
    assert shown(build(family({}, {}))[0]) == {"fd": None, "recall": None}
    row, runs = family({"fd": [1.0]}, {"fd": [2.0]})
    runs[1]["fd"][0]["images"] = 7
    with pytest.raises(ValueError, match=r"x.seed=0@40.*x.seed=1@40"):
        build((row, runs))


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
    other[1][0]["fd"][0][key] = value
    with pytest.raises(ValueError, match=rf"column fd: {key} .* metrics/a@40/one_step/0.fd.json.*b@40"):
        build(entry("a", fd=[1.0]), other)


def test_blocks_of_one_row_must_be_comparable_too():
    row = entry("a", fd=[1.0, 2.0])
    row[1][0]["fd"][1]["feature_weights_sha256"] = "dd" * 32
    with pytest.raises(ValueError, match="column fd: feature_weights_sha256"):
        build(row)


def test_a_column_of_another_precision_is_marked(tmp_path):
    row, (found,) = entry("a", fd=[1.0, 2.0], recall=[0.5])
    for measured in found["fd"]:
        measured["precision"] = "tf32"
    found["pr"][0]["precision"] = "float32"
    table = fill(LAYOUT, [(row, [found])])
    write_table(tmp_path, table=table)
    markdown, latex = ((tmp_path / f"t.{suffix}").read_text() for suffix in ("md", "tex"))
    assert markdown.count("\N{DOUBLE DAGGER}") == latex.count(r"$^\ddagger$") == 2
    assert markdown.count("tf32") == latex.count("tf32") == 1
    assert json.loads((tmp_path / "t.json").read_text())[0]["precisions"] == {"fd": "tf32"}


def test_a_row_whose_images_are_not_in_float32_is_marked_and_compared_all_the_same(tmp_path):
    (row, (found,)), other = entry("a", fd=[1.0, 2.0]), entry("b", fd=[3.0])
    found["fd"][0]["arithmetic"] = {"images": {"precision": "tf32", "device": "NVIDIA A100"}}
    table = fill(LAYOUT, [(row, [found]), other])
    assert [each.images_in for each in table.rows] == ["float32 and tf32", None]
    write_table(tmp_path, table=table)
    markdown, latex, csv = ((tmp_path / f"t.{suffix}").read_text() for suffix in ("md", "tex", "csv"))
    assert markdown.count("\N{PILCROW SIGN}") == latex.count(r"\P{}") == 2 and "\N{PILCROW SIGN}" not in csv
    assert "a (one_step) in float32 and tf32" in markdown
    assert [each.get("images_in") for each in json.loads((tmp_path / "t.json").read_text())] == [
        "float32 and tf32",
        None,
    ]
    assert read_rows(tmp_path / "t.json") == table.rows


def test_a_run_in_another_arithmetic_is_marked(tmp_path):
    table = fill(LAYOUT, [entry("a", fd=[1.0], fast=True), entry("b", fd=[2.0])])
    write_table(tmp_path, table=table)
    markdown, latex, csv = ((tmp_path / f"t.{suffix}").read_text() for suffix in ("md", "tex", "csv"))
    assert markdown.count("\N{SECTION SIGN}") == latex.count(r"\S{}") == 2
    assert [line.split(",")[-1] for line in csv.splitlines()] == ["fast", "true", "false"]
    assert [row.fast for row in read_rows(tmp_path / "t.json")] == [True, False]
    (without,) = as_json(fill(LAYOUT, [entry("b", fd=[2.0])]))
    assert "fast" not in without


def test_numbers_in_features_that_a_row_was_trained_on_carry_a_mark(tmp_path):
    table = fill(LAYOUT, [entry("a", fd=[1.0], trained_on=("fd",)), entry("b", fd=[2.0])])
    write_table(tmp_path, table=table)
    csv, text, tex = ((tmp_path / f"t.{ending}").read_text() for ending in ("csv", "md", "tex"))
    assert [line.split(",")[-1] for line in csv.splitlines()] == ["trained_on", "fd", ""]
    lines = [line for line in text.splitlines() if line.startswith(("| a", "| b"))]
    assert [REFERENCE in line for line in lines] == [True, False] and text.count(REFERENCE) == 2
    assert tex.count(r"$^\ast$") == 2
    assert [row.trained_on for row in read_rows(tmp_path / "t.json")] == [("fd",), ()]


def test_a_table_says_that_all_of_its_features_were_trained_on():
    seen = fill(LAYOUT, [entry("a", fd=[1.0], trained_on=tuple(LAYOUT.columns)), entry("b", fd=[2.0])])
    some = fill(LAYOUT, [entry("a", fd=[1.0], trained_on=("fd",)), entry("b", fd=[2.0])])
    none = fill(LAYOUT, [entry("a", fd=[1.0]), entry("b", fd=[2.0])])
    assert [len(notes(each)) - len(notes(none)) for each in (seen, some)] == [2, 1]


def test_a_measurement_without_the_value_is_refused():
    row, (found,) = entry("a", fd=[1.0])
    found["fd"][0]["values"] = {"kernel": 1.0}
    with pytest.raises(ValueError, match="metrics/a@40/one_step/0.fd.json: got values kernel, expected 'frechet'"):
        build((row, [found]))


def test_directions_come_from_the_metrics_classes():
    metrics = {"fd": "frechet", "is": "inception_score", "pr": "precision_recall"}
    columns = {"fd": "fd.frechet", "is": "is.inception_score", "recall": "pr.recall"}
    assert column_directions(columns, metrics=metrics) == {"fd": "lower", "is": "higher", "recall": "higher"}
    with pytest.raises(ValueError, match=r"columns.fd: got 'fd.kernel'.*fd.frechet"):
        column_directions({"fd": "fd.kernel"}, metrics=metrics)


def test_the_json_is_the_contract_and_reads_back_as_the_same_table(tmp_path):
    story = Story(published={"digits_d2o": {"fd": 1.66}}, other_code=("digits_d2o_f",), images=8)
    config = write_results(tmp_path / "results", story=story)
    path = tmp_path / "results" / "tables" / "digits.json"
    rows = json.loads(path.read_text())
    contract = {"run", "sampler", "nfe", "images_seen", "snapshot", "metrics", "published"}
    assert all(contract <= row.keys() for row in rows)
    assert [(row["run"], row["sampler"], row["nfe"], row["images_seen"], row["snapshot"]) for row in rows] == [
        ("digits_edm", "heun", 35, 150_000, "digits_edm@150000"),
        ("digits_edm", "one_step", 1, 150_000, "digits_edm@150000"),
        ("digits_d2o", "one_step", 1, 40_000, "digits_d2o@40000"),
        ("digits_d2o_f", "one_step", 1, 40_000, "digits_d2o_f@40000"),
    ]
    assert rows[2]["metrics"].keys() == {"fd", "is", "precision", "recall"}
    assert rows[2]["metrics"]["fd"] == pytest.approx(1.9)
    assert rows[2]["published"] == {"fd": 1.66}
    assert [row["trained_with_other_code"] for row in rows] == [False, False, False, True]
    layout = layout_of("digits", experiment=read_experiment(config))
    assert (layout.title, layout.dataset, layout.drawn) == ("Digits, 16x16", "digits", "fd")
    table = dataclasses.replace(layout, rows=read_rows(path))
    assert as_json(table) == rows
    write_table(tmp_path / "again", table=table)
    for suffix in ("json", "csv", "md", "tex", "svg"):
        once, again = tmp_path / f"results/tables/digits.{suffix}", tmp_path / f"again/digits.{suffix}"
        assert once.read_bytes() == again.read_bytes()


def test_datasets_are_not_compared_with_each_other():
    here = [entry("a", fd=[1.0]), entry("b", fd=[2.0])]
    there = [entry(run, fd=[fd], dataset="letters") for run, fd in (("c", 30.0), ("d", 20.0))]
    for each in there:
        each[1][0]["fd"][0]["reference"] = {"dataset": "letters", "images": 26, "sha256": "ee" * 32}
    assert [best(row) for row in build(*here, *there)] == [["fd"], [], [], ["fd"]]
    there[1][1][0]["fd"][0]["images"] = 7
    with pytest.raises(ValueError, match=r"column fd: images .*2000 in metrics/c@40/one_step/0.fd.json, 7 in .*d@40"):
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
    tabulate(table={**PLAN, "rows": rows}, results=root, training_code={"d2o": "new"}, output=root / "tables")
    return json.loads((root / "tables/small.json").read_text())


def test_a_chosen_snapshot_is_named_with_its_policy_and_carries_its_runs_facts(tmp_path):
    (row,) = write_tabulated(tmp_path, planned(published={"fd": 1.5}, sources={"fd": "A"}))
    assert (row["snapshot"], row["images_seen"], row["model"]) == ("d2o@300-ema50", 300, CHOSEN)
    assert row["snapshot_policy"] == "lowest FD of 3, seeds 10-19"
    assert (row["metrics"], row["published"], row["sources"]) == ({"fd": 1.75}, {"fd": 1.5}, {"fd": "A"})
    assert (row["frozen_share"], row["trained_with_other_code"], row["ema"]) == (0.25, True, 50)
    (line,) = [each for each in (tmp_path / "tables/small.md").read_text().splitlines() if each.startswith("| x")]
    assert [each.strip() for each in line.split("|")[-6:-1]] == [
        "lowest FD of 3, seeds 10-19",
        "50 images",
        "1.750",
        "1.5 \\[1\\]",
        "+0.250",
    ]


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


def test_a_family_of_runs_is_read_from_the_models_of_its_runs(tmp_path):
    for seed, fd in enumerate((1.0, 3.0)):
        run, code = f"d2o.seed={seed}", ["new"] if seed else ["old"]
        write_json(tmp_path / f"runs/{run}/summary.json", {"frozen_share": 0.25, "codes": code})
        found = measurement(model=f"{run}@300", sampler="one_step", seeds="0-9", metric="fd", values={"frechet": fd})
        write_json(tmp_path / f"metrics/{run}@300/one_step/0-9.fd.json", found)
    models = ["d2o.seed=0@300", "d2o.seed=1@300"]
    row = planned(model=None, models=models, images_seen=300)
    codes = {"d2o.seed=0": "new", "d2o.seed=1": "new"}
    tabulate(table={**PLAN, "rows": [row]}, results=tmp_path, training_code=codes, output=tmp_path / "tables")
    (row,) = json.loads((tmp_path / "tables/small.json").read_text())
    assert (row["run"], row["runs"], row["images_seen"]) == ("d2o", ["d2o.seed=0", "d2o.seed=1"], 300)
    assert (row["metrics"], row["std"]) == ({"fd": 2.0}, {"fd": pytest.approx(2**0.5)})
    assert (row["snapshot_policy"], row["trained_with_other_code"]) == ("last", True)
    assert "2.0 \u00b1 1.4" in (tmp_path / "tables/small.md").read_text()
