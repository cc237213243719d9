"""A finished pipeline of seconds, made by the verbs themselves, and the stages that read its files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tiny import tiny_config, write_config

SEEDS = "0-31"
DATA, CARD = "results/data/digits.zip", "results/data/digits.json"
TEACHER, EMBEDDINGS = "results/teachers/digits.safetensors", "results/class_embeddings/digits.safetensors"
CIFAR, PICKLE = "results/inputs/outside/cifar_a.tar.gz", "results/inputs/outside/edm_a.pkl"
RUN, SUMMARY = "results/runs/{}/run.yaml", "results/runs/{}/summary.json"
EDM, D2O = "results/runs/digits_edm/snapshots/64.safetensors", "results/runs/digits_d2o/snapshots/{}.safetensors"
BACKBONE = "results/runs/digits_backbone/snapshots/64.safetensors"
METRIC = "results/runs/digits_metric/snapshots/64.safetensors"
# Of the records and summaries of a training: what is of the moment, not of the result.
_OF_THE_MOMENT = ("time", "images_per_second", "memory_mib", "seconds", "restarts", "content_sha256")


def attacked_config() -> dict[str, Any]:
    """Return the tiny config with a conditional teacher, class embeddings, a selection, and a study."""
    config = tiny_config()
    runs = {name: config["runs"][name] for name in ("digits_backbone", "digits_metric", "digits_edm", "digits_d2o")}
    for run in runs.values():
        run |= {"batch": 16, "images": 64, "snapshot_every": 32 if "discriminator" in run else 64}
    runs["digits_edm"]["conditional"] = runs["digits_d2o"]["conditional"] = True
    runs["digits_d2o"]["discriminator"]["class_embeddings"] = "digits"
    one_step = [{"run": name, "sampler": "one_step", "label": name} for name in ("digits_edm", "digits_d2o")]
    table = {
        "title": "Digits",
        "dataset": "digits",
        "seeds": [SEEDS],
        "columns": {"fd": "fd.frechet", "recall": "pr.recall"},
        "rows": one_step,
        "curves": {"column": "fd", "seeds": SEEDS},
    }
    study = {
        "name": "images_seen",
        "runs": ["digits_d2o"],
        "sampler": "one_step",
        "metric": "fd",
        "value": "frechet",
        "seeds": [SEEDS],
        "control": "digits_edm@64",
    }
    return config | {
        "class_embeddings": {"digits": {"backbone": "digits", "dataset": "digits", "resolution": 16}},
        "runs": runs,
        "metrics": {name: config["metrics"][name] for name in ("fd", "pr")},
        "tables": {"digits": table, "chosen": {**table, "select": "best_fd", "rows": one_step[1:]}},
        "studies": {"seen": study},
    }


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One verb on the pipeline's files.

    Attributes:
        words: Its command line.
        makes: Files or folders that it writes, which are absent before.
        reads: The files it reads: by kind, the form, the file, and another one of its kind.
        shows: Whether it shows evidence: it may say that a file is missing or damaged, and end well.
        limit: Seconds it may take.
    """

    name: str
    words: Sequence[str]
    makes: Sequence[str]
    reads: Mapping[str, tuple[str, str, str]]
    shows: bool = False
    limit: float = 20.0


@dataclass(frozen=True)
class Finished:
    """A working directory with all files, and its stages."""

    work: Path
    stages: Sequence[Stage] = field(default_factory=tuple)

    def copy(self, folder: Path) -> Path:
        """Return a copy whose files are links, but for those of trainings, which are appended to."""

        def linked(source: str, target: str) -> None:
            top = Path(source).relative_to(self.work).parts[0]
            (shutil.copy2 if top in ("state", "half", "earlier") else os.link)(source, target)

        shutil.copytree(self.work, folder, symlinks=True, copy_function=linked)
        return folder


def outcome(folder: Path, makes: Sequence[str]) -> dict[str, str]:
    """Return the digest of each file that a stage wrote; of records without what is of the moment."""
    found = {}
    for made in makes:
        place = folder / made
        paths = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        for path in paths:
            if path.exists() and path.name not in ("lock", "lock.owner"):
                found[str(path.relative_to(folder))] = _digest(path)
    return found


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.name in ("log.jsonl", "summary.json"):
        try:
            lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
            kept = [{k: v for k, v in json.loads(line).items() if k not in _OF_THE_MOMENT} for line in lines]
            for record in kept:
                if isinstance(record.get("files"), dict):
                    record["files"].pop("log.jsonl", None)
            content = json.dumps(kept).encode()
        except (ValueError, AttributeError, RecursionError):
            pass
    return hashlib.sha256(content).hexdigest()


def stop_half_way(words: Sequence[str], steps: int) -> None:
    """Train the run of a command line for some steps; its state is saved."""
    from onestep.fingerprint import Fingerprints
    from onestep.training.assignment import Assignment, Inputs
    from onestep.training.run import carry_out

    options = dict(zip(words[1::2], words[2::2], strict=True))
    backbones = [options["--backbone"].partition("=")[::2]] if "--backbone" in options else []
    inputs = Inputs(
        run=Path(options["--run"]),
        data=Path(options["--data"]),
        teacher=Path(options["--teacher"]),
        backbones={name: Path(path) for name, path in backbones},
        class_embeddings=Path(options["--class-embeddings"]),
    )
    assignment = Assignment(inputs=inputs, state=Path(options["--state"]), code_in_spec=False, state_seconds=0.0)
    code = Fingerprints().of_training(assignment.document())
    left = iter(range(steps - 1))
    finished = carry_out(
        assignment, folder=assignment.folder(code), code=code, output=None, stop=lambda: next(left, None) is None
    )
    assert not finished


def write_outside_files(work: str) -> None:
    """Write what comes from outside, each twice: a pickle of EDM's format and CIFAR-10's archive."""
    import torch

    from checkpoints import edm_writer
    from data import cifar_files
    from onestep.networks import build_denoiser

    shape = {"img_resolution": 8, "img_channels": 1, "label_dim": 0, "model_channels": 16, "channel_mult": [1]}
    shape |= {"num_blocks": 1, "attn_resolutions": [], "use_fp16": False, "model_type": "SongUNet"}
    for seed, letter in enumerate("ab"):
        torch.manual_seed(seed)
        state = build_denoiser({**shape, "preconditioning": "edm"}).state_dict()
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        Path(work, f"edm_{letter}.pkl").write_bytes(edm_writer.dump({"ema": edm_writer.network(arrays, shape)}))
        batches = {
            f"data_batch_{n}": cifar_files.batch(*cifar_files.pictures(4, seed=10 * seed + n)) for n in range(1, 6)
        }
        cifar_files.write_tar(Path(work, f"cifar_{letter}.tar.gz"), {"batches.meta": b"\x80\x02}.", **batches})


def _write_other_archive(source: Path, target: Path) -> None:
    """Write an archive of the same pictures in another order: another dataset of the same form."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        pictures = sorted(name for name in old.namelist() if name.endswith(".png"))
        for name, content in zip(pictures, reversed(pictures), strict=True):
            new.writestr(name, old.read(content))
        labels = json.loads(old.read("dataset.json"))["labels"]
        new.writestr("dataset.json", json.dumps({"labels": [[name, 9 - label] for name, label in labels]}))


class Builder:
    """Runs the pipeline once, stage by stage, and knows the command line of each."""

    def __init__(self, forks: Any, work: Path) -> None:
        from onestep.plan import Plan

        self.forks, self.work, self.config = forks, work, attacked_config()
        self.plan = Plan.read(write_config(work, self.config))
        self.stages: list[Stage] = []

    def run(self, *words: object) -> list[str]:
        """Run a verb, which must end well."""
        command = [str(word) for word in words]
        ended = self.forks.onestep(*command, folder=self.work, limit=300)
        assert ended.code == 0, f"onestep {' '.join(command)}: {ended}"
        return command

    def stage(self, name: str, words: Sequence[object], *, makes: Sequence[str], **more: Any) -> None:
        """Run a verb and keep it as a stage; with `shows`, `limit`, and the files it reads by kind as `reads`."""
        self.stages.append(Stage(name=name, words=self.run(*words), makes=makes, **more))

    def build(self) -> Finished:
        """Run everything."""
        self._inputs()
        self._trainings()
        self._numbers()
        self._pages()
        return Finished(self.work, tuple(self.stages))

    def build_from_outside(self) -> Finished:
        """Run what reads files from outside alone, and sample from the network among them."""
        self._inputs()
        words = ["sample", "--weights", "teachers/outside.safetensors", "--sampler", '{"name": "one_step"}']
        self.run("convert", "--source", "edm_b.pkl", "--output", "other_teacher.safetensors")
        reads = {"teacher": ("tensors", "teachers/outside.safetensors", "other_teacher.safetensors")}
        self.stage("sample a teacher", [*words, "--seeds", "0-3", "--output", "t.npz"], makes=["t.npz"], reads=reads)
        return Finished(self.work, tuple(self.stages))

    def _inputs(self) -> None:
        called = self.forks.call("faults.pipeline:write_outside_files", str(self.work), folder=self.work)
        assert called.code == 0, called
        fetched = "results/inputs/digits/digits.csv.gz"
        self.run("fetch", "--source", json.dumps(self.config["inputs"]["digits"]), "--output", fetched)
        options = self.plan.options("datasets", "digits")
        self.run("prepare", "--dataset", options, "--source", fetched, "--output", DATA, "--workers", 1)
        _write_other_archive(self.work / DATA, self.work / "other.zip")
        # As the workflow has them: fetched, with a record of the digest beside them.
        for name in ("cifar_a.tar.gz", "edm_a.pkl"):
            self.run("fetch", "--source", json.dumps({"file": name}), "--output", f"results/inputs/outside/{name}")
        words = ["prepare", "--dataset", '{"name": "cifar10"}', "--source", CIFAR, "--output"]
        made = [f"results/data/cifar10{suffix}" for suffix in (".zip", ".json", ".png")]
        reads = {"CIFAR-10 archive": ("packed", CIFAR, "cifar_b.tar.gz")}
        self.stage("prepare", [*words, made[0], "--workers", 1], makes=made, reads=reads)
        reads = {"config.yaml": ("written by hand", "config.yaml", "config.yaml")}
        described = RUN.format("digits_d2o")
        words = ["resolve", "--config", "config.yaml", "--run", "digits_d2o", "--output", described]
        self.stage("resolve", words, makes=[described], reads=reads)
        made = ["teachers/outside.safetensors", "teachers/outside.yaml"]
        reads = {"EDM pickle": ("packed", PICKLE, "edm_b.pkl")}
        self.stage("convert", ["convert", "--source", PICKLE, "--output", made[0]], makes=made, reads=reads)

    def _trainings(self) -> None:
        for name in self.config["runs"]:
            if name != "digits_d2o":
                self.run("resolve", "--config", "config.yaml", "--run", name, "--output", RUN.format(name))
                self.run(*self._training(name))
        snapshot = {"snapshot": ("tensors", EDM, BACKBONE)}
        made = [TEACHER, TEACHER.replace(".safetensors", ".yaml")]
        self.stage("convert a snapshot", ["convert", "--source", EDM, "--output", TEACHER], makes=made, reads=snapshot)
        reads = {
            "backbone": ("tensors", BACKBONE, METRIC),
            "dataset zip": ("packed", DATA, "other.zip"),
            "dataset.json": ("dataset.json", DATA, "other.zip"),
            "data card": ("json", CARD, "results/data/cifar10.json"),
        }
        words = ["embed", "--backbone", BACKBONE, "--data", DATA, "--resolution", 16, "--output", EMBEDDINGS]
        self.stage("embed", words, makes=[EMBEDDINGS], reads=reads)
        other = ["embed", "--backbone", BACKBONE, "--data", "other.zip", "--resolution", 16, "--output"]
        self.run(*other, "other_embeddings.safetensors")
        words = self._training("digits_d2o")
        for folder, steps in (("half", 3), ("earlier", 2)):
            half = [folder if word == "state" else word for word in words]
            called = self.forks.call("faults.pipeline:stop_half_way", half, steps, folder=self.work, limit=300)
            assert called.code == 0, called
        self.run(*words)
        self.run("convert", "--source", D2O.format(64), "--output", "other_teacher.safetensors")
        reads = reads | {
            "run.yaml": ("written by hand", RUN.format("digits_d2o"), RUN.format("digits_edm")),
            "teacher": ("tensors", TEACHER, "other_teacher.safetensors"),
            "class embeddings": ("tensors", EMBEDDINGS, "other_embeddings.safetensors"),
        }
        made = ["results/runs/digits_d2o/snapshots", "results/runs/digits_d2o/log.jsonl", SUMMARY.format("digits_d2o")]
        fresh = ["fresh" if word == "state" else word for word in words]
        self.stages.append(Stage(name="train", words=fresh, makes=made, reads=reads))
        # Stopped half way: the same command goes on.
        resumed = ["half" if word == "state" else word for word in words]
        (folder,) = (path.relative_to(self.work) for path in (self.work / "half/digits_d2o").iterdir())
        earlier = Path("earlier", *folder.parts[1:])
        state = max(
            (self.work / folder).rglob("*.safetensors"), key=lambda path: (path.parent.name != "snapshots", path)
        )
        states = sorted(path for path in (self.work / folder).rglob("*.safetensors") if path.parent.name != "snapshots")
        older = sorted(path for path in (self.work / earlier).rglob("*.safetensors") if path.parent.name != "snapshots")
        assert states and older, list((self.work / folder).rglob("*"))
        state, manifests = states[-1], sorted((self.work / folder).rglob("manifest.json"))
        reads = {
            "state": ("tensors", str(state.relative_to(self.work)), str(older[-1].relative_to(self.work))),
            "log.jsonl": ("json", str(folder / "log.jsonl"), str(earlier / "log.jsonl")),
            "snapshot": ("tensors", str(folder / "snapshots/32.safetensors"), D2O.format(64)),
        }
        if manifests:
            manifest = manifests[-1].relative_to(self.work)
            older_manifest = sorted((self.work / earlier).rglob("manifest.json"))[-1].relative_to(self.work)
            reads["manifest of a state"] = ("json", str(manifest), str(older_manifest))
        self.stages.append(Stage(name="resume", words=resumed, makes=made, reads=reads))
        (folder,) = (path.relative_to(self.work) for path in (self.work / "state/digits_d2o").iterdir())
        (other,) = (path.relative_to(self.work) for path in (self.work / "state/digits_edm").iterdir())
        reads = {
            "done.json": ("json", str(folder / "done.json"), str(other / "done.json")),
            "snapshot": ("tensors", str(folder / "snapshots/32.safetensors"), D2O.format(64)),
            "log.jsonl": ("json", str(folder / "log.jsonl"), str(other / "log.jsonl")),
        }
        self.stages.append(Stage(name="publish", words=words, makes=made, reads=reads))

    def _training(self, run: str) -> list[str]:
        words = ["train", "--run", RUN.format(run), "--data", DATA, "--state", "state", "--output", "results/runs"]
        if run == "digits_d2o":
            words += ["--teacher", TEACHER, "--backbone", f"digits={BACKBONE}", "--class-embeddings", EMBEDDINGS]
        return words

    def _numbers(self) -> None:
        from onestep.models import Selected
        from onestep.plan import measured

        found = list(dict.fromkeys(each.model for each in measured.of_experiment(self.plan.experiment)))
        selected = [model for model in found if isinstance(model, Selected)]
        extract = ["--features", '{"name": "classifier"}', "--features-name", "digits", "--weights", METRIC]
        real = "results/features/digits.digits.npz"
        reads = {
            "dataset zip": ("packed", DATA, "other.zip"),
            "dataset.json": ("dataset.json", DATA, "other.zip"),
            "data card": ("json", CARD, "results/data/cifar10.json"),
            "snapshot": ("tensors", METRIC, BACKBONE),
        }
        words = ["extract", "--images", DATA, "--dataset", "digits", *extract, "--output", real]
        self.stage("extract a dataset", words, makes=[real], reads=reads)
        self.run("extract", "--images", "other.zip", "--dataset", "digits", *extract, "--output", "other_features.npz")
        for model in found:
            if not isinstance(model, Selected):
                self._block(str(model), extract, real)
        (choice,) = selected
        from onestep.plan import measure

        weights = f"results/selections/{choice}.safetensors"
        made = [weights, f"results/selections/{choice}.json"]
        reads = {
            "metric JSON": ("json", _metric("digits_d2o@64", "fd"), _metric("digits_d2o@32", "fd")),
            "snapshot": ("tensors", D2O.format(64), D2O.format(32)),
        }
        options = measure.selection_options(self.plan, str(choice))
        words = ["select", "--choice", options, "--results", "results", "--output", weights]
        self.stage("select", words, makes=made, reads=reads)
        self.selection = str(choice)
        self._block(self.selection, extract, real)
        self._stages_of_a_block(extract, real)

    def _block(self, model: str, extract: list[str], real: str) -> None:
        self.run(*self._sampling(model))
        images, features = f"results/samples/{_block(model)}.npz", f"results/features/{_block(model)}.digits.npz"
        self.run("extract", "--images", images, *extract, "--output", features)
        for metric in self.config["metrics"]:
            self.run(*self._measuring(model, metric, features, real))

    def _sampling(self, model: str) -> list[str]:
        weights = self.plan.weights(model)
        words = [
            "sample",
            "--weights",
            str(weights),
            "--model",
            model,
            "--sampler",
            '{"name": "one_step", "sigma": 80.0}',
        ]
        words += ["--sampler-name", "one_step", "--seeds", SEEDS, "--grid", f"results/grids/{_block(model)}.npz"]
        return [*words, "--output", f"results/samples/{_block(model)}.npz"]

    def _measuring(self, model: str, metric: str, features: str, real: str) -> list[str]:
        options = self.plan.options("metrics", metric)
        words = ["measure", "--metric", options, "--name", metric, "--generated", features, "--real", real]
        return [*words, "--output", _metric(model, metric)]

    def _stages_of_a_block(self, extract: list[str], real: str) -> None:
        model, other = "digits_d2o@64", "digits_d2o@32"
        images, features, grid = (f"results/{kind}/{_block(model)}" for kind in ("samples", "features", "grids"))
        images, features, grid = f"{images}.npz", f"{features}.digits.npz", f"{grid}.npz"
        other_images, other_features = (text.replace(model, other) for text in (images, features))
        reads: dict[str, tuple[str, str, str]] = {"snapshot": ("tensors", D2O.format(64), D2O.format(32))}
        self.stage("sample", self._sampling(model), makes=[images, grid], reads=reads)
        chosen = f"results/selections/{self.selection}.safetensors"
        reads = {"selection": ("tensors", chosen, D2O.format(32))}
        made = [f"results/samples/{_block(self.selection)}.npz"]
        self.stage("sample a selection", self._sampling(self.selection), makes=made, reads=reads)
        words = ["sample", "--weights", TEACHER, "--sampler", '{"name": "heun", "steps": 2}', "--seeds", "0-7"]
        reads = {"teacher": ("tensors", TEACHER, "other_teacher.safetensors")}
        self.stage("sample a teacher", [*words, "--output", "t.npz"], makes=["t.npz"], reads=reads)
        reads = {"samples": ("pixels", images, other_images), "snapshot": ("tensors", METRIC, BACKBONE)}
        self.stage(
            "extract", ["extract", "--images", images, *extract, "--output", features], makes=[features], reads=reads
        )
        fused = self._sampling(model)[1:-2]
        words = ["observe", *fused, "--features", '{"digits": {"name": "classifier"}}', "--feature-weights"]
        reads = {"snapshot": ("tensors", D2O.format(64), D2O.format(32)), "extractor": ("tensors", METRIC, BACKBONE)}
        words += [f"digits={METRIC}", "--output", "observed"]
        self.stage("observe", words, makes=["observed.digits.npz", grid], reads=reads)
        reads = {"features": ("arrays", features, other_features), "references": ("arrays", real, "other_features.npz")}
        words = self._measuring(model, "fd", features, real)
        self.stage("measure", words, makes=[_metric(model, "fd")], reads=reads)
        self.forks.call("faults.pipeline:write_statistics", str(self.work), real, folder=self.work)
        words = ["evaluate", "--images", images, "--reference", "statistics_a.npz", *extract[:2], *extract[4:]]
        words += ["--output", "evaluated.json", "--metrics", '{"name": "frechet"}']
        reads = {
            "samples": ("given arrays", images, other_images),
            "statistics": ("given arrays", "statistics_a.npz", "statistics_b.npz"),
        }
        self.stage("evaluate", words, makes=["evaluated.json"], reads=reads)

    def _pages(self) -> None:
        from onestep.plan import report, study

        results = [f"results/tables/{{}}{suffix}" for suffix in (".json", ".csv", ".md", ".tex", ".svg")]
        metric, other = _metric("digits_d2o@64", "fd"), _metric("digits_d2o@32", "fd")
        numbers = {"metric JSON": ("json", metric, other)}
        summary = {"summary.json": ("json", SUMMARY.format("digits_d2o"), SUMMARY.format("digits_edm"))}
        card = {"data card": ("json", CARD, "results/data/cifar10.json")}
        for table, reads in (
            ("digits", numbers | summary | card),
            ("chosen", {"selection": ("json", f"results/selections/{self.selection}.json", other)}),
        ):
            words = ["tabulate", "--table", report.table_options(self.plan, table), "--training-code"]
            words += [
                report.table_training_code(self.plan, table),
                "--results",
                "results",
                "--output",
                "results/tables",
            ]
            made = [each.format(table) for each in results]
            self.stage(f"tabulate {table}", words, makes=made, reads=reads, shows=True)
        words = ["study", "--study", self.plan.options("studies", "seen"), "--name", "seen", "--files"]
        words += [study.study_file_options(self.plan, "seen"), "--output", "results/studies"]
        self.stage("study", words, makes=["results/studies"], reads=numbers, shows=True)
        log = ("json", "results/runs/digits_d2o/log.jsonl", "results/runs/digits_edm/log.jsonl")
        grid = f"results/grids/{_block('digits_d2o@64')}.npz"
        reads = {
            **numbers,
            **summary,
            **card,
            "run.yaml": ("json", RUN.format("digits_d2o"), RUN.format("digits_edm")),
            "log.jsonl": log,
            "grid": ("pixels", grid, grid.replace("@64", "@32")),
            "table JSON": ("json", "results/tables/digits.json", "results/tables/chosen.json"),
            "study JSON": ("json", "results/studies/seen.json", metric),
            "config.yaml": ("written by hand", "config.yaml", "config.yaml"),
        }
        words = ["report", "--config", "config.yaml", "--results", "results", "--benchmarks", "benchmarks"]
        page = "results/report/index.html"
        self.stage("report", [*words, "--output", page], makes=[page], reads=reads, shows=True)
        reads = {**summary, **numbers, "config.yaml": ("written by hand", "config.yaml", "config.yaml")}
        self.stage("status", ["status"], makes=[], reads=reads, shows=True)
        words = ["export", "--weights", D2O.format(64), "--run", "results/runs/digits_d2o", "--table"]
        reads = {
            **summary,
            "snapshot": ("tensors", D2O.format(64), D2O.format(32)),
            "run.yaml": ("json", RUN.format("digits_d2o"), RUN.format("digits_edm")),
            "table JSON": ("json", "results/tables/digits.json", "results/tables/chosen.json"),
        }
        words += ["results/tables/digits.json", "--output", "exported"]
        self.stage("export", words, makes=["exported"], reads=reads, shows=True)
        reads = {"metric JSON": ("given json", metric, other)}
        self.stage("compare", ["compare", metric, other], makes=[], reads=reads, shows=True)


def write_statistics(work: str, real: str) -> None:
    """Write published statistics, of all features and of half of them."""
    with np.load(Path(work, real), allow_pickle=False) as archive:
        features = next(a for a in archive.values() if a.ndim == 2 and a.shape[1] > 10).astype(np.float64)
    for letter, rows in (("a", features), ("b", features[::2])):
        np.savez(Path(work, f"statistics_{letter}.npz"), mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))


def _block(model: str) -> str:
    return f"{model}/one_step/{SEEDS}"


def _metric(model: str, metric: str) -> str:
    return f"results/metrics/{_block(model)}.{metric}.json"
