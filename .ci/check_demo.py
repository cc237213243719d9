"""Check the demo's table against the paper's claim: one line for each violation; exit code 1 where there is one."""

import json
import sys

TENTH, TWICE = 0.1, 2.0


def violations(table):
    """Return one line for each expectation that the measured Frechet distances do not meet."""
    fd = {(row["run"], row["sampler"]): row["metrics"]["fd"] for row in table}
    teacher, teacher_in_one = fd["digits_edm", "heun"], fd["digits_edm", "one_step"]
    full, frozen = fd["digits_d2o", "one_step"], fd["digits_d2o_f", "one_step"]
    expected = [
        (
            frozen <= TENTH * teacher_in_one,
            f"D2O-F {frozen:.3g} is above a tenth of the teacher's {teacher_in_one:.3g} with NFE 1",
        ),
        (frozen <= TWICE * teacher, f"D2O-F {frozen:.3g} is above twice the teacher's {teacher:.3g} with NFE 35"),
        (full <= frozen, f"D2O {full:.3g} is worse than D2O-F {frozen:.3g}"),
    ]
    return [line for met, line in expected if not met]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        found = violations(json.load(file))
    print("\n".join(found) or "demo: as expected")
    sys.exit(bool(found))
