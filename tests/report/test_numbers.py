import pytest

from onestep.report import numbers


@pytest.mark.parametrize(
    ("value", "std", "text"),
    [
        (2.3104, 0.0432, ("2.31", "0.04")),
        (2.3104, 0.0968, ("2.3", "0.1")),  # the deviation rounds up to one digit more
        (119.43, 1.78, ("119.4", "1.8")),
        (119.43, 2.78, ("119", "3")),
        (16.897, 0.96, ("17", "1")),
        (1234.5, 56.7, ("1234", "57")),
        (0.03649, 0.00087, ("0.0365", "0.0009")),
        (8.7946, 0.0, ("8.795", "0")),
        (2.0, 3e-12, ("2.000000", "0.000000")),
        (119.3742, None, ("119.4", None)),
        (0.98123, None, ("0.9812", None)),
        (0.0, None, ("0", None)),
        (-0.000012, None, ("-1.200e-05", None)),
    ],
)
def test_a_mean_has_the_digits_that_its_spread_supports(value, std, text):
    assert numbers.measured(value, std) == text


@pytest.mark.parametrize(
    ("ours", "theirs", "written", "difference"),
    [
        (1.563, 1.54, "1.56", "+0.02"),
        (1.2, 1.54, "1.20", "\N{MINUS SIGN}0.34"),
        (1.56, 1.5, "1.56", "+0.06"),
        (1.5402, 1.54, "1.540", "\N{PLUS-MINUS SIGN}0.000"),
        (12.0, 1.54, "12", "+10"),
        (3e-5, 1e-5, "3.000e-05", "+0.00002000"),
    ],
)
def test_a_difference_has_the_digits_of_our_number(ours, theirs, written, difference):
    assert numbers.difference(ours, theirs, ours_as_text=written) == difference


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 %"), (0.002, "< 1 %"), (0.7903, "79 %"), (0.9987, "> 99 %"), (1.0, "100 %")],
)
def test_only_nothing_and_all_are_written_as_such(value, text):
    assert numbers.share(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (130.2, "2 min 10 s"), (11_100, "3 h 05 min")],
)
def test_durations_are_written_for_people(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (12_500, "12.5k"), (40_000, "40k"), (3e6, "3M"), (0.02, "0.02")])
def test_ticks_are_short(value, text):
    assert numbers.short_count(value) == text


def test_abbreviations_stand_in_capitals():
    assert [numbers.heading(name) for name in ("fd", "precision", "clip_fd")] == ["FD", "precision", "clip fd"]
