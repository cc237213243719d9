import dataclasses
import json

import pytest
import results_tree
from results_tree import Story, write_results

from onestep.report import curves
from onestep.report.evidence import read_evidence, read_log, read_stages


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    root = tmp_path_factory.mktemp("work")
    story = Story()
    write_results(root / "results", story=story)
    return read_evidence(
        root / "results", config_text=story.config_text, benchmarks=root / "benchmarks", reproduce=["make demo"]
    )


def test_runs_with_snapshots_are_lines_and_the_others_levels(evidence):
    chart = curves.metric_chart(evidence.tables[0])
    assert chart.title == "FD, lower is better"
    assert [(line.name, [x for x, _ in line.points]) for line in chart.lines] == [
        ("digits_d2o", [10_000, 20_000, 30_000, 40_000]),
        ("digits_d2o_f", [10_000, 20_000, 30_000, 40_000]),
    ]
    assert [(level.name, round(level.value, 1)) for level in chart.levels] == [
        ("digits_edm, 35 evaluations", 3.1),
        ("digits_edm, 1 evaluation", 117.2),
    ]
    assert [each.colour for each in (*chart.levels, *chart.lines)] == [0, 1, 2, 3]


def test_a_chosen_snapshot_of_another_average_has_that_averages_curve(tmp_path):
    story = Story(images=8)
    write_results(tmp_path / "results", story=story)
    path = tmp_path / "results/tables/digits.json"
    rows = json.loads(path.read_text())
    rows[2]["model"] = "digits_d2o@best-fd.frechet-one_step-0-1999-ema100"
    path.write_text(json.dumps(rows))
    for images, fd in ((10_000, 7.0), (20_000, 5.0)):
        results_tree.write(tmp_path / f"results/runs/digits_d2o/snapshots/{images}-ema100.safetensors", "")
        metric = tmp_path / f"results/metrics/digits_d2o@{images}-ema100/one_step/0-1999.fd.json"
        results_tree.write(metric, json.dumps({"values": {"frechet": fd}}))
    read = read_evidence(
        tmp_path / "results", config_text=story.config_text, benchmarks=tmp_path / "benchmarks", reproduce=[]
    )
    assert [curve.points for curve in read.tables[0].curves][2] == ((10_000, 7.0), (20_000, 5.0))
    assert [x for x, _ in read.tables[0].curves[3].points] == [10_000, 20_000, 30_000, 40_000]


def test_rows_of_one_label_are_told_apart(evidence):
    table = evidence.tables[0].table
    one, other = (dataclasses.replace(table.rows[2], ema=half_life) for half_life in (5_000.0, 100_000.0))
    table = dataclasses.replace(table, rows=(one, other))
    assert [curves.row_name(row, table=table) for row in table.rows] == [
        "digits_d2o, 1 evaluation, average over 5,000",
        "digits_d2o, 1 evaluation, average over 100,000",
    ]
    mixed = dataclasses.replace(table, dataset=None, rows=(one, dataclasses.replace(one, dataset="letters")))
    assert [curves.row_name(row, table=mixed) for row in mixed.rows] == ["digits_d2o, digits", "digits_d2o, letters"]


def test_no_chart_without_several_snapshots(evidence):
    shown = evidence.tables[0]
    single = tuple(dataclasses.replace(curve, points=curve.points[-1:]) for curve in shown.curves)
    assert curves.metric_chart(dataclasses.replace(shown, curves=single)) is None


def test_a_run_has_one_colour_on_the_whole_page(evidence):
    colours = curves.run_colours(evidence)
    assert colours == {"digits_edm": 0, "digits_d2o": 2, "digits_d2o_f": 3, "digits_backbone": 4, "digits_metric": 5}


def test_everything_logged_is_drawn_fine_tuning_first(evidence):
    charts = curves.log_charts(evidence, colours=curves.run_colours(evidence))
    assert [(chart.title, [line.name for line in chart.lines]) for chart in charts] == [
        ("d2o: generator loss", ["digits_d2o", "digits_d2o_f"]),
        ("d2o: discriminator loss", ["digits_d2o", "digits_d2o_f"]),
        ("d2o: r1 loss", ["digits_d2o", "digits_d2o_f"]),
        ("d2o: logits fake", ["digits_d2o", "digits_d2o_f"]),
        ("d2o: logits real", ["digits_d2o", "digits_d2o_f"]),
        ("cross entropy loss", ["digits_backbone", "digits_metric"]),
        ("edm loss", ["digits_edm"]),
    ]


def test_losses_that_were_not_finite_leave_a_gap(evidence):
    run = dataclasses.replace(evidence.runs[0], log=({"images_seen": 1, "losses": {"cross_entropy": None}},))
    assert curves.log_charts(dataclasses.replace(evidence, runs=(run,)), colours={run.name: 0}) == []


def test_long_logs_are_averaged_over_equal_stretches():
    points = [(float(x), float(x % 2)) for x in range(12_000)]
    thinned = curves.averaged(points)
    assert len(thinned) == curves.MOST_POINTS
    assert thinned[0] == (49.5, 0.5)
    assert all(y == 0.5 for _, y in thinned)
    assert curves.averaged(points[:50]) == points[:50]


def test_benchmarks_are_added_up_by_rule(tmp_path):
    results_tree.write(tmp_path / "train" / "a.tsv", "s\th:m:s\n10.5\t0:00:10\n")
    results_tree.write(tmp_path / "train" / "b" / "c.tsv", "s\th:m:s\n2.0\t0:00:02\n")
    results_tree.write(tmp_path / "sample" / "a.tsv", "s\th:m:s\n3.0\t0:00:03\n")
    stages = [(stage.rule, stage.jobs, stage.total, stage.longest) for stage in read_stages(tmp_path)]
    assert stages == [("train", 2, 12.5, 10.5), ("sample", 1, 3.0, 3.0)]
    assert read_stages(tmp_path / "absent") == ()


def test_a_damaged_log_names_its_line(tmp_path):
    results_tree.write(tmp_path / "log.jsonl", '{"images_seen": 1}\n{"images')
    with pytest.raises(ValueError, match="log.jsonl, line 2: not JSON"):
        read_log(tmp_path / "log.jsonl")
