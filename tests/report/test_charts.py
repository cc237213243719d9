"""Charts by the values that they show: series, scales, limits, bytes."""

import itertools
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
from matplotlib.text import Text

from onestep.figures import COLOURS, svg
from onestep.report.charts import Chart, Series, draw

LINES = (
    Series(name="a<b", points=((0.0, 40.0), (10_000.0, 4.0), (40_000.0, 2.0)), colour=0, kind="marked"),
    Series(name="teacher", points=((0.0, 119.0),), colour=1, kind="level"),
)
POINTS = (
    Series(name="teacher", points=((35.0, 2.0),), colour=0, kind="point", reach=(1.9, 2.2)),
    Series(name="teacher", points=((35.0, 1.98),), colour=0, kind="published"),
    Series(name="d2o", points=((1.0, 1.6),), colour=1, kind="point"),
    Series(name="other", points=((1.0, 1.5),), colour=9, kind="published"),
)


def axes_of(figure):
    return [axes for part in figure.subfigs for axes in part.axes]


def test_curves_show_their_values_from_zero_images_on():
    (axes,) = axes_of(draw([Chart(title="FD, lower is better", x="images", series=LINES)]))
    line, level = axes.get_lines()
    assert list(zip(*line.get_data(), strict=True)) == list(LINES[0].points)
    assert list(level.get_ydata()) == [119.0, 119.0]
    assert axes.get_xlim()[0] == 0 and axes.get_xlim()[1] >= 40_000
    assert axes.get_xlabel() == "images seen in training"
    assert axes.get_title(loc="left") == "FD, lower is better (log scale)"


@pytest.mark.parametrize(
    ("values", "kind", "scale", "limits"),
    [
        ((1.0, 11.0), "distance", "log", None),
        ((1.0, 9.0), "distance", "linear", None),
        ((0.0, 90.0), "distance", "linear", None),
        ((1.0, 11.0), "quantity", "linear", None),
        ((-1.0, 90.0), "distance", "linear", None),
        ((0.01, 0.9), "share", "linear", (0, 1)),
    ],
)
def test_the_scale_follows_the_kind_of_number(values, kind, scale, limits):
    series = Series(name="a", points=tuple(enumerate(values, start=1)), colour=0)
    chart = Chart(title="t", x="images", series=(series,), kind=kind)
    (axes,) = axes_of(draw([chart]))
    assert axes.get_yscale() == scale
    assert chart.is_log == (scale == "log")
    if limits:
        assert axes.get_ylim() == limits


def test_nfe_is_logarithmic_with_a_tick_at_each_value():
    (axes,) = axes_of(draw([Chart(title="t", x="nfe", series=POINTS)]))
    assert axes.get_xscale() == "log"
    assert list(axes.get_xticks()) == [1.0, 35.0]
    assert axes.get_xlim()[0] < 1 and axes.get_xlim()[1] > 35


def test_neighbouring_nfe_share_a_tick():
    points = tuple(Series(name=f"{x}", points=((x, 1.0),), colour=0, kind="point") for x in (35.0, 40.0, 511.0))
    (axes,) = axes_of(draw([Chart(title="t", x="nfe", series=points)]))
    assert list(axes.get_xticks()) == [35.0, 511.0]


def test_measured_points_are_filled_and_published_ones_hollow():
    (axes,) = axes_of(draw([Chart(title="t", x="nfe", series=POINTS)]))
    assert [line.get_markerfacecolor() for line in axes.get_lines()] == [COLOURS[0], "none", COLOURS[1], "none"]
    (bar,) = axes.collections
    assert [tuple(y for _, y in segment) for segment in bar.get_segments()] == [(1.9, 2.2)]


def test_the_legend_has_each_row_once_and_a_marker_of_its_own():
    figure = draw([Chart(title="t", x="nfe", series=POINTS)])
    (legend,) = figure.subfigs[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["teacher", "d2o", "other"]
    looks = {(line.get_color(), line.get_marker()) for line in axes_of(figure)[0].get_lines()}
    assert len(looks) == 3


@pytest.mark.parametrize("name", ["$\\frac$", "_hidden", "<b>&", "50 %"])
def test_a_name_is_drawn_as_it_is(name):
    series = (Series(name=name, points=((0.0, 1.0),), colour=0),)
    figure = draw([Chart(title=name, x="images", series=series)])
    ElementTree.fromstring(svg(figure))
    assert [text.get_text() for text in figure.subfigs[0].legends[0].get_texts()] == [name]
    assert axes_of(figure)[0].get_title(loc="left") == name


def test_many_rows_make_a_chart_higher():
    rows = tuple(Series(name=f"method {i}", points=((1.0, 1.0 + i),), colour=i, kind="point") for i in range(40))
    few, many = (draw([Chart(title="t", x="nfe", series=rows[:count])]) for count in (2, 40))
    assert many.get_size_inches()[1] > few.get_size_inches()[1] + 1
    assert many.get_size_inches()[0] == few.get_size_inches()[0]


@pytest.mark.parametrize("size", [(440, 250), (336, 200)])
def test_no_text_is_cut_off_and_no_two_texts_of_an_axis_overlap(size):
    names = [f"EDM, {nfe} evaluations, stochastic" for nfe in (35, 79, 511)] + [f"method {i}" for i in range(20)]
    series = tuple(
        Series(name=name, points=((1.0 + 17 * place, 1.2**place),), colour=place, kind="point")
        for place, name in enumerate(names)
    )
    for x in ("nfe", "images"):
        figure = draw(
            [Chart(title="A quantity with a rather long name, lower is better", x=x, series=series, size=size)]
        )
        svg(figure)
        texts = [each for each in figure.findobj(Text) if each.get_visible() and each.get_text()]
        frame = figure.bbox.padded(1)
        extents = {each: each.get_window_extent() for each in texts}
        (axes,) = axes_of(figure)
        assert axes.get_window_extent().height > size[1] / 2
        drawn = [each for each in texts if each not in (*axes.get_xticklabels(), *axes.get_yticklabels())]
        assert all(frame.contains(*extents[each].p0) and frame.contains(*extents[each].p1) for each in drawn)
        (low, high), legend = axes.get_ylim(), figure.subfigs[0].legends[0].get_texts()
        heights = [each for each in axes.get_yticklabels() if low <= each.get_position()[1] <= high]
        for labels in (axes.get_xticklabels(), heights, legend):
            boxes = [extents[each] for each in labels if each in extents]
            assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_charts_of_several_datasets_are_below_each_other():
    charts = [Chart(title=f"FD of {name}", x="nfe", series=POINTS) for name in "ab"]
    figure = draw(charts)
    first, second = axes_of(figure)
    assert first.get_title(loc="left") == "FD of a" and second.get_title(loc="left") == "FD of b"
    svg(figure)
    assert first.get_window_extent().y0 > second.get_window_extent().y1


def test_the_same_charts_give_the_same_bytes_under_any_settings_of_the_user():
    charts = [Chart(title="t", x="images", series=LINES)]
    once = svg(draw(charts))
    with matplotlib.rc_context({"font.size": 20.0, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert svg(draw(charts)) == once
        assert matplotlib.rcParams["font.size"] == 20.0


def test_an_svg_is_one_file_without_date_and_without_requests():
    text = svg(draw([Chart(title="t", x="images", series=LINES)]))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    links = [value for each in root.iter() for name, value in each.attrib.items() if name.endswith("href")]
    assert links and all(link.startswith("#") for link in links)
    assert "<text" not in text and "metadata" not in text and "@import" not in text
    assert "prefers-color-scheme:dark" in text


def test_no_charts_are_a_line_of_text():
    figure = draw([])
    assert [text.get_text() for text in figure.texts] == ["No two numbers of different NFE."]
    ElementTree.fromstring(svg(figure))


def test_the_description_has_every_row_with_its_value():
    text = Chart(title="FD", x="nfe", series=POINTS).description
    for part in ("teacher 2.000 at 35", "teacher, published 1.980 at 35", "d2o 1.600 at 1"):
        assert part in text
    assert "teacher 119.0" in Chart(title="FD", x="images", series=LINES).description
