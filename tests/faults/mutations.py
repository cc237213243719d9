"""Seeded mutations of demo/config.yaml: of its values, and of its text."""

from __future__ import annotations

import json
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

_DEMO = Path(__file__).parents[2] / "demo" / "config.yaml"
SECONDS = 2  # of this process's own time: the machine may be slow

# Values of any type in the place of any other.
_VALUES: list[Any] = [
    None, True, False, "", " ", "x", [], {}, [[]], {"a": {}}, 0, -1, 1, 2, 17, 31, -0.0, 0.5, 1e-300, 1e300, -1e300,
    float("nan"), float("inf"), -float("inf"), 2**31, 2**63, 2**64, 10**18, 10**400, -(10**30), "1", "1e3", "nan",
    "0-99999999999999999999", "9-0", "0-", "-1-5", "../../../etc/passwd", "/dev/zero", "a b", "$(touch PWNED)", "`id`",
    "a;b", "x\ny", "x\ry", "x\ty", "x\x00y", "x\x1b[31my", "x\x7fy", "x\u2028y", "\ud800", "\u202ex", "é" * 300,
    "%s%n", "{}", "{wildcards}", "--help", "name:Class", "os:system", "x" * 100_000, ["x"] * 10_000,
    {"name": "d2o"}, {"name": None}, {"name": []}, {"name": "no_such"}, {1: 2}, {None: 1}, {True: 1}, [None], [[1, 2]],
]  # fmt: skip

# Texts of YAML in the place of a scalar: what its constructors take for something else, or choke on.
_TEXTS = [
    "2026-02-30", "2026-13-01", "2026-11-26", "2026-11-26 99:99:99", "1:30", "24:00:00", "190:20:30.15", "010", "0x1F",
    "0b101", "0o17", "1_000", "1__0", "+1", ".5", "5.", ".inf", "-.inf", ".nan", "1e5", "1e400", "~", "yes", "no", "on",
    "off", "y", "=", "<<", "!!int abc", "!!int ''", "!!float abc", "!!bool foo", "!!timestamp foo", "!!binary x",
    "!!binary ===", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!python/object/apply:os.system [id]",
    "!!python/name:os.system", "!unknown x", "!!null x", "!!str", "!!seq {}", "!!map []", "&a [*a]", "*nothing",
    "&a {a: *a}", "[", "]", "{", "}", "'", '"', "|", ">", "? a", "a: b: c", "- a", "%", "@", "`", "\t", '"\\x00"',
    '"\\ud800"', '"\\e[31m"', '"a\\rb"', '"a\\nb"', "9" * 20_000, "-" + "9" * 5_000, "0." + "0" * 20_000 + "1",
    "[" * 1_000 + "]" * 1_000, "{a: " * 1_000 + "1" + "}" * 1_000, "[" * 20_000, "1" + "_" * 20_000, "\x00", "\x07",
    "\x85", "\u2028", "\ufeff", "\udcff",
]  # fmt: skip


def _places(document: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value below the top."""
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in entries:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*above, key))


def _dumped(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _value(seeded: random.Random) -> str:
    """Put a value in the place of another, or take one out, or add one."""
    document = json.loads(json.dumps(yaml.safe_load(_DEMO.read_text())))
    for _ in range(seeded.choice((1, 1, 1, 2, 5))):
        *above, last = seeded.choice(list(_places(document)))
        parent = document
        for key in above:
            parent = parent[key]
        match seeded.randrange(6):
            case 0:
                del parent[last]
            case 1 if isinstance(parent, dict):
                parent[seeded.choice(("x", "x y", "", "x\ny", "name", "é", "../x", "x\x1by"))] = parent[last]
            case 2:
                # A value of another place of the same config.
                value = document
                for key in seeded.choice(list(_places(document))):
                    value = value[key]
                parent[last] = json.loads(json.dumps(value))
            case _:
                parent[last] = seeded.choice(_VALUES)
    try:
        return _dumped(document)
    except (ValueError, UnicodeError, yaml.YAMLError):
        return _text(seeded)


def _number(seeded: random.Random) -> str:
    """Put nonsense in the place of a number."""
    text = _DEMO.read_text()
    places = list(re.finditer(r"(?<=[ \[])[\d._]+(?:e-?\d+)?(?=[,\]}\n ])", text))
    place = seeded.choice(places)
    nonsense = [
        "0", "-1", "0.5", "1e300", "-1e300", "1e-320", ".nan", ".inf", "1e18", "17", "3", "1000000000000", "1.0e+12",
        str(2**64), "9" * 30, "true", "null", "'1'", "[]", "-0.0", "1.5", "7", "255", "1048576",
    ]  # fmt: skip
    return text[: place.start()] + seeded.choice(nonsense) + text[place.end() :]


def _text(seeded: random.Random) -> str:
    """Put a text of YAML in the place of a scalar."""
    text = _DEMO.read_text()
    places = list(re.finditer(r"(?<=: )[^\s{\[&*#'\"][^\s,}\]]*", text))
    place = seeded.choice(places)
    return text[: place.start()] + seeded.choice(_TEXTS) + text[place.end() :]


def _characters(seeded: random.Random) -> str:
    """Delete, double, swap or change characters and lines."""
    text = _DEMO.read_text()
    for _ in range(seeded.choice((1, 1, 2, 10))):
        start = seeded.randrange(len(text))
        end = min(len(text), start + seeded.choice((1, 1, 3, 40, 400)))
        inserted = seeded.choice(
            ("", text[start:end] * 2, chr(seeded.randrange(1, 0x2FFF)), " ", "\n", ":", "- ", "\t")
        )
        text = text[:start] + inserted + text[end:]
    return text


def _bomb(seeded: random.Random) -> str:
    """Add aliases of aliases, a very long list, many entries, or nested blocks."""
    text, levels, width = _DEMO.read_text(), seeded.randrange(2, 12), seeded.randrange(2, 12)
    key = seeded.choice(("runs", "extra", "tables", "mirrors", "inputs", "launch"))
    chain = ["a0: &a0 [x, x]"]
    chain += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    mapped = ["m0: &m0 {k: v}"]
    mapped += [f"m{n}: &m{n} {{{', '.join(f'k{i}: *m{n - 1}' for i in range(width))}}}" for n in range(1, levels)]
    many = "\n".join(f"  n{i}: {{a: 1}}" for i in range(seeded.choice((10, 1_000, 20_000))))
    merged = "\n".join(
        [f"z{n}: &z{n} {{<<: [{', '.join([f'*z{n - 1}'] * width if n else ['{}'])}]}}" for n in range(levels)]
    )
    nested = "".join(f"{' ' * n}k:\n" for n in range(seeded.choice((50, 500, 900))))
    return seeded.choice(
        (
            "\n".join([*chain, text]),
            "\n".join([*mapped, text, f"{key}: *m{levels - 1}"]),
            "\n".join([*chain, text.replace("mirrors: {}", f"mirrors: {{a: *a{levels - 1}}}")]),
            f"{text}\n{key}2:\n{many}\n",
            text.replace("mirrors: {}", f"mirrors:\n{many}"),
            f"{merged}\n{text}",
            f"{text}\n{nested}",
            text + "#" * seeded.choice((10, 10**6, 10**7)),
        )
    )


_KINDS: tuple[Callable[[random.Random], str], ...] = (_value, _value, _value, _number, _text, _characters, _bomb)


def mutation(seed: int) -> str:
    """Return one mutated config."""
    seeded = random.Random(seed)
    return _KINDS[seed % len(_KINDS)](seeded)


class _Late(BaseException):
    """The bound of a case has passed; no code catches it."""


def try_all(first: int, last: int, place: str) -> None:
    """Read mutations as config.yaml; write the counts of outcomes, and each seed of a wrong one, as JSON."""
    from onestep.config import ConfigError, read_experiment

    def late(*_: object) -> None:
        raise _Late

    read_experiment(_DEMO)  # imports what it needs: an import that is interrupted leaves a module in pieces
    signal.signal(signal.SIGPROF, late)
    counts: Counter[str] = Counter()
    wrong: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        for seed in range(first, last):
            path.write_bytes(mutation(seed).encode("utf-8", errors="surrogateescape"))
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            started = time.process_time()
            try:
                read_experiment(path)
                found = "accepted"
            except ConfigError as error:
                found = (
                    "refused" if str(path) in str(error) or len(str(error).splitlines()) == 1 else "refused at length"
                )
                if len(str(error)) > 100_000:
                    found = "refused at length"
            except _Late:
                found = f"no answer in {SECONDS} s"
            except BaseException as error:
                found = f"another exception: {type(error).__name__}"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            counts[found] += 1
            if found not in ("accepted", "refused"):
                wrong[seed] = f"{found} after {time.process_time() - started:.1f} s"
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    Path(place).write_text(json.dumps({"counts": counts, "wrong": wrong, "gib": round(used, 2)}))


if __name__ == "__main__":
    try_all(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
