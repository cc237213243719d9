import dataclasses

import pytest
from results_tree import other_method, row

from onestep.report.claim import origins, state_claim
from onestep.report.table import Table

ORIGIN = {"d2o": "edm", "d2o_f": "edm"}


def table(*, many, before, tuned, direction="lower", std=0.1):
    """Return a table of a network with 35 evaluations, with 1, and fine-tuned from it; numbers are means."""

    def number(mean):
        return None if mean is None else (mean, std, 3, False)

    rows = [
        row("edm", "heun", fd=number(many), recall=None, nfe=35),
        row("edm", "one_step", fd=number(before), recall=None),
        *(row(name, "one_step", fd=number(mean), recall=None) for name, mean in tuned.items()),
    ]
    return Table(
        name="small",
        title="Small",
        dataset="digits",
        seeds=("0-9", "10-19", "20-29"),
        show="mean",
        columns={"fd": "fd.frechet"},
        directions={"fd": direction},
        rows=tuple(rows),
    )


def claim(**numbers):
    return state_claim(table(**numbers), column="fd", origin=ORIGIN)


def test_the_claim_holds_where_few_evaluations_score_better():
    found = claim(many=3.1, before=119.0, tuned={"d2o": 1.9, "d2o_f": 2.3})
    assert found.verdict == "holds"
    assert found.headline == "One network evaluation does the work of 35"
    sentences = [sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in found.sentences]
    assert sentences == [
        "edm scores FD 3.10 \u00b1 0.10 with 35 network evaluations an image and 119.00 \u00b1 0.10 with 1 "
        "(lower is better).",
        "Fine-tuned from it, d2o scores 1.90 \u00b1 0.10 with 1: better than with 35.",
        "d2o_f scores 2.30 \u00b1 0.10 with 1: better than with 35.",
    ]
    assert [(each.run, each.nfe) for each in found.rows] == [("edm", 35), ("edm", 1), ("d2o", 1), ("d2o_f", 1)]


def test_the_claim_fails_where_fine_tuning_does_not_reach_the_teacher():
    found = claim(many=3.1, before=119.0, tuned={"d2o": 31.0, "d2o_f": 62.0})
    assert found.verdict == "fails"
    assert found.headline == "One network evaluation does not replace 35 here"
    assert "worse than with 35 by a factor of 10" in found.sentences[1]
    assert "worse than with 35 by a factor of 20" in found.sentences[2]


def test_up_to_twice_as_bad_comes_close():
    assert claim(many=3.1, before=119.0, tuned={"d2o": 6.0}).headline == "One network evaluation comes close to 35"
    assert claim(many=3.1, before=119.0, tuned={"d2o": 6.3}).verdict == "fails"


def test_a_difference_within_the_spread_of_the_seeds_is_none():
    found = claim(many=3.1, before=119.0, tuned={"d2o": 3.2})
    assert found.verdict == "holds"
    assert "as good as with 35, within the spread of the seeds" in found.sentences[1]


def test_the_headline_tells_when_only_some_rows_reach_it():
    found = claim(many=3.1, before=119.0, tuned={"d2o": 1.9, "d2o_f": 60.0})
    assert found.verdict == "holds"
    assert found.headline == "One network evaluation does the work of 35, but not in every run"


def test_fine_tuning_that_gained_nothing_supports_nothing():
    found = claim(many=3.1, before=2.0, tuned={"d2o": 2.5})
    assert found.verdict == "fails"
    assert "no better than before" in found.sentences[1]


@pytest.mark.parametrize(("score", "verdict"), [(9.5, "holds"), (5.0, "close"), (2.0, "fails")])
def test_directions_are_respected(score, verdict):
    found = claim(many=9.0, before=1.0, tuned={"d2o": score}, direction="higher")
    assert found.verdict == verdict
    assert "(higher is better)" in found.sentences[0]


def test_a_ratio_with_a_number_below_zero_is_not_formed():
    found = claim(many=-0.5, before=9.0, tuned={"d2o": 0.4})
    assert found.verdict == "fails"
    assert "factor" not in " ".join(found.sentences)


def test_no_verdict_without_numbers():
    found = claim(many=None, before=119.0, tuned={"d2o": 1.9})
    assert (found.verdict, found.headline) == ("open", "Small: no verdict")
    assert found.sentences == ("FD is not measured for edm (heun).",)
    assert claim(many=3.0, before=119.0, tuned={"d2o": None}).verdict == "open"


def test_rows_without_numbers_are_told_beside_the_verdict():
    found = claim(many=3.1, before=None, tuned={"d2o": 1.9, "d2o_f": None})
    assert found.verdict == "holds"
    assert found.sentences[-1] == "Fine-tuned rows not measured yet: 1."
    assert " and " not in found.sentences[0]


def test_no_verdict_on_rows_that_do_not_stem_from_each_other():
    shown = table(many=3.1, before=119.0, tuned={"d2o": 1.9})
    assert state_claim(shown, column="fd", origin={}).verdict == "open"
    assert state_claim(shown, column="fd", origin={"other": "edm"}).verdict == "open"


def test_only_the_best_of_many_rows_are_named_and_all_are_counted():
    tuned = {f"d2o_{index}": 9.0 - index for index in range(6)} | {"d2o_f": 3.0}
    shown = table(many=4.2, before=119.0, tuned=tuned)
    found = state_claim(shown, column="fd", origin=dict.fromkeys(tuned, "edm"))
    assert [each.label for each in found.rows] == ["edm", "edm", "d2o_5", "d2o_f"]
    assert found.sentences[-1] == "2 of 7 fine-tuned rows support the headline; the table shows them all."


def test_frozen_weights_are_named():
    shown = table(many=3.1, before=119.0, tuned={"d2o_f": 2.3})
    frozen = dataclasses.replace(shown.rows[-1], frozen_share=0.79)
    shown = dataclasses.replace(shown, rows=(*shown.rows[:-1], frozen))
    assert (
        "d2o_f, with 79 % of its weights frozen, scores" in state_claim(shown, column="fd", origin=ORIGIN).sentences[1]
    )


def test_origins_follow_the_teachers_run_or_name():
    config = {
        "teachers": {"ours": {"run": "edm"}, "theirs": {"pickle": "a.pkl"}},
        "runs": {"edm": {}, "d2o": {"teacher": "ours"}, "other": {"teacher": "theirs"}},
    }
    assert origins(config) == {"d2o": "edm", "other": "theirs"}


def test_of_several_datasets_the_claim_names_the_one_it_is_of():
    shown = dataclasses.replace(table(many=3.1, before=119.0, tuned={"d2o": 1.9}), dataset=None)
    assert state_claim(shown, column="fd", origin=ORIGIN).sentences[-1].startswith("This is of digits alone;")


def test_another_methods_published_numbers_are_no_part_of_the_claim():
    shown = table(many=3.1, before=119.0, tuned={"d2o": 1.9})
    more = dataclasses.replace(shown, rows=(*shown.rows, other_method("SiD", nfe=None)))
    assert state_claim(more, column="fd", origin=ORIGIN) == state_claim(shown, column="fd", origin=ORIGIN)
