import itertools
import xml.etree.ElementTree as ElementTree

import pytest

from onestep.report import axes
from onestep.report.figures import Chart, Level, Line, draw
from onestep.report.strokes import broken, colour_class


def texts(svg):
    """Return the visible texts of a chart."""
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter("text")]


def test_linear_scales_hold_the_values_and_end_on_round_ticks():
    scale = axes.linear([0.93, 1.41], start=200.0, end=20.0)
    assert scale.ticks == (0.8, 1.0, 1.2, 1.4, 1.6)
    assert (scale(0.8), scale(1.6)) == (200.0, 20.0)
    assert scale(1.2) == pytest.approx(110.0)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_a_single_value_has_a_scale(value):
    scale = axes.linear([value], start=0.0, end=100.0)
    assert scale.low < value < scale.high
    assert 0 < scale(value) < 100


def test_logarithmic_scales_give_equal_factors_equal_lengths():
    scale = axes.logarithmic([1.9, 119.0], start=200.0, end=20.0)
    assert scale.ticks == (2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
    assert scale(10) - scale(20) == pytest.approx(scale(50) - scale(100))
    assert all(20 < scale(value) < 200 for value in (1.9, 119.0))


@pytest.mark.parametrize("high", [1.5, 30.0, 1e3, 1e6, 1e12])
def test_logarithmic_scales_have_a_few_ticks(high):
    assert 1 <= len(axes.logarithmic([1.0, high], start=0.0, end=1.0).ticks) <= axes.MOST_TICKS


def test_only_positive_values_over_a_wide_range_ask_for_a_logarithmic_axis():
    assert axes.wants_log([2.0, 119.0])
    assert not axes.wants_log([2.0, 4.0])
    assert not axes.wants_log([0.0, 119.0])


@pytest.mark.parametrize("centres", [(50.0, 50.0, 51.0), (0.0, 99.0, 100.0), (100.0, 100.0, 100.0), (5.0, 50.0, 20.0)])
def test_names_are_moved_apart_and_stay_inside(centres):
    sizes = (12.0, 24.0, 12.0)
    moved = axes.spread_out(centres, sizes=sizes, low=0.0, high=100.0)
    spans = sorted((place - size / 2, place + size / 2) for place, size in zip(moved, sizes, strict=True))
    assert spans[0][0] >= 0
    assert spans[-1][1] <= 100 + 1e-9
    assert all(first[1] <= second[0] + 1e-9 for first, second in itertools.pairwise(spans))


def test_names_with_room_stay_where_they_are():
    assert axes.spread_out([80.0, 20.0], sizes=[12.0, 12.0], low=0.0, high=100.0) == [80.0, 20.0]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("digits_d2o_f", ["digits_d2o_f"]),
        ("digits_edm, 35 evaluations", ["digits_edm, 35", "evaluations"]),
        ("cifar10_d2o_gamma_1e-4", ["cifar10_d2o_", "gamma_1e-4"]),
        ("indivisiblelongname", ["indivisiblelongname"]),
    ],
)
def test_long_names_are_broken_and_never_cut(name, rows):
    assert broken(name, letters=16) == rows


CHART = Chart(
    title="FD <lower> & better",
    x_label="images seen",
    lines=(
        Line(name="a<b", points=((10_000.0, 8.0), (40_000.0, 2.0)), colour=2, marked=True),
        Line(name="second", points=((10_000.0, 7.0), (40_000.0, 2.0)), colour=9),
    ),
    levels=(Level(name="teacher", value=119.0, colour=0),),
)


def test_a_chart_is_well_formed_and_says_what_it_shows():
    svg = draw(CHART)
    shown = texts(svg)
    assert shown[0] == "FD <lower> & better (log scale)"
    assert {"images seen", "a<b", "second", "teacher", "0", "10k", "40k", "100"} <= set(shown)
    root = ElementTree.fromstring(svg)
    assert root.findtext("title") == (
        "FD <lower> & better over images seen: a<b ends at 2.000, second ends at 2.000, teacher is 119.0"
    )
    assert draw(CHART) == svg


def test_everything_drawn_stays_inside_the_chart():
    root = ElementTree.fromstring(draw(CHART))
    width, height = (float(number) for number in root.get("viewBox").split()[2:])
    for path in root.iter("path"):
        numbers = [float(number) for number in path.get("d").replace("M", "").replace("L", "").split()]
        assert all(0 <= x <= width for x in numbers[::2])
        assert all(0 <= y <= height for y in numbers[1::2])


def test_marked_lines_have_a_point_for_each_value():
    assert len(list(ElementTree.fromstring(draw(CHART)).iter("circle"))) == 2


def test_many_names_make_a_chart_higher():
    lines = tuple(Line(name=f"run {index}", points=((1.0, 1.0), (2.0, 1.0)), colour=index) for index in range(40))
    root = ElementTree.fromstring(draw(Chart(title="t", x_label="x", lines=lines)))
    heights = sorted(
        float(each.find("tspan").get("y")) for each in root.iter("text") if each.get("class")[:5] == "label"
    )
    assert all(second - first >= 12 for first, second in itertools.pairwise(heights))
    assert heights[-1] < float(root.get("viewBox").split()[3])


def test_the_second_round_of_colours_is_dashed():
    assert (colour_class(3), colour_class(11)) == ("c3", "c3 again")
