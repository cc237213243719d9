"""Does the demo's table tell the paper's story? Exit code 0 if so; each broken promise is a line."""

import json
import sys

TENTH, TWICE = 0.1, 2.0


def broken_promises(table):
    """Return one line for each promise the measured Frechet distances break."""
    fd = {(row["run"], row["sampler"]): row["metrics"]["fd"] for row in table}
    teacher, teacher_in_one = fd["digits_edm", "heun"], fd["digits_edm", "one_step"]
    full, frozen = fd["digits_d2o", "one_step"], fd["digits_d2o_f", "one_step"]
    promises = [
        (
            frozen <= TENTH * teacher_in_one,
            f"D2O-F {frozen:.3g} is above a tenth of the teacher's {teacher_in_one:.3g} in one step",
        ),
        (frozen <= TWICE * teacher, f"D2O-F {frozen:.3g} is above twice the teacher's {teacher:.3g} in 35 evaluations"),
        (full <= frozen, f"D2O {full:.3g} is worse than D2O-F {frozen:.3g}"),
    ]
    return [line for kept, line in promises if not kept]


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        broken = broken_promises(json.load(file))
    print("\n".join(broken) or "demo: every promise kept")
    sys.exit(bool(broken))
