"""Files that are no config are refused in one line with the place."""

from __future__ import annotations

import pytest

from onestep.config import ConfigError, read_experiment

SECTIONS = (
    "inputs, mirrors, datasets, teachers, backbones, class_embeddings, features, runs, samplers, metrics, tables, "
    "studies, launch, watch, container, storage, rerun"
)
# The text of a file; where the problem is; what the message contains.
NO_CONFIG = {
    "nothing": ("", "", ("nothing", SECTIONS)),
    "a list": ("- runs\n", "", ("a list", SECTIONS)),
    "an open bracket": ("runs:\n  a: {seed: 1\n", "line 3, column 1: not YAML: ", ("',' or '}'",)),
    "two colons": ("runs: a: b\n", "line 1, column 8: not YAML: ", ("mapping values",)),
    "a Python object": (
        "runs:\n  a: !!python/name:os.system\n",
        "runs.a: line 2: ",
        ("python/name:os.system", "tag"),
    ),
    "a bell": ("runs: \x07\n", "not YAML: ", ("#x0007", "position 6")),
    "a key twice": ("runs:\n  a:\n    seed: 1\n    batch: 2\n    seed: 3\n", "runs.a.seed: ", ("lines 3 and 5",)),
    "a section twice": ("runs: {}\nmetrics: {}\nruns: {}\n", "runs: ", ("lines 1 and 3",)),
    "a key twice in what is merged": (
        "runs:\n  a: &a {seed: 1, seed: 2}\n  b: {<<: *a, seed: 3}\n",
        "runs.a.seed: ",
        ("lines 2 and 2",),
    ),
    "a key that is no text": ("rerun: {yes: 1}\n", "rerun: line 1: ", ("'yes'",)),
    "an alias to itself": ("runs: &a [*a]\n", "runs[0]: line 1: ", ("alias",)),
    "a number merged": ("runs: {<<: 3}\n", "line 1, column 12: not YAML: ", ("merging",)),
}


@pytest.mark.parametrize(("text", "place", "parts"), NO_CONFIG.values(), ids=NO_CONFIG.keys())
def test_a_file_that_is_no_config_is_refused_in_one_line(text, place, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_experiment("config.yaml")
    (line,) = caught.value.problems
    assert line.startswith(f"config.yaml: {place}") and "\n" not in line
    assert all(part in line for part in parts)


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("title: Fr\xe9chet\n".encode("latin-1"))
    for path, part in (
        (tmp_path / "none.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (latin, "UTF-8 text (byte 9)"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_experiment(path)
        (line,) = caught.value.problems
        assert line.startswith(f"{path}: ") and part in line


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "a: " + "[" * 900 + "]" * 900])
def test_levels_without_end_are_refused_before_they_are_composed(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_experiment(tmp_path / "config.yaml")
    assert "40 levels" in str(refused.value)
