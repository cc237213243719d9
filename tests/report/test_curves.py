"""Which series the charts of a page have, and from which files they come."""

import dataclasses
import json

import pytest
import results_tree
from results_tree import Story, number, other_method, row, write_results

from onestep.report import charts
from onestep.report.evidence import read_evidence, read_log, read_stages
from onestep.report.table import Table


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    return read(tmp_path_factory.mktemp("work"), Story(images=8))


def read(root, story):
    config = write_results(root / "results", story=story)
    return read_evidence(root / "results", config=config, benchmarks=root / "benchmarks", reproduce=["make demo"])


def test_runs_with_snapshots_are_lines_and_the_others_levels(evidence):
    (chart,) = charts.metric_charts(evidence.tables[0])
    assert (chart.x, chart.kind) == ("images", "distance")
    assert [(each.name, each.kind, [x for x, _ in each.points]) for each in chart.series] == [
        ("EDM, NFE 35", "level", [150_000]),
        ("EDM, NFE 1", "level", [150_000]),
        ("D2O", "marked", [10_000, 20_000, 30_000, 40_000]),
        ("D2O-F", "marked", [10_000, 20_000, 30_000, 40_000]),
    ]
    assert [round(each.points[-1][1], 1) for each in chart.series[:2]] == [3.1, 117.2]
    assert [each.colour for each in chart.series] == [0, 1, 2, 3]


def test_a_selected_snapshot_of_another_ema_has_the_curve_of_that_ema(tmp_path):
    story = Story(images=8)
    read(tmp_path, story)
    path = tmp_path / "results/tables/digits.json"
    path.with_suffix(".sha256").unlink()  # as a table of an earlier version
    rows = json.loads(path.read_text())
    rows[2]["model"] = "digits_d2o@best-fd.frechet-one_step-0-1999-ema100"
    path.write_text(json.dumps(rows))
    for images, fd in ((10_000, 7.0), (20_000, 5.0)):
        metric = tmp_path / f"results/metrics/digits_d2o@{images}-ema100/one_step/0-1999.fd.json"
        results_tree.write(metric, json.dumps({"values": {"frechet": fd}}))
    config = tmp_path / "config.yaml"
    found = read_evidence(tmp_path / "results", config=config, benchmarks=tmp_path / "benchmarks", reproduce=[])
    assert found.tables[0].curves[2] == ((10_000, 7.0), (20_000, 5.0))
    assert [x for x, _ in found.tables[0].curves[3]] == [10_000, 20_000, 30_000, 40_000]


def test_a_family_of_runs_has_the_mean_curve_and_the_images_of_its_first_run(tmp_path):
    read(tmp_path, Story(images=8))
    path = tmp_path / "results/tables/digits.json"
    path.with_suffix(".sha256").unlink()  # as a table of an earlier version
    rows = json.loads(path.read_text())
    rows[2] |= {"model": None, "models": ["digits_d2o@40000", "digits_d2o_f@40000"]}
    path.write_text(json.dumps(rows))
    (tmp_path / "results/metrics/digits_d2o@20000/one_step/0-1999.fd.json").unlink()
    config = tmp_path / "config.yaml"
    shown = read_evidence(tmp_path / "results", config=config, benchmarks=tmp_path / "none", reproduce=[]).tables[0]
    assert shown.table.rows[2].runs == ("digits_d2o", "digits_d2o_f")
    family, single = shown.curves[2], shown.curves[3]
    assert [x for x, _ in family] == [10_000, 30_000, 40_000]
    assert family[-1][1] == pytest.approx(single[-1][1] - 0.2, abs=0.01)
    assert set(shown.samples[2]) == set(range(8))


def test_no_chart_without_several_snapshots(evidence):
    shown = evidence.tables[0]
    single = tuple(curve[-1:] for curve in shown.curves)
    assert charts.metric_charts(dataclasses.replace(shown, curves=single)) == []


def test_each_dataset_of_a_table_has_its_own_curves(evidence):
    shown = evidence.tables[0]
    rows = [
        dataclasses.replace(row, dataset="faces" if row.run == "digits_d2o_f" else row.dataset)
        for row in shown.table.rows
    ]
    table = dataclasses.replace(shown.table, rows=tuple(rows), dataset=None)
    digits, faces = charts.metric_charts(dataclasses.replace(shown, table=table))
    assert [each.name for each in digits.series] == ["EDM, NFE 35", "EDM, NFE 1", "D2O"]
    assert [(each.name, each.colour) for each in faces.series] == [("D2O-F", 3)]


def test_a_run_has_one_colour_on_the_whole_page(evidence):
    colours = charts.run_colours(evidence)
    assert colours == {"digits_edm": 0, "digits_d2o": 2, "digits_d2o_f": 3, "digits_backbone": 4, "digits_metric": 5}


def test_everything_logged_is_drawn_fine_tuning_first(evidence):
    drawn = charts.log_charts(evidence)
    assert [(chart.title, [line.name for line in chart.series]) for chart in drawn] == [
        ("d2o: generator loss", ["D2O", "D2O-F"]),
        ("d2o: discriminator loss", ["D2O", "D2O-F"]),
        ("d2o: r1 loss", ["D2O", "D2O-F"]),
        ("d2o: logits fake", ["D2O", "D2O-F"]),
        ("d2o: logits real", ["D2O", "D2O-F"]),
        ("cross entropy loss", ["digits_backbone", "digits_metric"]),
        ("edm loss", ["EDM"]),
    ]
    assert [chart.kind for chart in drawn] == ["distance"] * 3 + ["quantity"] * 2 + ["distance"] * 2


def test_losses_that_were_not_finite_leave_a_gap(evidence):
    run = dataclasses.replace(evidence.runs[0], log=({"images_seen": 1, "losses": {"cross_entropy": None}},))
    assert charts.log_charts(dataclasses.replace(evidence, runs=(run,))) == []


def test_long_logs_are_averaged_over_equal_stretches():
    points = [(float(x), float(x % 2)) for x in range(12_000)]
    thinned = charts.averaged(points)
    assert len(thinned) == charts.MOST_POINTS
    assert thinned[0] == (49.5, 0.5)
    assert all(y == 0.5 for _, y in thinned)
    assert charts.averaged(points[:50]) == points[:50]
    # Of 188 points: 94 means of two; of 239: the first point is alone.
    assert [x for x, _ in charts.averaged(points[:188])] == [2 * pair + 0.5 for pair in range(94)]
    assert [x for x, _ in charts.averaged(points[:239])][:3] == [0.0, 1.5, 3.5]


def ours(run, nfe, fd, **changes):
    """Return a measured row whose three blocks are 10 % apart."""
    measured = dataclasses.replace(number((fd, 0.1, 3, False)), best_block=fd * 0.9, worst_block=fd * 1.1)
    return row(
        run, "one_step", fd=None, recall=None, nfe=nfe, numbers={"fd": measured, "recall": number(None)}, **changes
    )


TABLE = Table(
    name="small",
    title="Small",
    dataset="digits",
    seeds=("0-9", "10-19", "20-29"),
    show="mean",
    columns={"fd": "fd.frechet", "recall": "pr.recall"},
    directions={"fd": "lower", "recall": "higher"},
    drawn="fd",
    rows=(
        ours("edm", 35, 2.0, published={"fd": 1.98}),
        ours("d2o", 1, 1.7),
        row("d2o_f", "one_step", fd=None, recall=None, published={"fd": 1.54}),
        other_method("SiD", published={"fd": 1.92}),
        other_method("CAF", published={"fd": 1.48}, nfe=None),
        other_method("nothing", published={"recall": 0.5}),
    ),
)


def test_rows_are_points_against_nfe_with_published_ones_where_the_nfe_is_known():
    (chart,) = charts.nfe_charts(TABLE)
    assert [(each.name, *each.points[0], each.kind, each.colour) for each in chart.series] == [
        ("edm", 35, 2.0, "point", 0),
        ("edm", 35, 1.98, "published", 0),
        ("d2o", 1, 1.7, "point", 1),
        ("d2o_f", 1, 1.54, "published", 2),
        ("SiD", 1, 1.92, "published", 3),
    ]
    assert [each.reach for each in chart.series] == [pytest.approx((1.8, 2.2)), None, pytest.approx((1.53, 1.87))] + [
        None
    ] * 2
    assert len(list(charts.nfe_notes([chart]))) == 2


def test_a_single_block_has_no_bar():
    fd = (2.0, None, 1, False)
    rows = tuple(row(run, "one_step", fd=fd, recall=None, nfe=nfe) for run, nfe in (("a", 1), ("b", 35)))
    (chart,) = charts.nfe_charts(dataclasses.replace(TABLE, rows=rows))
    assert [each.reach for each in chart.series] == [None, None]
    assert list(charts.nfe_notes([chart])) == []


def test_each_dataset_with_two_numbers_has_a_chart():
    rows = [dataclasses.replace(each, dataset=dataset) for dataset in ("cifar10", "ffhq") for each in TABLE.rows[:2]]
    lone = dataclasses.replace(TABLE.rows[1], dataset="lone")
    drawn = charts.nfe_charts(dataclasses.replace(TABLE, dataset=None, rows=(*rows, lone)))
    assert ["cifar10" in chart.title for chart in drawn] == [True, False]
    assert [len(chart.series) for chart in drawn] == [3, 3]
    assert charts.nfe_charts(dataclasses.replace(TABLE, rows=TABLE.rows[1:4])) == []  # of one NFE
    assert charts.nfe_charts(dataclasses.replace(TABLE, rows=TABLE.rows[1:2])) == []


def test_shares_are_shown_from_0_to_1_and_scores_are_not():
    recall, score = (
        dataclasses.replace(
            TABLE,
            drawn="recall",
            rows=tuple(row("a", "s", fd=None, recall=(value, None, 1, False), nfe=nfe) for nfe in (1, 35)),
        )
        for value in (0.5, 9.0)
    )
    assert [charts.nfe_charts(each)[0].kind for each in (recall, score)] == ["share", "quantity"]
    assert charts.nfe_charts(TABLE)[0].kind == "distance"


def test_rows_of_one_label_are_distinguished_by_nfe_and_ema():
    one, other = (dataclasses.replace(TABLE.rows[1], label="x", ema=ema) for ema in (5_000.0, 100_000.0))
    many = dataclasses.replace(one, nfe=35)
    table = dataclasses.replace(TABLE, rows=(one, other, many))
    assert [charts.row_name(each, table=table) for each in table.rows] == [
        "x, NFE 1, EMA 5,000",
        "x, NFE 1, EMA 100,000",
        "x, NFE 35",
    ]


def test_benchmarks_are_summed_by_rule(tmp_path):
    results_tree.write(tmp_path / "train" / "a.tsv", "s\th:m:s\n10.5\t0:00:10\n")
    results_tree.write(tmp_path / "train" / "b" / "c.tsv", "s\th:m:s\n2.0\t0:00:02\n")
    results_tree.write(tmp_path / "sample" / "a.tsv", "s\th:m:s\n3.0\t0:00:03\n")
    assert list(read_stages(tmp_path).items()) == [("train", [10.5, 2.0]), ("sample", [3.0])]
    assert read_stages(tmp_path / "absent") == {}


def test_a_damaged_log_names_its_line(tmp_path):
    results_tree.write(tmp_path / "log.jsonl", '{"images_seen": 1}\n{"images')
    with pytest.raises(ValueError, match="log.jsonl, line 2"):
        read_log(tmp_path / "log.jsonl")
