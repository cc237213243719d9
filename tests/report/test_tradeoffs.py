import dataclasses
import xml.etree.ElementTree as ElementTree

import pytest
from results_tree import other_method, row

from onestep.report.table import Table
from onestep.report.tradeoffs import as_svg, notes, tradeoff_charts


def ours(run, nfe, fd, **changes):
    """Return a measured row whose three blocks are 10 % apart."""
    measured = row(run, "one_step", fd=(fd, 0.1, 3, False), recall=None, nfe=nfe, **changes)
    blocks = {name: {**getattr(measured, name), "fd": fd * by} for name, by in REACH.items()}
    return dataclasses.replace(measured, **blocks)


REACH = {"best_block": 0.9, "worst_block": 1.1}
TABLE = Table(
    name="small",
    title="Small",
    dataset="digits",
    seeds=("0-9", "10-19", "20-29"),
    show="mean",
    columns={"fd": "fd.frechet", "recall": "pr.recall"},
    directions={"fd": "lower", "recall": "higher"},
    rows=(
        ours("edm", 35, 2.0, published={"fd": 1.98}),
        ours("d2o", 1, 1.7),
        row("d2o_f", "one_step", fd=None, recall=None, published={"fd": 1.54}),
        other_method("SiD", published={"fd": 1.92}),
        other_method("CAF", published={"fd": 1.48}, nfe=None),
        other_method("nothing", published={"recall": 0.5}),
    ),
)


def shown(chart):
    return [(point.name, point.x, point.y, point.hollow, point.named) for point in chart.points]


def test_rows_are_points_and_published_numbers_hollow_where_their_evaluations_are_known():
    (chart,) = tradeoff_charts(TABLE, column="fd")
    assert (chart.title, chart.x_label) == ("FD, lower is better", "network evaluations an image")
    assert shown(chart) == [
        ("edm", 35, 2.0, False, True),
        ("edm", 35, 1.98, True, False),
        ("d2o", 1, 1.7, False, True),
        ("d2o_f", 1, 1.54, True, True),
        ("SiD", 1, 1.92, True, True),
    ]
    assert [point.colour for point in chart.points] == [0, 0, 1, 2, 3]
    assert [point.reach for point in chart.points] == [pytest.approx((1.8, 2.2)), None, pytest.approx((1.53, 1.87))] + [
        None
    ] * 2
    assert list(notes([chart]))[1:] == [
        "Bars reach from the least to the greatest number of its blocks of seeds.",
        "Hollow: published numbers.",
    ]


def test_one_block_has_no_bar_and_no_word_of_it():
    rows = [dataclasses.replace(each, blocks={"fd": 1, "recall": 0}, published={}) for each in TABLE.rows[:2]]
    (chart,) = tradeoff_charts(dataclasses.replace(TABLE, rows=tuple(rows)), column="fd")
    assert [point.reach for point in chart.points] == [None, None]
    assert list(notes([chart])) == ["Each point is a row of the table."]


def test_datasets_have_a_chart_each_where_they_have_two_numbers():
    rows = [dataclasses.replace(each, dataset=dataset) for dataset in ("cifar10", "ffhq") for each in TABLE.rows[:2]]
    lone = dataclasses.replace(TABLE.rows[1], dataset="lone")
    table = dataclasses.replace(TABLE, dataset=None, rows=(*rows, lone))
    charts = tradeoff_charts(table, column="fd")
    assert [chart.title for chart in charts] == ["FD of cifar10, lower is better", "FD of ffhq, lower is better"]
    root = ElementTree.fromstring(as_svg(table, column="fd"))
    tops = [(float(each.get("y")), float(each.get("height"))) for each in root if each.tag.endswith("}svg")]
    assert len(tops) == 2 and tops[0][0] + tops[0][1] <= tops[1][0]
    assert float(root.get("height")) >= tops[1][0] + tops[1][1]


def test_averages_of_one_run_are_told_apart():
    rows = [dataclasses.replace(TABLE.rows[1], ema=ema) for ema in (5_000.0, 100_000.0)]
    (chart,) = tradeoff_charts(dataclasses.replace(TABLE, rows=tuple(rows)), column="fd")
    assert [point.name for point in chart.points] == ["d2o, average over 5,000", "d2o, average over 100,000"]


def test_the_file_needs_nothing_from_outside_and_no_variables():
    text = as_svg(TABLE, column="fd")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text and "--" not in text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in text and "href" not in text
    assert "currentColor" in text and ".c0 { color: #0072b2; }" in text


def test_without_two_numbers_the_file_says_so():
    text = as_svg(dataclasses.replace(TABLE, rows=TABLE.rows[1:2]), column="fd")
    assert "Nothing measured to draw yet." in "".join(ElementTree.fromstring(text).itertext())
    assert tradeoff_charts(TABLE, column="recall") == []
