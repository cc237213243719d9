from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from onestep import plugins
from onestep.config import ConfigError, experiment_document, parse_experiment, read_experiment, run_document
from onestep.config.blocks import resolve_components
from onestep.inputs import read_registry
from onestep.stages import training_plugins

DEMO = Path(__file__).parents[1] / "demo" / "config.yaml"
TAKEN_AWAY = object()
MIXING = {"channels": 8, "resolution": 16}


def demo_with(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the demo's config with the values at dotted places replaced, or taken away."""
    document = json.loads(json.dumps(yaml.safe_load(DEMO.read_text())))
    for place, value in changes.items():
        *above, last = place.split(".")
        holder = document
        for step in above:
            holder = holder[int(step) if isinstance(holder, list) else step]
        if value is TAKEN_AWAY:
            del holder[last]
        elif isinstance(holder, list):
            holder[int(last) :] = [value]
        else:
            holder[last] = value
    return document


def problems(document: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(document, source="config.yaml")
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return caught.value.problems


def problems_of_text(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.chdir(folder)
    Path("config.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_experiment("config.yaml")
    return caught.value.problems


D2O = "runs.digits_d2o"


def embeddings() -> dict[str, Any]:
    """Return the section that the demo has no use for, one entry of each kind."""
    own = {"backbone": "digits", "dataset": "digits", "resolution": 16}
    return {"class_embeddings": {"published": {"input": "digits"}, "own": own}}


WRONG = {
    # Keys
    "unknown key of an objective": (
        {f"{D2O}.objective.r1_gama": 1},
        f"{D2O}.objective.r1_gama: unknown key; "
        "allowed: name, loss, sigma, rows_per_rank, r1_gamma, r1_every, r1_gradient, augment; did you mean r1_gamma?",
    ),
    "unknown key of a run's average": (
        {f"{D2O}.ema.half_live": 1},
        f"{D2O}.ema.half_live: unknown key; allowed: half_life, ramp_up, others; did you mean half_life?",
    ),
    "unknown key of a row": (
        {"tables.digits.rows.1": {"run": "digits_edm", "sampler": "heun", "smapler": "heun"}},
        "tables.digits.rows[1].smapler: unknown key; "
        "allowed: run, runs, teacher, sampler, label, dataset, ema, published, nfe, images; did you mean sampler?",
    ),
    "a launch exception of nobody": (
        {"launch.runs": {"digits_d3o": {"hours": 2.0}}},
        "launch.runs.digits_d3o: found the text 'digits_d3o', expected one of the runs: digits_backbone, "
        "digits_metric, digits_edm, digits_d2o, digits_d2o_f; did you mean digits_d2o?",
    ),
    "a science key among a launch's exceptions": (
        {"launch.runs": {"digits_d2o": {"batch": 2}}},
        "launch.runs.digits_d2o.batch: unknown key; allowed: nodes, processes_per_node, cpus_per_process, memory_gib, "
        "gpu_type, partition, account, qos, constraint, hours",
    ),
    "several nodes of this machine": (
        {"launch.nodes": 2},
        "launch.nodes: found 2, expected 1: `backend: local` is this machine",
    ),
    "processes that cannot share a batch": (
        {"launch.runs": {"digits_d2o": {"processes_per_node": 7}}},
        "launch.processes_per_node: 7 processes train digits_d2o, and its batch of 64 does not divide among them; "
        "choose otherwise here, in launch.runs, or in the run",
    ),
    "unknown section": (
        {"zebra": 1},
        "zebra: unknown key; allowed: inputs, mirrors, datasets, teachers, backbones, class_embeddings, features, "
        "runs, samplers, metrics, tables, studies, launch, container, storage, rerun",
    ),
    "an argument that the pipeline supplies": (
        {"runs.digits_backbone.classifier.classes": 10},
        "runs.digits_backbone.classifier.classes: unknown key; allowed: name, width",
    ),
    "missing key of a run": ({f"{D2O}.batch": TAKEN_AWAY}, f"{D2O}.batch: missing, and there is no default"),
    "missing option of an objective": (
        {f"{D2O}.objective.r1_gamma": TAKEN_AWAY},
        f"{D2O}.objective.r1_gamma: missing, and there is no default",
    ),
    "missing key of a component": (
        {"metrics.fd.features": TAKEN_AWAY},
        "metrics.fd.features: missing, and there is no default",
    ),
    "missing input of a dataset": (
        {"datasets.digits.input": TAKEN_AWAY},
        "datasets.digits.input: missing, and there is no default",
    ),
    "missing name": (
        {f"{D2O}.objective.name": TAKEN_AWAY},
        f"{D2O}.objective.name: missing, expected one of the files of objectives/: cross_entropy, d2o, edm",
    ),
    "a name with capitals": (
        {"samplers.Heun": {"name": "heun", "steps": 18}},
        "samplers.Heun: found the text 'Heun', expected small letters, digits and _, first a letter",
    ),
    # Types and ranges
    "a number YAML reads as text": (
        {f"{D2O}.objective.r1_gamma": "1e-4"},
        f"{D2O}.objective.r1_gamma: found the text '1e-4', expected a number; YAML reads 1e-4 as text, write 1.0e-4",
    ),
    "a number YAML reads as text, in a list": (
        {f"{D2O}.optimizers.generator.betas": [0.0, "99e-2"]},
        f"{D2O}.optimizers.generator.betas[1]: found the text '99e-2', expected a number; "
        "YAML reads 99e-2 as text, write 99.0e-2",
    ),
    "an exponent without sign": (
        {f"{D2O}.optimizers.generator.lr": "2.5E3"},
        f"{D2O}.optimizers.generator.lr: found the text '2.5E3', expected a number; "
        "YAML reads 2.5E3 as text, write 2.5e+3",
    ),
    "a whole number YAML reads as text": (
        {f"{D2O}.images": "5e6"},
        f"{D2O}.images: found the text '5e6', expected a whole number; YAML reads 5e6 as text, write 5_000_000",
    ),
    "a number in quotes": (
        {f"{D2O}.ema.ramp_up": "0.05"},
        f"{D2O}.ema.ramp_up: found the text '0.05', expected a number; take away the quotes",
    ),
    "a whole number with a point": (
        {f"{D2O}.images": 5.0e6},
        f"{D2O}.images: found 5000000.0, expected a whole number; write 5_000_000",
    ),
    "a fraction for a whole number": ({f"{D2O}.batch": 0.5}, f"{D2O}.batch: found 0.5, expected a whole number"),
    "a whole number for text": ({"tables.digits.title": 1}, "tables.digits.title: found 1, expected text"),
    "text for a truth value": (
        {f"{D2O}.conditional": "nope"},
        f"{D2O}.conditional: found the text 'nope', expected true or false",
    ),
    "a truth value for a number": ({f"{D2O}.seed": True}, f"{D2O}.seed: found true, expected a whole number"),
    "nothing for a mapping": ({"tables": None}, "tables: found nothing, expected a mapping"),
    "text for a component": (
        {f"{D2O}.objective": "d2o"},
        f"{D2O}.objective: found the text 'd2o', expected a mapping",
    ),
    "a list for a mapping": ({"runs": []}, "runs: found an empty list, expected a mapping"),
    "a mapping for a list": ({f"{D2O}.freeze": {"a": 1}}, f"{D2O}.freeze: found a mapping, expected a list"),
    "a wrong type inside an option": (
        {"runs.digits_edm.network.channel_mult": [1, 2.5]},
        "runs.digits_edm.network.channel_mult[1]: found 2.5, expected a whole number",
    ),
    "a value that is none of the choices": (
        {f"{D2O}.objective.loss": "wgan"},
        f"{D2O}.objective.loss: found the text 'wgan', expected 'non_saturating' or 'hinge'",
    ),
    "a preconditioning that is none": (
        {"runs.digits_edm.network.preconditioning": "vp"},
        "runs.digits_edm.network.preconditioning: found the text 'vp', expected 'edm' or 'd2o'",
    ),
    "zero images": ({f"{D2O}.images": 0}, f"{D2O}.images: found 0, expected a number above 0"),
    "a share above one": (
        {f"{D2O}.non_finite_limit": 1.5},
        f"{D2O}.non_finite_limit: found 1.5, expected a number up to 1",
    ),
    "a number that is none": (
        {f"{D2O}.ema.ramp_up": float("nan")},
        f"{D2O}.ema.ramp_up: found nan, expected a finite number",
    ),
    "one beta too many": (
        {f"{D2O}.optimizers.generator.betas": [0.0, 0.9, 0.99]},
        f"{D2O}.optimizers.generator.betas: found 3 entries, expected at most 2",
    ),
    "no backbone": (
        {f"{D2O}.discriminator.backbones": []},
        f"{D2O}.discriminator.backbones: found 0 entries, expected at least 1",
    ),
    "a digest that is none": (
        {"inputs.digits.sha256": "09f6"},
        "inputs.digits.sha256: found the text '09f6', expected 64 hexadecimal digits",
    ),
    "what the class itself refuses": (
        {"samplers.heun.steps": 1},
        "samplers.heun: steps: got 1, expected at least 2",
    ),
    # Names
    "unknown objective": (
        {f"{D2O}.objective.name": "d3o"},
        f"{D2O}.objective.name: found the text 'd3o', expected one of the files of objectives/: "
        "cross_entropy, d2o, edm; did you mean d2o?",
    ),
    "unknown dataset": (
        {f"{D2O}.dataset": "digit"},
        f"{D2O}.dataset: found the text 'digit', expected one of the datasets: digits; did you mean digits?",
    ),
    "missing teacher": (
        {f"{D2O}.teacher": "edm"},
        f"{D2O}.teacher: found the text 'edm', expected one of the teachers: digits",
    ),
    "missing backbone": (
        {f"{D2O}.discriminator.backbones": ["digits", "vgg"]},
        f"{D2O}.discriminator.backbones[1]: found the text 'vgg', expected one of the backbones: digits",
    ),
    "missing input": (
        {"datasets.digits.input": "numbers"},
        "datasets.digits.input: found the text 'numbers', expected one of the inputs: digits",
    ),
    "a teacher of a missing run": (
        {"teachers.digits.run": "digits_emd"},
        "teachers.digits.run: found the text 'digits_emd', expected one of the runs of a denoiser: "
        "digits_edm, digits_d2o, digits_d2o_f; did you mean digits_edm?",
    ),
    "a teacher of a missing pickle": (
        {"teachers.other": {"pickle": "edm"}},
        "teachers.other.pickle: found the text 'edm', expected one of the inputs: digits",
    ),
    "a backbone that is no classifier": (
        {"backbones.digits.run": "digits_edm"},
        "backbones.digits.run: found the text 'digits_edm', expected one of the runs of a classifier: "
        "digits_backbone, digits_metric; did you mean digits_metric?",
    ),
    "a backbone of nothing": (
        {"backbones.vgg": {"input": "digits"}},
        "backbones.vgg: found none, expected exactly one of: run, timm",
    ),
    "a backbone of two things": (
        {"backbones.vgg": {"run": "digits_backbone", "timm": "vgg16_bn.tv_in1k", "input": "digits"}},
        "backbones.vgg: found run and timm, expected exactly one of: run, timm",
    ),
    "a run with weights from elsewhere": (
        {"backbones.digits.input": "digits"},
        "backbones.digits.input: only timm's networks have it; the weights of a run are its last snapshot",
    ),
    "a network of timm without weights": (
        {"backbones.vgg": {"timm": "vgg16_bn.tv_in1k"}},
        "backbones.vgg.input: missing, and nothing is downloaded; name the input with vgg16_bn.tv_in1k",
    ),
    "a network of timm with weights of a missing input": (
        {"backbones.vgg": {"timm": "vgg16_bn.tv_in1k", "input": "vgg"}},
        "backbones.vgg.input: found the text 'vgg', expected one of the inputs: digits",
    ),
    "a network that timm does not have": (
        {"backbones.vgg": {"timm": "vgg16_bm.tv_in1k", "input": "digits"}},
        f"backbones.vgg.timm: found the text 'vgg16_bm.tv_in1k', expected the name of a network of timm "
        f"{importlib.metadata.version('timm')}; did you mean vgg16_bn?",
    ),
    "a network of timm without the tag of its weights": (
        {"backbones.vgg": {"timm": "vgg16_bn", "input": "digits"}},
        "backbones.vgg.timm: found the text 'vgg16_bn', expected one of the weights of vgg16_bn: vgg16_bn.tv_in1k; "
        "did you mean vgg16_bn.tv_in1k?",
    ),
    "statistics that are none": (
        {f"{D2O}.discriminator.batch_norm": "probe"},
        f"{D2O}.discriminator.batch_norm: found the text 'probe', expected 'pretrained' or 'probed'",
    ),
    "class embeddings that are none": (
        {**embeddings(), f"{D2O}.discriminator.class_embeddings": "imagenet", f"{D2O}.conditional": True},
        f"{D2O}.discriminator.class_embeddings: found the text 'imagenet', "
        "expected one of the class embeddings: published, own",
    ),
    "class embeddings without classes": (
        {**embeddings(), f"{D2O}.discriminator.class_embeddings": "own"},
        f"{D2O}.discriminator.class_embeddings: found class embeddings, expected none: "
        "an unconditional run knows no classes",
    ),
    "class embeddings of a missing input": (
        {**embeddings(), "class_embeddings.published.input": "table"},
        "class_embeddings.published.input: found the text 'table', expected one of the inputs: digits",
    ),
    "class embeddings of a missing backbone": (
        {**embeddings(), "class_embeddings.own.backbone": "vgg"},
        "class_embeddings.own.backbone: found the text 'vgg', expected one of the backbones: digits",
    ),
    "class embeddings of a missing dataset": (
        {**embeddings(), "class_embeddings.own.dataset": "digit"},
        "class_embeddings.own.dataset: found the text 'digit', expected one of the datasets: digits; "
        "did you mean digits?",
    ),
    "class embeddings of images without a size": (
        {**embeddings(), "class_embeddings.own.resolution": TAKEN_AWAY},
        "class_embeddings.own.resolution: missing, and there is no default",
    ),
    "class embeddings out of two sources": (
        {**embeddings(), "class_embeddings.own.input": "digits"},
        "class_embeddings.own: found input and backbone, expected exactly one of: input, backbone",
    ),
    "published class embeddings of a dataset": (
        {**embeddings(), "class_embeddings.published.dataset": "digits"},
        "class_embeddings.published.dataset: only a table that is computed has it; a published one is an input alone",
    ),
    "features of a missing run": (
        {"features.digits.run": "vgg"},
        "features.digits.run: found the text 'vgg', expected one of the runs of a classifier: "
        "digits_backbone, digits_metric",
    ),
    "missing features": (
        {"metrics.pr.features": "inception"},
        "metrics.pr.features: found the text 'inception', expected one of the features: digits",
    ),
    "missing sampler": (
        {"tables.digits.rows.3": {"run": "digits_edm", "sampler": "huen"}},
        "tables.digits.rows[3].sampler: found the text 'huen', expected one of the samplers: heun, one_step; "
        "did you mean heun?",
    ),
    "a row of a missing run": (
        {"tables.digits.rows.3": {"run": "edm", "sampler": "heun"}},
        "tables.digits.rows[3].run: found the text 'edm', expected one of the runs of a denoiser: "
        "digits_edm, digits_d2o, digits_d2o_f",
    ),
    "a row of a missing teacher": (
        {"tables.digits.rows.3": {"teacher": "edm", "sampler": "heun"}},
        "tables.digits.rows[3].teacher: found the text 'edm', expected one of the teachers: digits",
    ),
    "a row of another dataset": (
        {"datasets.twins": {"name": "digits", "input": "digits", "resolution": 16}, "tables.digits.dataset": "twins"}
        | {"tables.digits.rows": [{"teacher": "digits", "sampler": "heun"}]},
        "tables.digits.rows[0]: learned from dataset digits, expected twins, as the table says",
    ),
    "a column of a missing metric": (
        {"tables.digits.columns.fd": "fid.frechet"},
        "tables.digits.columns.fd: found the text 'fid.frechet', expected one of the numbers: "
        "fd.frechet, is.inception_score, pr.precision, pr.recall; did you mean fd.frechet?",
    ),
    "a column of a missing number": (
        {"tables.digits.columns.recall": "pr.recal"},
        "tables.digits.columns.recall: found the text 'pr.recal', expected one of the numbers: "
        "fd.frechet, is.inception_score, pr.precision, pr.recall; did you mean pr.recall?",
    ),
    "a column that is no number": (
        {"tables.digits.columns.fd": "fd"},
        "tables.digits.columns.fd: found the text 'fd', expected metric.value, such as fd.frechet",
    ),
    "a curve of a missing column": (
        {"tables.digits.curves.column": "fid"},
        "tables.digits.curves.column: found the text 'fid', expected one of the columns: fd, is, precision, recall; "
        "did you mean fd?",
    ),
    "a published number of a missing column": (
        {"tables.digits.rows.3": {"run": "digits_edm", "sampler": "heun", "published": {"fid": 1.98}}},
        "tables.digits.rows[3].published.fid: found the text 'fid', expected one of the columns: "
        "fd, is, precision, recall; did you mean fd?",
    ),
    # Snapshots, averages, other methods, several datasets
    "the old key of a table's policy": (
        {"tables.digits.snapshot": "last"},
        "tables.digits.snapshot: unknown key; "
        "allowed: title, dataset, seeds, select, select_seeds, show, columns, rows, curves",
    ),
    "a policy that is none": (
        {"tables.digits.select": "best"},
        "tables.digits.select: found the text 'best', expected last, or best_ and a column, such as best_fd",
    ),
    "the best of a missing column": (
        {"tables.digits.select": "best_fid"},
        "tables.digits.select: found the text 'best_fid', expected one of the policies: last, best_fd, best_is, "
        "best_precision, best_recall; did you mean best_fd?",
    ),
    "a number of the blocks that is none": (
        {"tables.digits.show": "median"},
        "tables.digits.show: found the text 'median', expected 'mean', 'first' or 'best'",
    ),
    "seeds to select by where nothing is selected": (
        {"tables.digits.select_seeds": "9000-9999"},
        "tables.digits.select_seeds: found the text '9000-9999', expected nothing: select: last measures no snapshots "
        "to choose among",
    ),
    "too few seeds to select by": (
        {"tables.digits.select": "best_is", "tables.digits.select_seeds": "9000-9003"},
        "tables.digits.select_seeds: 9000-9003 has 4 seeds, expected at least 10: so many images metric is needs",
    ),
    "seeds to select by that run backwards": (
        {"tables.digits.select": "best_fd", "tables.digits.select_seeds": "9-0"},
        "tables.digits.select_seeds: found the text '9-0', expected first-last, the first not above the last",
    ),
    "an average that is the main one": (
        {f"{D2O}.ema.others": [5000]},
        f"{D2O}.ema.others[0]: found 5000, which is the main half-life; take it away",
    ),
    "an average twice": (
        {f"{D2O}.ema.others": [100, 200, 100]},
        f"{D2O}.ema.others[2]: found 100, which is in this list already; take it away",
    ),
    "an average over no whole number of images": (
        {f"{D2O}.ema.others": [0.5]},
        f"{D2O}.ema.others[0]: found 0.5, expected a whole number",
    ),
    "a row of an average that the run does not keep": (
        {f"{D2O}.ema.others": [100], "tables.digits.rows.3": {"run": "digits_d2o", "sampler": "heun", "ema": 200}},
        "tables.digits.rows[3].ema: found 200, expected one of the half-lives of digits_d2o: 5000, 100",
    ),
    "a row of a teacher's average": (
        {"tables.digits.rows.3": {"teacher": "digits", "sampler": "heun", "ema": 200}},
        "tables.digits.rows[3].ema: found 200, expected none: a teacher has one average",
    ),
    "a row without a sampler": (
        {"tables.digits.rows.3": {"run": "digits_d2o"}},
        "tables.digits.rows[3].sampler: missing, and there is no default",
    ),
    "another method without a name": (
        {"tables.digits.rows.3": {"published": {"fd": 1.5}}},
        "tables.digits.rows[3].label: missing, but a row without run or teacher has no other name",
    ),
    "another method through a sampler": (
        {"tables.digits.rows.3": {"label": "SiD", "published": {"fd": 1.5}, "sampler": "heun"}},
        "tables.digits.rows[3].sampler: a row without run or teacher has none, because nothing is measured for it",
    ),
    "a measured row that says what is measured": (
        {"tables.digits.rows.3": {"run": "digits_d2o", "sampler": "heun", "nfe": 1}},
        "tables.digits.rows[3].nfe: only another method's row has it; what is measured here knows its own",
    ),
    "a published number that is none": (
        {"tables.digits.rows.3": {"label": "SiD", "published": {"fd": "1.5"}}},
        "tables.digits.rows[3].published.fd.value: found the text '1.5', expected a number; take away the quotes",
    ),
    "an unknown key of a published number": (
        {"tables.digits.rows.3": {"label": "SiD", "published": {"fd": {"value": 1.5, "sorce": "x"}}}},
        "tables.digits.rows[3].published.fd.sorce: unknown key; allowed: value, source; did you mean source?",
    ),
    "a dataset of a row and of its table": (
        {"tables.digits.rows.3": {"run": "digits_d2o", "sampler": "heun", "dataset": "digits"}},
        "tables.digits.rows[3].dataset: found the text 'digits', but the table names digits; take one away",
    ),
    "a row without a dataset": (
        {
            "tables.digits.dataset": TAKEN_AWAY,
            "tables.digits.rows": [
                {"run": "digits_d2o", "sampler": "heun", "dataset": "digits"},
                {"run": "digits_edm", "sampler": "heun"},
            ],
        },
        "tables.digits.rows[1].dataset: missing, and the table names none; name one there, or one in each row",
    ),
    "a row of another dataset than its own": (
        {
            "datasets.letters": {"name": "digits", "input": "digits", "resolution": 16},
            "tables.digits.dataset": TAKEN_AWAY,
            "tables.digits.rows": [{"run": "digits_d2o", "sampler": "heun", "dataset": "letters"}],
        },
        "tables.digits.rows[0]: learned from dataset digits, expected letters, as the row says",
    ),
    "a teacher from outside on two datasets": (
        {
            "inputs.edm": {"file": "edm.pkl"},
            "teachers.edm": {"pickle": "edm"},
            "datasets.letters": {"name": "digits", "input": "digits", "resolution": 16},
            "tables.digits.dataset": TAKEN_AWAY,
            "tables.digits.rows": [
                {"teacher": "edm", "sampler": "heun", "dataset": "digits"},
                {"teacher": "edm", "sampler": "heun", "dataset": "letters"},
            ],
        },
        "tables.digits.rows[1]: edm is compared with letters here and with digits elsewhere; "
        "give it a second name in teachers",
    ),
    # What belongs together
    "a run with two beginnings": (
        {f"{D2O}.classifier": {"name": "convnet", "width": 16}},
        f"{D2O}: found teacher and classifier, expected exactly one of: network, teacher, classifier",
    ),
    "an input from nowhere": (
        {"inputs.other": {"licence": "CC0"}},
        "inputs.other: found none, expected exactly one of: package, file, url, published",
    ),
    "an input out of a package, without its digest": (
        {"inputs.digits.sha256": TAKEN_AWAY},
        "inputs.digits.sha256: missing, and there is no default",
    ),
    "an input from two places": (
        {"inputs.other": {"file": "a.zip", "url": "https://example.org/a.zip"}},
        "inputs.other: found file and url, expected exactly one of: package, file, url, published",
    ),
    "an address of another kind": (
        {"inputs.other": {"url": "ftp://example.org/a.zip"}},
        "inputs.other.url: found the text 'ftp://example.org/a.zip', expected one of http://, https://, file:// and, "
        "at its end, the name of a file",
    ),
    "an address without a file": (
        {"inputs.other": {"url": "https://example.org/"}},
        "inputs.other.url: found the text 'https://example.org/', expected one of http://, https://, file:// and, "
        "at its end, the name of a file",
    ),
    "an address that only a person can use": (
        {"inputs.other": {"url": "https://drive.google.com/uc?id=1"}},
        "inputs.other.url: Google Drive asks a person first; get the file by hand and name its path as `file`",
    ),
    "an input that the registry does not know": (
        {"inputs.other": {"published": "inception-2015-12-06"}},
        "inputs.other.published: found the text 'inception-2015-12-06', expected one of the names of "
        f"fetch/registry.yaml: {', '.join(read_registry())}; did you mean inception-2015-12-05?",
    ),
    "an input that the registry knows, with a digest": (
        {"inputs.other": {"published": "cifar10", "sha256": "0" * 64}},
        "inputs.other.sha256: fetch/registry.yaml says it, and inputs.lock.yaml keeps it; take it away",
    ),
    "a size of what has no address": (
        {"inputs.other": {"file": "a.zip", "size": 3}},
        "inputs.other.size: only what has a `url` has it; take it away",
    ),
    "a mirror that is a path": (
        {"mirrors": {"https://example.org/": "/data"}},
        "mirrors.https://example.org/: found the text '/data', expected one of http://, https://, file://",
    ),
    "an input by hand with a place in a package": (
        {"inputs.other": {"file": "a.zip", "path": "b"}},
        "inputs.other.path: a place inside a package, but none is named; the path of a file is `file`",
    ),
    "a teacher from nowhere": (
        {"teachers.digits": {}},
        "teachers.digits: found none, expected exactly one of: run, pickle",
    ),
    "features from two sources": (
        {"features.digits.input": "digits"},
        "features.digits: found run and input, expected exactly one of: run, input",
    ),
    "a row of nothing": (
        {"tables.digits.rows.3": {"sampler": "heun"}},
        "tables.digits.rows[3]: found none, expected exactly one of: run, teacher; "
        "another method's row has `published` instead",
    ),
    "a teacher called like a run": (
        {"teachers.digits_d2o": {"run": "digits_edm"}},
        "teachers.digits_d2o: also the name of a run; samples are filed under either, so rename one of them",
    ),
    "a run from a teacher that keeps its dropout unsaid": (
        {f"{D2O}.dropout": TAKEN_AWAY},
        f"{D2O}.dropout: missing, and there is no default",
    ),
    "a preconditioning of a teacher that is a run": (
        {"teachers.digits.preconditioning": "d2o"},
        "teachers.digits.preconditioning: only a pickle has it here; a run says its own",
    ),
    "a preconditioning beside a network": (
        {"runs.digits_edm.preconditioning": "edm"},
        "runs.digits_edm.preconditioning: only a run with a teacher has it here; a network has it in its own block",
    ),
    "a frozen classifier": (
        {"runs.digits_metric.freeze": ["conv"]},
        "runs.digits_metric.freeze: found a list, expected an empty one: only denoisers can be frozen",
    ),
    "a classifier without labels": (
        {"runs.digits_metric.conditional": False},
        "runs.digits_metric.conditional: found false, expected true: a classifier learns from labels",
    ),
    "an objective without its discriminator": (
        {f"{D2O}.discriminator": None},
        f"{D2O}: objective d2o needs a discriminator, and the run names none",
    ),
    "a discriminator without use": (
        {
            "runs.digits_edm.discriminator": {
                "name": "projected",
                "backbones": ["digits"],
                "channels": 8,
                "resolution": 16,
            }
        },
        "runs.digits_edm.discriminator: objective edm has no use for a discriminator; take it away",
    ),
    "a role without optimizer": (
        {f"{D2O}.optimizers.discriminator": TAKEN_AWAY},
        f"{D2O}.optimizers.discriminator: missing, but objective d2o trains the discriminator",
    ),
    "an optimizer of no role": (
        {"runs.digits_edm.optimizers.critic": {"lr": 0.1, "betas": [0.0, 0.9], "eps": 0.1}},
        "runs.digits_edm.optimizers.critic: found the text 'critic', expected one of the roles that edm trains: "
        "generator",
    ),
    "an optimizer that is none": (
        {f"{D2O}.optimizers.generator.name": "sgd"},
        f"{D2O}.optimizers.generator.name: found the text 'sgd', expected 'adam', 'adamw' or 'radam'",
    ),
    "snapshots closer than steps": (
        {f"{D2O}.batch": 64, f"{D2O}.snapshot_every": 63},
        f"{D2O}.snapshot_every: found 63, expected at least the batch (64): a step takes one snapshot",
    ),
    "runs in a circle": (
        {"teachers.digits.run": "digits_d2o_f"},
        "runs: digits_d2o_f -> digits_d2o_f: each waits for the next; let one of them start from something else",
    ),
    # Seeds
    "seeds that are no block": (
        {"tables.digits.seeds": [2000]},
        "tables.digits.seeds[0]: found 2000, expected text",
    ),
    "seeds with another dash": (
        {"tables.digits.seeds": ["0..1999"]},
        "tables.digits.seeds[0]: found the text '0..1999', expected first-last, such as 0-1999",
    ),
    "seeds from last to first": (
        {"tables.digits.seeds": ["0-1999", "3999-2000"]},
        "tables.digits.seeds[1]: found the text '3999-2000', expected first-last, the first not above the last",
    ),
    "blocks of other sizes": (
        {"tables.digits.seeds": ["0-1999", "2000-2999"]},
        "tables.digits.seeds[1]: 2000-2999 has 1000 seeds, expected 2000 as in 0-1999",
    ),
    "blocks with common seeds": (
        {"tables.digits.seeds": ["0-1999", "2000-3999", "1999-3998"]},
        "tables.digits.seeds[2]: 1999-3998 has seeds in common with 0-1999; blocks are independent samples",
    ),
    "fewer seeds than splits": (
        {"tables.digits.seeds": ["0-8"], "metrics.is.splits": 10},
        "tables.digits.seeds[0]: 0-8 has 9 seeds, expected at least 10: so many images metric is needs",
    ),
    "a curve's seeds from last to first": (
        {"tables.digits.curves.seeds": "9-0"},
        "tables.digits.curves.seeds: found the text '9-0', expected first-last, the first not above the last",
    ),
}


@pytest.mark.parametrize(("changes", "line"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_config_is_refused_in_one_line(changes: dict[str, Any], line: str) -> None:
    assert problems(demo_with(changes)) == (f"config.yaml: {line}",)


@pytest.mark.parametrize("text", ["1e-4", "1E4", "2.5e3", "1.e4", ".5e7", "-3e+2", "5e6"])
def test_the_spelling_that_a_message_offers_is_a_number_to_yaml(text: str) -> None:
    assert yaml.safe_load(f"r1_gamma: {text}") == {"r1_gamma": text}
    (line,) = problems(demo_with({f"{D2O}.objective.r1_gamma": text}))
    offered = yaml.safe_load(line.rpartition("write ")[2])
    assert (type(offered), offered) == (float, float(text))


def test_all_problems_are_listed_in_the_order_of_the_file() -> None:
    found = problems(
        demo_with(
            {
                "tables.digits.snapshot": "best",
                f"{D2O}.objective.r1_gamma": "1e-4",
                f"{D2O}.objective.sigma": None,
                f"{D2O}.batch": "64",
                "samplers.heun.name": "euler",
                "datasets.digits.resolution": 16.0,
            }
        )
    )
    assert [line.split(": ")[1] for line in found] == [
        "datasets.digits.resolution",
        f"{D2O}.objective.sigma",
        f"{D2O}.objective.r1_gamma",
        f"{D2O}.batch",
        "samplers.heun.name",
        "tables.digits.snapshot",
    ]


def test_a_circle_over_several_runs_is_named() -> None:
    document = demo_with({"teachers.second": {"run": "digits_d2o"}, "teachers.digits.run": "digits_d2o_f"})
    document["runs"]["digits_d2o_f"]["teacher"] = "second"
    (line,) = problems(document)
    assert "digits_d2o -> digits_d2o_f -> digits_d2o" in line or "digits_d2o_f -> digits_d2o -> digits_d2o_f" in line


SECTIONS = (
    "inputs, mirrors, datasets, teachers, backbones, class_embeddings, features, runs, samplers, metrics, tables, "
    "studies, launch, container, storage, rerun"
)
NO_CONFIG = {
    "nothing": ("", f"found nothing, expected a mapping of: {SECTIONS}"),
    "a list": ("- runs\n", f"found a list, expected a mapping of: {SECTIONS}"),
    "an open bracket": (
        "runs:\n  a: {seed: 1\n",
        "line 3, column 1: not YAML: expected ',' or '}', but got '<stream end>'",
    ),
    "two colons": ("runs: a: b\n", "line 1, column 8: not YAML: mapping values are not allowed here"),
    "a Python object": (
        "runs:\n  a: !!python/name:os.system\n",
        "line 2, column 6: not YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/name:os.system'",
    ),
    "a bell": (
        "runs: \x07\n",
        'not YAML: unacceptable character #x0007: special characters are not allowed in "<unicode string>", position 6',
    ),
    "a key twice": (
        "runs:\n  a:\n    seed: 1\n    batch: 2\n    seed: 3\n",
        "runs.a.seed: stands twice, in lines 3 and 5",
    ),
    "a section twice": ("runs: {}\nmetrics: {}\nruns: {}\n", "runs: stands twice, in lines 1 and 3"),
    "a key twice in what is merged": (
        "runs:\n  a: &a {seed: 1, seed: 2}\n  b: {<<: *a, seed: 3}\n",
        "runs.a.seed: stands twice, in lines 2 and 2",
    ),
    "a key that is no text": (
        "rerun: {yes: 1}\n",
        "rerun: line 1: YAML does not read the key 'yes' as text; put it in quotes",
    ),
    "an alias to itself": ("runs: &a [*a]\n", "runs[0]: line 1: an alias to the mapping or list that it stands in"),
    "a number merged": (
        "runs: {<<: 3}\n",
        "line 1, column 12: not YAML: expected a mapping or list of mappings for merging, but found scalar",
    ),
}


@pytest.mark.parametrize(("text", "line"), NO_CONFIG.values(), ids=NO_CONFIG.keys())
def test_a_file_that_is_no_config_is_refused_in_one_line(
    text: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problems_of_text(text, tmp_path, monkeypatch) == (f"config.yaml: {line}",)


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "none.yaml", "No such file or directory; expected a YAML file, such as config.yaml"),
        (tmp_path, "Is a directory; expected a YAML file, such as config.yaml"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_experiment(path)
        assert caught.value.problems == (f"{path}: {reason}",)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("title: Fr\xe9chet\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_experiment(latin)
    assert caught.value.problems == (f"{latin}: not UTF-8 text (byte 9); save it as UTF-8",)


def test_the_demo_is_read() -> None:
    experiment = read_experiment(DEMO)
    assert list(experiment.runs) == ["digits_backbone", "digits_metric", "digits_edm", "digits_d2o", "digits_d2o_f"]
    plain, frozen = experiment.runs["digits_d2o"], experiment.runs["digits_d2o_f"]
    assert frozen == dataclasses.replace(plain, freeze=("conv", "proj"))
    assert experiment.teachers["digits"].run == "digits_edm"
    assert experiment.metrics["pr"].features == "digits"
    assert experiment.datasets["digits"].options == {"resolution": 16}
    assert experiment.inputs["digits"].package == "scikit-learn"
    assert experiment.tables["digits"].columns["fd"] == "fd.frechet"


def test_a_published_number_stands_alone_or_with_its_source_and_reads_back_the_same() -> None:
    row = {"label": "SiD", "published": {"fd": 1.923, "is": {"value": 9.98, "source": "A Paper"}}, "images": "~400 M"}
    experiment = parse_experiment(demo_with({"tables.digits.rows.3": row}))
    published = experiment.tables["digits"].rows[3].published
    assert [(each.value, each.source) for each in published.values()] == [(1.923, None), (9.98, "A Paper")]
    assert not experiment.tables["digits"].rows[3].is_measured
    assert parse_experiment(experiment_document(experiment)) == experiment


def test_rows_of_a_table_without_a_dataset_name_their_own() -> None:
    rows = [
        {"run": "digits_d2o", "sampler": "one_step", "dataset": "digits"},
        {"label": "SiD", "published": {"fd": 1.9}, "dataset": "letters"},
    ]
    changes = {
        "datasets.letters": {"name": "digits", "input": "digits", "resolution": 16},
        "tables.digits.dataset": TAKEN_AWAY,
        "tables.digits.rows": rows,
    }
    table = parse_experiment(demo_with(changes)).tables["digits"]
    assert [table.dataset_of(row) for row in table.rows] == ["digits", "letters"]


def test_values_cannot_be_changed() -> None:
    experiment = read_experiment(DEMO)
    run = experiment.runs["digits_edm"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 1  # type: ignore[misc]
    for mapping in (experiment.runs, run.network.options, run.optimizers, experiment.tables["digits"].columns):
        assert isinstance(mapping, MappingProxyType)
    assert isinstance(run.network.options["channel_mult"], tuple)


def test_anchors_merge_keys_and_numbers_are_read_as_yaml_means_them(tmp_path: Path) -> None:
    text = DEMO.read_text()
    assert "<<: *d2o" in text
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("digits_d2o_f: {<<: *d2o, ", "digits_d2o_f: {<<: *d2o, seed: 7, images: 5_000_000, "))
    runs = read_experiment(path).runs
    assert (runs["digits_d2o_f"].seed, runs["digits_d2o"].seed) == (7, 0)
    assert runs["digits_d2o_f"].images == 5_000_000
    assert runs["digits_d2o_f"].objective.options["r1_gamma"] == 1.0e-4
    assert runs["digits_d2o_f"].objective == runs["digits_d2o"].objective


def test_a_whole_number_is_a_number() -> None:
    run = parse_experiment(demo_with({f"{D2O}.objective.sigma": 80, f"{D2O}.ema.half_life": 5})).runs["digits_d2o"]
    assert (run.objective.options["sigma"], run.ema.half_life) == (80.0, 5.0)
    assert isinstance(run.objective.options["sigma"], float)


def test_options_left_out_take_the_defaults_of_the_signature() -> None:
    block = {"name": "song_unet", "preconditioning": "edm", "model_channels": 16}
    network = parse_experiment(demo_with({"runs.digits_edm.network": block})).runs["digits_edm"].network
    assert network.options["model_channels"] == 16
    assert network.options["channel_mult_emb"] == 4
    assert not {"img_resolution", "img_channels", "label_dim", "name", "preconditioning"} & network.options.keys()


def test_inputs_brought_by_hand_and_pickled_teachers_are_read() -> None:
    changes = {
        "inputs.edm": {"file": "downloads/edm.pkl"},
        "teachers.published": {"pickle": "edm"},
        "tables.digits.rows.3": {"teacher": "published", "sampler": "heun", "label": "EDM", "published": {"fd": 2}},
    }
    experiment = parse_experiment(demo_with(changes))
    assert experiment.inputs["edm"].file == "downloads/edm.pkl"
    assert experiment.teachers["published"].pickle == "edm"
    assert experiment.tables["digits"].rows[3].published["fd"].value == 2.0


@pytest.mark.parametrize(
    ("images", "every", "expected"),
    [
        (40_000, 10_000, (10_000, 20_000, 30_000, 40_000)),
        (45_000, 10_000, (10_000, 20_000, 30_000, 40_000, 45_000)),
        (30_000, 30_000, (30_000,)),
        (30_000, 40_000, (30_000,)),
    ],
)
def test_snapshots_are_named_by_counts_of_images_and_the_last_is_the_end(
    images: int, every: int, expected: tuple[int, ...]
) -> None:
    changes = {f"{D2O}.images": images, f"{D2O}.snapshot_every": every}
    assert parse_experiment(demo_with(changes)).runs["digits_d2o"].snapshots == expected


def test_the_run_document_is_the_run_with_every_default_and_is_plain_json() -> None:
    experiment = read_experiment(DEMO)
    document = run_document(experiment, "digits_d2o_f")
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    written = yaml.safe_load(DEMO.read_text())["runs"]["digits_d2o_f"]
    assert document.pop("run") == "digits_d2o_f"
    assert document.pop("snapshots") == list(experiment.runs["digits_d2o_f"].snapshots)
    assert document == written  # the demo states every option of this run
    network = run_document(experiment, "digits_edm")["network"]
    assert network["label_dropout"] == 0.0
    assert network["preconditioning"] == "edm"
    assert "teacher" not in run_document(experiment, "digits_edm")


def test_a_resolved_config_resolves_to_itself() -> None:
    experiment = read_experiment(DEMO)
    document = experiment_document(experiment)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert parse_experiment(document) == experiment
    assert "churn_max" not in document["samplers"]["heun"]  # infinite: JSON has no word for it, the class has


def test_the_document_of_a_run_says_which_of_its_backbones_are_timms() -> None:
    changes = {
        "backbones.vgg": {"timm": "vgg16_bn.tv_in1k", "input": "digits"},
        f"{D2O}.discriminator.backbones": ["digits", "vgg"],
    }
    experiment = parse_experiment(demo_with(changes))
    assert run_document(experiment, "digits_d2o")["timm"] == {"vgg": "vgg16_bn.tv_in1k"}
    assert "timm" not in run_document(experiment, "digits_edm")


def test_the_document_of_a_run_that_is_none_names_the_choices() -> None:
    with pytest.raises(ValueError, match="got 'd2o', .*: digits_backbone, digits_metric, digits_edm"):
        run_document(read_experiment(DEMO), "d2o")


@pytest.mark.parametrize(
    ("family", "place", "with_source"),
    [
        ("data", ("datasets", "x"), {"input": "digits"}),
        ("features", ("features", "x"), {"run": "digits_metric"}),
        ("networks", ("runs", "x", "network"), {"preconditioning": "edm"}),
        ("classifiers", ("runs", "x", "classifier"), {}),
        ("objectives", ("runs", "x", "objective"), {}),
        ("discriminators", ("runs", "x", "discriminator"), {"backbones": ["digits"]}),
        ("sampling", ("samplers", "x"), {}),
        ("metrics", ("metrics", "x"), {"features": "digits"}),
    ],
)
def test_every_choice_of_every_family_has_a_signature_that_configs_can_be_checked_against(
    family: str, place: tuple[str, ...], with_source: dict[str, Any]
) -> None:
    for choice in plugins.choices(family):
        document: Any = {"name": choice, **with_source, "no_such_option": 1}
        for step in reversed(place):
            document = {step: document}
        found = [problem for problem in resolve_components(document).problems if problem.place[-1] == "no_such_option"]
        assert [problem.text.startswith("unknown key") for problem in found] == [True]


def places_of(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    steps = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for step in steps:
        yield from places_of(value[step], (*place, step))


def test_whatever_stands_at_a_place_is_read_or_refused_line_by_line() -> None:
    values = itertools.cycle([None, "x", [], {"name": ["a"]}, -1, True, "9-1", {}, 1e400, "1e-4", [[]]])
    refused = 0
    for place in list(places_of(demo_with({})))[1::2]:
        document = demo_with({})
        holder = document
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = next(values)
        try:
            parse_experiment(document, source="config.yaml")
        except ConfigError as error:
            refused += 1
            assert error.problems
            assert all(line.startswith("config.yaml: ") and line.isprintable() for line in error.problems)
    assert refused > 100


DIFFAUGMENT = {"name": "diffaugment", "color": True, "translation": True, "cutout": False}
AUGMENT = {"name": "stylegan2_ada", "probability": 0.12, "operations": {"xflip": 1, "hue": 0.5}}


def test_an_augmentation_stands_in_the_run_document_and_counts_as_its_code() -> None:
    experiment = parse_experiment(demo_with({f"{D2O}.objective.augment": AUGMENT}))
    document = run_document(experiment, "digits_d2o")
    assert document["objective"]["augment"] == AUGMENT
    assert json.loads(json.dumps(document)) == document
    assert "onestep.augmentations.stylegan2_ada" in training_plugins(document)
    plain = run_document(parse_experiment(demo_with({})), "digits_d2o")
    assert "augment" not in plain["objective"]
    assert not any("augmentations" in module for module in training_plugins(plain))


@pytest.mark.parametrize(
    "augment",
    [
        DIFFAUGMENT,
        AUGMENT | {"probability": 0.0, "target": 0.6, "interval": 4, "ramp_images": 500_000},
        AUGMENT | {"target": None},
    ],
)
def test_every_augmentation_of_images_that_a_discriminator_sees_is_read(augment: dict[str, Any]) -> None:
    experiment = parse_experiment(demo_with({f"{D2O}.objective.augment": augment}))
    given = run_document(experiment, "digits_d2o")["objective"]["augment"]
    assert given == augment


def test_a_target_needs_a_discriminator() -> None:
    (problem,) = problems(demo_with({"runs.digits_edm.objective.augment": AUGMENT | {"target": 0.6}}))
    assert problem.startswith("config.yaml: runs.digits_edm.objective: augment: target: here is no discriminator")


def test_a_wrong_augmentation_is_refused_at_its_objective() -> None:
    (problem,) = problems(demo_with({f"{D2O}.objective.augment": AUGMENT | {"operations": {"xflp": 1}}}))
    assert problem.startswith(f"config.yaml: {D2O}.objective: augment: operation 'xflp': expected one of xflip, ")
    (problem,) = problems(demo_with({f"{D2O}.objective.augment": DIFFAUGMENT | {"cutout": "no"}}))
    assert problem == f"config.yaml: {D2O}.objective: augment: cutout 'no': expected true or false"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"runs.digits_edm.precision.discriminator": "bfloat16"},
            "runs.digits_edm.precision.discriminator: found bfloat16, but the run has no discriminator; take it away",
        ),
        (
            {"runs.digits_metric.precision": {"generator": "bfloat16"}},
            "runs.digits_metric.precision.generator: found bfloat16, but the run has no generator; take it away",
        ),
        (
            {f"{D2O}.compile.cuda_graphs": True},
            f"{D2O}.compile.cuda_graphs: found true, expected false without networks: true, because compiled networks "
            "are what is recorded",
        ),
        (
            {f"{D2O}.compile.fused_optimizer": True, f"{D2O}.optimizers.generator.name": "radam"},
            f"{D2O}.compile.fused_optimizer: found true, but torch has no fused radam, which trains the generator",
        ),
    ],
)
def test_options_of_speed_that_a_run_has_no_use_for_are_refused(changes: dict[str, Any], line: str) -> None:
    (problem,) = problems(demo_with(changes))
    assert problem.endswith(line)
