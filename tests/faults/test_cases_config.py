"""Values of config.yaml that YAML or sbatch reads as something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forks import Forks

from onestep.config import ConfigError, read_experiment
from tiny import REPOSITORY

_DEMO = (REPOSITORY / "demo" / "config.yaml").read_text()


def _read(folder: Path, *changes: tuple[str, str]) -> Any:
    text = _DEMO
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    (folder / "config.yaml").write_text(text)
    return read_experiment(folder / "config.yaml")


def _is_refused(folder: Path, *changes: tuple[str, str]) -> bool:
    try:
        _read(folder, *changes)
    except ConfigError as error:
        return "config.yaml" in str(error)
    return False


def test_the_demo_is_accepted(tmp_path: Path) -> None:
    assert set(_read(tmp_path).runs) == {"digits_backbone", "digits_metric", "digits_edm", "digits_d2o", "digits_d2o_f"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hours: 1.0", "hours: 1:30"),
        ("hours: 1.0", "hours: 24:00:00"),
        ("poll_seconds: 30.0", "poll_seconds: 1:00:00"),
        ("grace_seconds: 180.0", "grace_seconds: 3:00"),
        ("state_seconds: 300.0", "state_seconds: 5:00.5"),
        ("seed: 1\n", "seed: 010\n"),
        ("seed: 1\n", "seed: 0o17\n"),
        ("images: 30_000", "images: 010_000"),
        ("sbatch: {}", "sbatch: {time: 24:00:00}"),
        ("title: Digits, 16x16", "title: 2026-11-26"),
        ("title: Digits, 16x16", "title: 2026-02-30"),
    ],
)
def test_numbers_that_yaml_reads_as_others_are_refused(tmp_path: Path, key: str, value: str) -> None:
    assert _is_refused(tmp_path, (key, value))


@pytest.mark.parametrize(
    "options",
    [
        "array: 0-3", "job-name: mine", "job_name: mine", "output: x.log", "error: x.log", "dependency: 'afterok:1'",
        "wrap: id", "requeue: true", "no-requeue: true", "open-mode: truncate", "export: NONE", "parsable: true",
        "'--exclude': n1", "'-w': n1", "'exclude=n1 --array': x", "wait: true", "test-only: true",
        "clusters: 'a,b'", "clusters: all", "clusters: true", "clusters: 7", "clusters: 'a b'",
        "'a b': c", "'x\ny': 1", 'comment: "x\\n#SBATCH --array=0-9"',
    ],
)  # fmt: skip
def test_sbatch_options_that_break_the_launcher_are_refused(tmp_path: Path, options: str) -> None:
    assert _is_refused(tmp_path, ("sbatch: {}", f"sbatch: {{{options}}}"))


@pytest.mark.parametrize(
    "options", ["exclusive: null", "exclusive: false", "dependency: ~", "mem: no, reservation: null"]
)
def test_sbatch_options_without_a_value_are_not_given(tmp_path: Path, options: str) -> None:
    change = ("sbatch: {}", f"sbatch: {{{options}}}")
    assert _is_refused(tmp_path, change) or not _read(tmp_path, change).launch.sbatch


@pytest.mark.parametrize("value", ["gpu:a100", "'a100:4'", "'gpu:a100:4'", "'a 100'", '"a\\nb"'])
def test_types_of_gpus_have_no_prefix_and_no_count(tmp_path: Path, value: str) -> None:
    assert _is_refused(tmp_path, ("gpus: none", "gpus: gres"), ("gpu_type: null", f"gpu_type: {value}"))


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "python", "container"])
@pytest.mark.parametrize("value", ['"x\\n#SBATCH --wrap=id"', '"x\\rb"', '"x\\0y"', '"x\\e[31my"'], ids=range(4))
def test_control_characters_in_names_of_a_site_are_refused(tmp_path: Path, key: str, value: str) -> None:
    assert _is_refused(tmp_path, (f"{key}: null", f"{key}: {value}"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("freeze: []", "freeze: [nothing_is_called_so]"),
        ("r1_gamma: 1.0e-4", "r1_gamma: -1.0"),
        ("batch: 64\n    images: 30_000", "batch: 64\n    images: 31"),
        ("input: digits, resolution: 16", "input: digits, resolution: 17"),
        ("name: convnet, width: 16", "name: convnet, width: 0"),
        ("name: convnet, width: 16", "name: convnet, width: 10_000_000"),
        ("num_blocks: 1", "num_blocks: -1"),
        ("dropout: 0.0\n      embedding", "dropout: 1.0\n      embedding"),
        ("model_channels: 16", "model_channels: 0"),
        ("channel_mult: [1, 2]", "channel_mult: []"),
        ("resample_filter: [1, 1]", "resample_filter: []"),
        ("sigma_data: 0.5", "sigma_data: -0.5"),
        ("p_std: 1.2", "p_std: -1.0"),
        ("resolution: 16\n      batch_norm", "resolution: 17\n      batch_norm"),
        ("channels: 16\n", "channels: 0\n"),
        ("neighbours: 3", "neighbours: 2000"),
        ("splits: 10", "splits: 2000"),
        ("steps: 18", "steps: 1_000_000_000"),
        ("half_life: 2_000", "half_life: 1.0e-300"),
        ("seed: 1\n", f"seed: {2**64}\n"),
        ("images: 30_000", f"images: {10**18}"),
        ("seeds: [0-1999,", "seeds: [0-99999999999999999999,"),
        ("hours: 1.0", "hours: 1.0e+300"),
        ("poll_seconds: 30.0", "poll_seconds: 1.0e-300"),
        ("memory_gib: null", "memory_gib: 1.0e+30"),
        ("lr: 2.0e-3", "lr: 1.0e+300"),
        ("sigma: 80.0\n", "sigma: 1.0e+300\n"),
        ("path: sklearn/", "path: ../../../etc/"),
    ],
)
def test_values_without_meaning_are_refused_by_the_config(tmp_path: Path, old: str, new: str) -> None:
    assert _is_refused(tmp_path, (old, new))


@pytest.mark.parametrize("first", range(0, 84, 7))
def test_some_mutations_are_read_or_refused_in_one_line(forks: Forks, tmp_path: Path, first: int) -> None:
    place = tmp_path / "found.json"
    ended = forks.call("faults.mutations:try_all", first, first + 7, str(place), folder=tmp_path, limit=600)
    assert ended.code == 0, ended
    assert json.loads(place.read_text())["wrong"] == {}
