import itertools
import xml.etree.ElementTree as ElementTree

import pytest

from onestep.report.scatter import Point, Scatter, draw_points

CHART = Scatter(
    title="FD <lower>",
    x_label="evaluations",
    points=(
        Point(name="teacher", x=35, y=2.0, colour=0, reach=(1.9, 2.2)),
        Point(name="teacher", x=35, y=1.98, colour=0, hollow=True, named=False),
        Point(name="a<b", x=1, y=1.6, colour=1),
        Point(name="other", x=1, y=1.6, colour=9, hollow=True),
        Point(name="worse", x=1, y=119.0, colour=2),
    ),
)


def circles(svg, kind):
    found = [each for each in ElementTree.fromstring(svg).iter("circle") if each.get("class").split()[0] == kind]
    return [(float(each.get("cx")), float(each.get("cy"))) for each in found]


def labels(svg):
    """Return the names of a chart with the places where they begin."""
    found = (each for each in ElementTree.fromstring(svg).iter("text") if each.get("class").startswith("label"))
    spans = [list(each.iter("tspan")) for each in found]
    return {" ".join(s.text for s in each): (float(each[0].get("x")), float(each[0].get("y"))) for each in spans}


def test_a_chart_says_what_it_shows():
    svg = draw_points(CHART)
    root = ElementTree.fromstring(svg)
    assert root.findtext("title") == (
        "FD <lower> over evaluations: teacher 2.000 at 35, teacher published 1.980 at 35, a<b 1.600 at 1, "
        "other published 1.600 at 1, worse 119.0 at 1"
    )
    assert {"FD <lower> (log scale)", "evaluations (log scale)"} <= {"".join(e.itertext()) for e in root.iter("text")}
    assert draw_points(CHART) == svg


def test_ours_are_filled_published_ones_hollow_and_below():
    svg = draw_points(CHART)
    assert (len(circles(svg, "mark")), len(circles(svg, "hollow"))) == (3, 2)
    assert svg.rindex('class="hollow') < svg.index('class="mark')


def test_equal_factors_of_evaluations_take_equal_lengths():
    points = tuple(Point(name="", x=x, y=1.0 + x, colour=0) for x in (1, 10, 100))
    (first, _), (second, _), (third, _) = circles(draw_points(Scatter(title="t", x_label="x", points=points)), "mark")
    assert second - first == pytest.approx(third - second, abs=0.11)


def test_a_bar_reaches_from_the_least_to_the_greatest():
    (bar,) = (e for e in ElementTree.fromstring(draw_points(CHART)).iter("line") if e.get("class").startswith("reach"))
    x, y = circles(draw_points(CHART), "mark")[0]
    assert float(bar.get("x1")) == x
    assert float(bar.get("y2")) < y < float(bar.get("y1"))


def test_each_name_stands_right_of_its_column_apart_from_the_others_and_once():
    svg = draw_points(CHART)
    found = labels(svg)
    assert sorted(found) == ["a<b", "other", "teacher", "worse"]
    left, right = circles(svg, "mark")[1][0], circles(svg, "mark")[0][0]
    assert left < found["a<b"][0] == found["other"][0] == found["worse"][0] < right < found["teacher"][0]
    heights = sorted(found[name][1] for name in ("a<b", "other", "worse"))
    assert all(second - first >= 12 for first, second in itertools.pairwise(heights))


def test_names_that_would_run_into_the_next_column_stand_behind_it():
    points = [Point(name="a name with many letters", x=x, y=float(x), colour=0) for x in (35, 40, 511)]
    svg = draw_points(Scatter(title="t", x_label="x", points=tuple(points)))
    starts = {float(e.get("x")) for e in ElementTree.fromstring(svg).iter("tspan") if e.get("x")}
    places = [x for x, _ in circles(svg, "mark")]
    assert len(starts) == 2
    assert places[1] < min(starts) < places[2] < max(starts)


def test_one_point_and_many_stay_inside():
    for count in (1, 40):
        points = tuple(Point(name=f"run {index}", x=1, y=1.0, colour=index) for index in range(count))
        svg = draw_points(Scatter(title="t", x_label="x", points=points))
        width, height = (float(number) for number in ElementTree.fromstring(svg).get("viewBox").split()[2:])
        assert all(0 < x < width - 40 and 0 < y < height for x, y in labels(svg).values())
        assert len(labels(svg)) == count
