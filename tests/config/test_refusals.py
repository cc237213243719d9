"""Wrong configs are refused in one line that names the place, the value, and what is expected."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from changed_demo import D2O, TAKEN_AWAY, demo_with, problems

from onestep import components

OBJECTIVES = ", ".join(components.choices("objectives"))

# Changes of the demo's config; the place of the problem; what the message contains.
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "unknown key of an objective": (
        {"runs.digits_d2o.objective.r1_gama": 1},
        "runs.digits_d2o.objective.r1_gama",
        (
            "name, loss, sigma, rows_per_rank, r1_gamma, r1_every, r1_gradient, augment, steps, middle, observe.",
            "mean r1_gamma",
            "unknown key",
        ),
    ),
    "unknown key of a run's average": (
        {"runs.digits_d2o.ema.half_live": 1},
        "runs.digits_d2o.ema.half_live",
        ("half_life, ramp_up, others, power.", "mean half_life", "unknown key"),
    ),
    "unknown key of a row": (
        {"tables.digits.rows.1": {"run": "digits_edm", "sampler": "heun", "smapler": "heun"}},
        "tables.digits.rows[1].smapler",
        ("run, runs, teacher, sampler, label, dataset, ema, published, nfe, images.", "mean sampler", "unknown key"),
    ),
    "a launch exception of an unknown run": (
        {"launch.runs": {"digits_d3o": {"hours": 2.0}}},
        "launch.runs.digits_d3o",
        ("digits_backbone, digits_metric, digits_edm, digits_d2o, digits_d2o_f.", "'digits_d3o'", "mean digits_d2o"),
    ),
    "a science key among a launch's exceptions": (
        {"launch.runs": {"digits_d2o": {"batch": 2}}},
        "launch.runs.digits_d2o.batch",
        (
            "nodes, processes_per_node, cpus_per_process, memory_gib, "
            "gpu_type, gpu_memory_gib, partition, account, qos, constraint, hours",
            "unknown key",
        ),
    ),
    "several nodes of this machine": ({"launch.nodes": 2}, "launch.nodes", ("`backend: local`", "got 2")),
    "processes that cannot share a batch": (
        {"launch.runs": {"digits_d2o": {"processes_per_node": 7}}},
        "launch.processes_per_node",
        ("7 processes train digits_d2o", "batch size of 64"),
    ),
    "images that do not divide into a discriminator's groups": (
        {"runs.digits_d2o.discriminator": {"name": "stylegan2"}, "runs.digits_d2o.micro_batch": 24},
        "runs.digits_d2o.discriminator.group_size",
        ("got 21 images", "64 in 3 parts", "a multiple of 4"),
    ),
    "a discriminator without classes for classes": (
        {
            "runs.digits_d2o.discriminator": {"name": "pooled_features", "backbones": ["digits"]},
            "runs.digits_d2o.conditional": True,
        },
        "runs.digits_d2o.discriminator.name",
        ("pooled_features", "conditional: true"),
    ),
    "class embeddings of a discriminator that has none": (
        {
            "class_embeddings": {"own": {"backbone": "digits", "dataset": "digits", "resolution": 16}},
            "runs.digits_d2o.conditional": True,
            "runs.digits_d2o.discriminator": {"name": "stylegan2", "class_embeddings": "own"},
        },
        "runs.digits_d2o.discriminator.class_embeddings",
        ("'own'", "stylegan2"),
    ),
    "an unknown scale": (
        {"runs.digits_d2o.discriminator.scales": "first"},
        "runs.digits_d2o.discriminator.scales",
        ("'last'",),
    ),
    "unknown section": (
        {"zebra": 1},
        "zebra",
        (
            "inputs, mirrors, datasets, teachers, backbones, class_embeddings, features, "
            "runs, samplers, metrics, tables, studies, launch, watch, container, storage, rerun",
            "unknown key",
        ),
    ),
    "an argument that the pipeline supplies": (
        {"runs.digits_backbone.classifier.classes": 10},
        "runs.digits_backbone.classifier.classes",
        ("name, width", "unknown key"),
    ),
    "missing key of a run": ({"runs.digits_d2o.batch": TAKEN_AWAY}, "runs.digits_d2o.batch", ("missing",)),
    "missing option of a network": (
        {"runs.digits_backbone.classifier.width": TAKEN_AWAY},
        "runs.digits_backbone.classifier.width",
        ("missing",),
    ),
    "missing key of a component": ({"metrics.fd.features": TAKEN_AWAY}, "metrics.fd.features", ("missing",)),
    "missing input of a dataset": ({"datasets.digits.input": TAKEN_AWAY}, "datasets.digits.input", ("missing",)),
    "missing name": (
        {"runs.digits_d2o.objective.name": TAKEN_AWAY},
        "runs.digits_d2o.objective.name",
        (f"{OBJECTIVES}, or", "missing"),
    ),
    "a name with capitals": (
        {"samplers.Heun": {"name": "heun", "steps": 18}},
        "samplers.Heun",
        ("'Heun'", "small letters"),
    ),
    "a number YAML reads as text": (
        {"runs.digits_d2o.objective.r1_gamma": "1e-4"},
        "runs.digits_d2o.objective.r1_gamma",
        ("'1e-4'", "1.0e-4"),
    ),
    "a number YAML reads as text, in a list": (
        {"runs.digits_d2o.optimizers.generator.betas": [0.0, "99e-2"]},
        "runs.digits_d2o.optimizers.generator.betas[1]",
        ("'99e-2'", "99.0e-2"),
    ),
    "an exponent without sign": (
        {"runs.digits_d2o.optimizers.generator.lr": "2.5E3"},
        "runs.digits_d2o.optimizers.generator.lr",
        ("'2.5E3'", "2.5e+3"),
    ),
    "a whole number YAML reads as text": (
        {"runs.digits_d2o.images": "5e6"},
        "runs.digits_d2o.images",
        ("'5e6'", "5_000_000", "whole number"),
    ),
    "a number in quotes": ({"runs.digits_d2o.ema.ramp_up": "0.05"}, "runs.digits_d2o.ema.ramp_up", ("'0.05'",)),
    "a whole number with a point": (
        {"runs.digits_d2o.images": 5000000.0},
        "runs.digits_d2o.images",
        ("5_000_000", "got 5000000", "whole number"),
    ),
    "a fraction for a whole number": (
        {"runs.digits_d2o.batch": 0.5},
        "runs.digits_d2o.batch",
        ("got 0", "whole number"),
    ),
    "a whole number for text": ({"tables.digits.title": 1}, "tables.digits.title", ("got 1", "expected text")),
    "text for a truth value": (
        {"runs.digits_d2o.conditional": "nope"},
        "runs.digits_d2o.conditional",
        ("'nope'", "true or false"),
    ),
    "a truth value for a number": (
        {"runs.digits_d2o.seed": True},
        "runs.digits_d2o.seed",
        ("got true", "whole number"),
    ),
    "nothing for a mapping": ({"tables": None}, "tables", ("got nothing", "a mapping")),
    "text for a component": ({"runs.digits_d2o.objective": "d2o"}, "runs.digits_d2o.objective", ("'d2o'", "a mapping")),
    "a list for a mapping": ({"runs": []}, "runs", ("got an empty list", "a mapping")),
    "a mapping for a list": (
        {"runs.digits_d2o.freeze": {"a": 1}},
        "runs.digits_d2o.freeze",
        ("got a mapping", "a list"),
    ),
    "a wrong type inside an option": (
        {"runs.digits_edm.network.channel_mult": [1, 2.5]},
        "runs.digits_edm.network.channel_mult[1]",
        ("got 2", "whole number"),
    ),
    "a value that is none of the choices": (
        {"runs.digits_d2o.objective.loss": "wgan"},
        "runs.digits_d2o.objective.loss",
        ("'wgan'", "'non_saturating'", "'hinge'"),
    ),
    "a preconditioning that is none": (
        {"runs.digits_edm.network.preconditioning": "vp"},
        "runs.digits_edm.network.preconditioning",
        ("'vp'", "'edm'", "'d2o'"),
    ),
    "zero images": ({"runs.digits_d2o.images": 0}, "runs.digits_d2o.images", ("got 0", "a number above 0")),
    "a share above one": (
        {"runs.digits_d2o.non_finite_limit": 1.5},
        "runs.digits_d2o.non_finite_limit",
        ("got 1", "up to 1"),
    ),
    "a number that is none": (
        {"runs.digits_d2o.ema.ramp_up": float("nan")},
        "runs.digits_d2o.ema.ramp_up",
        ("got nan", "finite number"),
    ),
    "one beta too many": (
        {"runs.digits_d2o.optimizers.generator.betas": [0.0, 0.9, 0.99]},
        "runs.digits_d2o.optimizers.generator.betas",
        ("got 3 entries", "at most 2"),
    ),
    "no backbone": (
        {"runs.digits_d2o.discriminator.backbones": []},
        "runs.digits_d2o.discriminator.backbones",
        ("got 0 entries", "at least 1"),
    ),
    "a digest that is none": ({"inputs.digits.sha256": "09f6"}, "inputs.digits.sha256", ("'09f6'", "64 hexadecimal")),
    "what the class itself refuses": ({"samplers.heun.steps": 1}, "samplers.heun", ("steps: got 1",)),
    "unknown objective": (
        {"runs.digits_d2o.objective.name": "d3o"},
        "runs.digits_d2o.objective.name",
        (f"{OBJECTIVES}.", "'d3o'", "mean d2o"),
    ),
    "unknown dataset": ({"runs.digits_d2o.dataset": "digit"}, "runs.digits_d2o.dataset", ("'digit'", "mean digits")),
    "missing teacher": ({"runs.digits_d2o.teacher": "edm"}, "runs.digits_d2o.teacher", ("'edm'",)),
    "missing backbone": (
        {"runs.digits_d2o.discriminator.backbones": ["digits", "vgg"]},
        "runs.digits_d2o.discriminator.backbones[1]",
        ("'vgg'",),
    ),
    "missing input": ({"datasets.digits.input": "numbers"}, "datasets.digits.input", ("'numbers'",)),
    "a teacher of a missing run": (
        {"teachers.digits.run": "digits_emd"},
        "teachers.digits.run",
        ("digits_edm, digits_d2o, digits_d2o_f.", "'digits_emd'", "mean digits_edm"),
    ),
    "a teacher of a missing pickle": ({"teachers.other": {"pickle": "edm"}}, "teachers.other.pickle", ("'edm'",)),
    "a backbone that is no classifier": (
        {"backbones.digits.run": "digits_edm"},
        "backbones.digits.run",
        ("digits_backbone, digits_metric.", "'digits_edm'", "mean digits_metric"),
    ),
    "a backbone of nothing": ({"backbones.vgg": {}}, "backbones.vgg", ("run, timm", "got none")),
    "a backbone of two things": (
        {"backbones.vgg": {"run": "digits_backbone", "timm": "vgg16_bn.tv_in1k", "input": "digits"}},
        "backbones.vgg",
        ("run, timm", "got run and timm"),
    ),
    "a run with weights from elsewhere": (
        {"backbones.digits.input": "digits"},
        "backbones.digits.input",
        ("last snapshot",),
    ),
    "a network of timm without weights": (
        {"backbones.vgg": {"timm": "vgg16_bn.tv_in1k"}},
        "backbones.vgg.input",
        ("missing",),
    ),
    "a network of timm with weights of a missing input": (
        {"backbones.vgg": {"timm": "vgg16_bn.tv_in1k", "input": "vgg"}},
        "backbones.vgg.input",
        ("'vgg'",),
    ),
    "a network that timm does not have": (
        {"backbones.vgg": {"timm": "vgg16_bm.tv_in1k", "input": "digits"}},
        "backbones.vgg.timm",
        ("'vgg16_bm.tv_in1k'", "mean vgg16_bn"),
    ),
    "a network of timm without the tag of its weights": (
        {"backbones.vgg": {"timm": "vgg16_bn", "input": "digits"}},
        "backbones.vgg.timm",
        ("'vgg16_bn'", "mean vgg16_bn.tv_in1k"),
    ),
    "statistics that are none": (
        {"runs.digits_d2o.discriminator.batch_norm": "probe"},
        "runs.digits_d2o.discriminator.batch_norm",
        ("'probe'", "'pretrained'", "'probed'"),
    ),
    "class embeddings that are none": (
        {
            "class_embeddings": {
                "published": {"input": "digits"},
                "own": {"backbone": "digits", "dataset": "digits", "resolution": 16},
            },
            "runs.digits_d2o.discriminator.class_embeddings": "imagenet",
            "runs.digits_d2o.conditional": True,
        },
        "runs.digits_d2o.discriminator.class_embeddings",
        ("published, own", "'imagenet'"),
    ),
    "class embeddings without classes": (
        {
            "class_embeddings": {
                "published": {"input": "digits"},
                "own": {"backbone": "digits", "dataset": "digits", "resolution": 16},
            },
            "runs.digits_d2o.discriminator.class_embeddings": "own",
        },
        "runs.digits_d2o.discriminator.class_embeddings",
        ("'own'",),
    ),
    "class embeddings of a missing input": (
        {
            "class_embeddings": {
                "published": {"input": "digits"},
                "own": {"backbone": "digits", "dataset": "digits", "resolution": 16},
            },
            "class_embeddings.published.input": "table",
        },
        "class_embeddings.published.input",
        ("'table'",),
    ),
    "class embeddings of a missing backbone": (
        {
            "class_embeddings": {
                "published": {"input": "digits"},
                "own": {"backbone": "digits", "dataset": "digits", "resolution": 16},
            },
            "class_embeddings.own.backbone": "vgg",
        },
        "class_embeddings.own.backbone",
        ("'vgg'",),
    ),
    "class embeddings of a missing dataset": (
        {
            "class_embeddings": {
                "published": {"input": "digits"},
                "own": {"backbone": "digits", "dataset": "digits", "resolution": 16},
            },
            "class_embeddings.own.dataset": "digit",
        },
        "class_embeddings.own.dataset",
        ("'digit'", "mean digits"),
    ),
    "class embeddings of images without a size": (
        {
            "class_embeddings": {
                "published": {"input": "digits"},
                "own": {"backbone": "digits", "dataset": "digits", "resolution": 16},
            },
            "class_embeddings.own.resolution": TAKEN_AWAY,
        },
        "class_embeddings.own.resolution",
        ("missing",),
    ),
    "class embeddings out of two sources": (
        {
            "class_embeddings": {
                "published": {"input": "digits"},
                "own": {"backbone": "digits", "dataset": "digits", "resolution": 16},
            },
            "class_embeddings.own.input": "digits",
        },
        "class_embeddings.own",
        ("input, backbone", "got input and backbone"),
    ),
    "published class embeddings of a dataset": (
        {
            "class_embeddings": {
                "published": {"input": "digits"},
                "own": {"backbone": "digits", "dataset": "digits", "resolution": 16},
            },
            "class_embeddings.published.dataset": "digits",
        },
        "class_embeddings.published.dataset",
        ("'digits'",),
    ),
    "features of a missing run": (
        {"features.digits.run": "vgg"},
        "features.digits.run",
        ("digits_backbone, digits_metric", "'vgg'"),
    ),
    "missing features": ({"metrics.pr.features": "inception"}, "metrics.pr.features", ("'inception'",)),
    "missing sampler": (
        {"tables.digits.rows.3": {"run": "digits_edm", "sampler": "huen"}},
        "tables.digits.rows[3].sampler",
        ("heun, one_step.", "'huen'", "mean heun"),
    ),
    "a row of a missing run": (
        {"tables.digits.rows.3": {"run": "edm", "sampler": "heun"}},
        "tables.digits.rows[3].run",
        ("digits_edm, digits_d2o, digits_d2o_f", "'edm'"),
    ),
    "a row of a missing teacher": (
        {"tables.digits.rows.3": {"teacher": "edm", "sampler": "heun"}},
        "tables.digits.rows[3].teacher",
        ("'edm'",),
    ),
    "a row of another dataset": (
        {
            "datasets.twins": {"name": "digits", "input": "digits", "resolution": 16},
            "tables.digits.dataset": "twins",
            "tables.digits.rows": [{"teacher": "digits", "sampler": "heun"}],
        },
        "tables.digits.rows[0]",
        ("dataset digits",),
    ),
    "a column of a missing metric": (
        {"tables.digits.columns.fd": "fid.frechet"},
        "tables.digits.columns.fd",
        ("fd.frechet, is.inception_score, pr.precision, pr.recall.", "'fid.frechet'", "mean fd.frechet"),
    ),
    "a column of a missing number": (
        {"tables.digits.columns.recall": "pr.recal"},
        "tables.digits.columns.recall",
        ("fd.frechet, is.inception_score, pr.precision, pr.recall.", "'pr.recal'", "mean pr.recall"),
    ),
    "a column that is no number": (
        {"tables.digits.columns.fd": "fd"},
        "tables.digits.columns.fd",
        ("'fd'", "metric.value"),
    ),
    "a curve of a missing column": (
        {"tables.digits.curves.column": "fid"},
        "tables.digits.curves.column",
        ("fd, is, precision, recall.", "'fid'", "mean fd"),
    ),
    "a published number of a missing column": (
        {"tables.digits.rows.3": {"run": "digits_edm", "sampler": "heun", "published": {"fid": 1.98}}},
        "tables.digits.rows[3].published.fid",
        ("fd, is, precision, recall.", "'fid'", "mean fd"),
    ),
    "the old key of a table's policy": (
        {"tables.digits.snapshot": "last"},
        "tables.digits.snapshot",
        ("title, caption, dataset, seeds, select, select_seeds, show, columns, rows, curves", "unknown key"),
    ),
    "a policy that is none": ({"tables.digits.select": "best"}, "tables.digits.select", ("'best'", "best_fd")),
    "the best of a missing column": (
        {"tables.digits.select": "best_fid"},
        "tables.digits.select",
        ("last, best_fd, best_is, best_precision, best_recall.", "'best_fid'", "mean best_fd"),
    ),
    "a number of the blocks that is none": (
        {"tables.digits.show": "median"},
        "tables.digits.show",
        ("'median'", "'mean'", "'first'", "'best'"),
    ),
    "seeds to select by where nothing is selected": (
        {"tables.digits.select_seeds": "9000-9999"},
        "tables.digits.select_seeds",
        ("'9000-9999'", "`select: last`"),
    ),
    "too few seeds to select by": (
        {"tables.digits.select": "best_is", "tables.digits.select_seeds": "9000-9003"},
        "tables.digits.select_seeds",
        ("at least 20", "4 seeds"),
    ),
    "seeds to select by that run backwards": (
        {"tables.digits.select": "best_fd", "tables.digits.select_seeds": "9-0"},
        "tables.digits.select_seeds",
        ("'9-0'", "first-last"),
    ),
    "an average that is the main one": (
        {"runs.digits_d2o.ema.others": [5000]},
        "runs.digits_d2o.ema.others[0]",
        ("got 5000",),
    ),
    "an average twice": (
        {"runs.digits_d2o.ema.others": [100, 200, 100]},
        "runs.digits_d2o.ema.others[2]",
        ("got 100",),
    ),
    "an average over no whole number of images": (
        {"runs.digits_d2o.ema.others": [0.5]},
        "runs.digits_d2o.ema.others[0]",
        ("got 0", "whole number"),
    ),
    "one profile, of which no other follows": (
        {"runs.digits_d2o.ema.power": [0.05]},
        "runs.digits_d2o.ema.power",
        ("got [0.05]", "two or more"),
    ),
    "a profile twice": (
        {"runs.digits_d2o.ema.power": [0.05, 0.1, 0.05]},
        "runs.digits_d2o.ema.power[2]",
        ("got 0.05",),
    ),
    "a profile without an exponent": (
        {"runs.digits_d2o.ema.power": [0.05, 0.3]},
        "runs.digits_d2o.ema.power[1]",
        ("got 0.3", "0.28"),
    ),
    "a row of a profile of a run that keeps none": (
        {"tables.digits.rows.3": {"run": "digits_d2o", "sampler": "heun", "ema": 0.08}},
        "tables.digits.rows[3].ema",
        ("got 0.08", "half-life of digits_d2o: 5000"),
    ),
    "a row of an average that there cannot be": (
        {"tables.digits.rows.3": {"run": "digits_d2o", "sampler": "heun", "ema": 0.5}},
        "tables.digits.rows[3].ema",
        ("got 0.5", "whole number of images", "0.28"),
    ),
    "a guide that is no teacher": (
        {"samplers.heun": {"name": "guided", "guide": "weak", "weight": 2.0}},
        "samplers.heun.guide",
        ("'weak'", "teachers"),
    ),
    "a guide without the class, of a network without classes": (
        {"samplers.heun": {"name": "guided", "weight": 2.0}},
        "tables.digits.rows[0]",
        ("got no guide", "digits_edm"),
    ),
    "a row of an average that the run does not keep": (
        {
            "runs.digits_d2o.ema.others": [100],
            "tables.digits.rows.3": {"run": "digits_d2o", "sampler": "heun", "ema": 200},
        },
        "tables.digits.rows[3].ema",
        ("got 200", "half-life of digits_d2o: 5000, 100"),
    ),
    "a row of a teacher's average": (
        {"tables.digits.rows.3": {"teacher": "digits", "sampler": "heun", "ema": 200}},
        "tables.digits.rows[3].ema",
        ("got 200", "teacher"),
    ),
    "a row without a sampler": (
        {"tables.digits.rows.3": {"run": "digits_d2o"}},
        "tables.digits.rows[3].sampler",
        ("missing",),
    ),
    "another method without a name": (
        {"tables.digits.rows.3": {"published": {"fd": 1.5}}},
        "tables.digits.rows[3].label",
        ("missing",),
    ),
    "another method through a sampler": (
        {"tables.digits.rows.3": {"label": "SiD", "published": {"fd": 1.5}, "sampler": "heun"}},
        "tables.digits.rows[3].sampler",
        ("'heun'",),
    ),
    "a measured row that has another method's keys": (
        {"tables.digits.rows.3": {"run": "digits_d2o", "sampler": "heun", "nfe": 1}},
        "tables.digits.rows[3].nfe",
        ("got 1",),
    ),
    "a published number that is none": (
        {"tables.digits.rows.3": {"label": "SiD", "published": {"fd": "1.5"}}},
        "tables.digits.rows[3].published.fd.value",
        ("'1.5'",),
    ),
    "an unknown key of a published number": (
        {"tables.digits.rows.3": {"label": "SiD", "published": {"fd": {"value": 1.5, "sorce": "x"}}}},
        "tables.digits.rows[3].published.fd.sorce",
        ("value, source.", "mean source", "unknown key"),
    ),
    "a dataset of a row and of its table": (
        {"tables.digits.rows.3": {"run": "digits_d2o", "sampler": "heun", "dataset": "digits"}},
        "tables.digits.rows[3].dataset",
        ("'digits'",),
    ),
    "a row without a dataset": (
        {
            "tables.digits.dataset": TAKEN_AWAY,
            "tables.digits.rows": [
                {"run": "digits_d2o", "sampler": "heun", "dataset": "digits"},
                {"run": "digits_edm", "sampler": "heun"},
            ],
        },
        "tables.digits.rows[1].dataset",
        ("missing",),
    ),
    "a row of another dataset than its own": (
        {
            "datasets.letters": {"name": "digits", "input": "digits", "resolution": 16},
            "tables.digits.dataset": TAKEN_AWAY,
            "tables.digits.rows": [{"run": "digits_d2o", "sampler": "heun", "dataset": "letters"}],
        },
        "tables.digits.rows[0]",
        ("dataset digits",),
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
        "tables.digits.rows[1]",
        ("with digits",),
    ),
    "a run with two beginnings": (
        {"runs.digits_d2o.classifier": {"name": "convnet", "width": 16}},
        "runs.digits_d2o",
        ("network, teacher, classifier", "got teacher and classifier"),
    ),
    "an input from nowhere": (
        {"inputs.other": {"licence": "CC0"}},
        "inputs.other",
        ("package, file, url, published", "got none"),
    ),
    "an input out of a package, without its digest": (
        {"inputs.digits.sha256": TAKEN_AWAY},
        "inputs.digits.sha256",
        ("missing",),
    ),
    "an input from two places": (
        {"inputs.other": {"file": "a.zip", "url": "https://example.org/a.zip"}},
        "inputs.other",
        ("package, file, url, published", "got file and url"),
    ),
    "an address of another kind": (
        {"inputs.other": {"url": "ftp://example.org/a.zip"}},
        "inputs.other.url",
        ("'ftp://example.org/a.zip'",),
    ),
    "an address without a file": (
        {"inputs.other": {"url": "https://example.org/"}},
        "inputs.other.url",
        ("'https://example.org/'",),
    ),
    "an address that only a person can use": (
        {"inputs.other": {"url": "https://drive.google.com/uc?id=1"}},
        "inputs.other.url",
        ("'https://drive.google.com/uc?id=1'", "`file`", "Google Drive"),
    ),
    "an input that is not in the registry": (
        {"inputs.other": {"published": "inception-2015-12-06"}},
        "inputs.other.published",
        ("'inception-2015-12-06'", "mean inception-2015-12-05"),
    ),
    "an input that is in the registry, with a digest": (
        {
            "inputs.other": {
                "published": "cifar10",
                "sha256": "0000000000000000000000000000000000000000000000000000000000000000",
            }
        },
        "inputs.other.sha256",
        ("fetch/registry.yaml",),
    ),
    "a size of what has no address": (
        {"inputs.other": {"file": "a.zip", "size": 3}},
        "inputs.other.size",
        ("`url`", "got a size"),
    ),
    "a mirror that is a path": (
        {"mirrors": {"https://example.org/": "/data"}},
        "mirrors.https://example.org/",
        ("'/data'",),
    ),
    "an input by hand with a place in a package": (
        {"inputs.other": {"file": "a.zip", "path": "b"}},
        "inputs.other.path",
        ("`file`",),
    ),
    "a teacher from nowhere": ({"teachers.digits": {}}, "teachers.digits", ("run, weights, pickle", "got none")),
    "features from two sources": (
        {"features.digits.input": "digits"},
        "features.digits",
        ("run, input", "got run and"),
    ),
    "a row of nothing": (
        {"tables.digits.rows.3": {"sampler": "heun"}},
        "tables.digits.rows[3]",
        ("run, teacher, or", "`published`", "got none"),
    ),
    "a teacher called like a run": (
        {"teachers.digits_d2o": {"run": "digits_edm"}},
        "teachers.digits_d2o",
        ("name of a run",),
    ),
    "a teacher of two files": (
        {"teachers.mine": {"weights": "digits", "pickle": "digits"}},
        "teachers.mine",
        ("weights and pickle",),
    ),
    "the weights of no input": (
        {"teachers.mine": {"weights": "nowhere"}},
        "teachers.mine.weights",
        ("nowhere",),
    ),
    "a preconditioning of a teacher that is a run": (
        {"teachers.digits.preconditioning": "d2o"},
        "teachers.digits.preconditioning",
        ("'d2o'",),
    ),
    "a preconditioning beside a network": (
        {"runs.digits_edm.preconditioning": "edm"},
        "runs.digits_edm.preconditioning",
        ("'edm'", "`network`"),
    ),
    "a frozen classifier": ({"runs.digits_metric.freeze": ["conv"]}, "runs.digits_metric.freeze", ("got a list",)),
    "a classifier without labels": (
        {"runs.digits_metric.conditional": False},
        "runs.digits_metric.conditional",
        ("got false",),
    ),
    "an objective without its discriminator": (
        {"runs.digits_d2o.discriminator": None},
        "runs.digits_d2o",
        ("`discriminator`", "missing"),
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
        "runs.digits_edm.discriminator",
        (" edm has no discriminator",),
    ),
    "a role without optimizer": (
        {"runs.digits_d2o.optimizers.discriminator": TAKEN_AWAY},
        "runs.digits_d2o.optimizers.discriminator",
        ("missing",),
    ),
    "an optimizer of no role": (
        {"runs.digits_edm.optimizers.critic": {"lr": 0.1, "betas": [0.0, 0.9], "eps": 0.1}},
        "runs.digits_edm.optimizers.critic",
        ("'critic'",),
    ),
    "an optimizer that is none": (
        {"runs.digits_d2o.optimizers.generator.name": "sgd"},
        "runs.digits_d2o.optimizers.generator.name",
        ("'sgd'", "'adam'", "'adamw'", "'radam'"),
    ),
    "snapshots closer than steps": (
        {"runs.digits_d2o.batch": 64, "runs.digits_d2o.snapshot_every": 63},
        "runs.digits_d2o.snapshot_every",
        ("got 63", "batch size (64)"),
    ),
    "runs in a circle": ({"teachers.digits.run": "digits_d2o_f"}, "runs", ("->",)),
    "seeds that are no block": (
        {"tables.digits.seeds": [2000]},
        "tables.digits.seeds[0]",
        ("got 2000", "expected text"),
    ),
    "seeds with another dash": (
        {"tables.digits.seeds": ["0..1999"]},
        "tables.digits.seeds[0]",
        ("'0..1999'", "first-last"),
    ),
    "seeds from last to first": (
        {"tables.digits.seeds": ["0-1999", "3999-2000"]},
        "tables.digits.seeds[1]",
        ("'3999-2000'", "first-last"),
    ),
    "blocks of other sizes": (
        {"tables.digits.seeds": ["0-1999", "2000-2999"]},
        "tables.digits.seeds[1]",
        ("1000 seeds", "expected 2000"),
    ),
    "blocks with common seeds": (
        {"tables.digits.seeds": ["0-1999", "2000-3999", "1999-3998"]},
        "tables.digits.seeds[2]",
        ("overlaps 0-1999",),
    ),
    "fewer seeds than splits": (
        {"tables.digits.seeds": ["0-8"], "metrics.is.splits": 10},
        "tables.digits.seeds[0]",
        ("at least 20", "9 seeds"),
    ),
    "a curve's seeds from last to first": (
        {"tables.digits.curves.seeds": "9-0"},
        "tables.digits.curves.seeds",
        ("'9-0'", "first-last"),
    ),
}


def test_a_discriminator_refuses_images_of_a_size_that_it_does_not_take():
    pictures = {"name": "images", "input": "digits", "resolution": 2048, "transform": "scale", "labels": "none"}
    lines = problems(demo_with({"runs.digits_d2o.discriminator": {"name": "stylegan2"}, "datasets.digits": pictures}))
    (line,) = [line for line in lines if line.startswith("config.yaml: runs.digits_d2o.discriminator: ")]
    assert all(part in line for part in ("stylegan2", "8, 16, 32", "datasets.digits: resolution 2048"))


@pytest.mark.parametrize(("changes", "place", "parts"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_config_is_refused_in_one_line(changes, place, parts):
    (line,) = problems(demo_with(changes))
    start = f"config.yaml: {place}: "
    assert line.startswith(start)
    assert [part for part in parts if part not in line.removeprefix(start)] == []


@pytest.mark.parametrize("text", ["1e-4", "1E4", "2.5e3", "1.e4", ".5e7", "-3e+2", "5e6"])
def test_the_spelling_that_a_message_offers_is_a_number_to_yaml(text):
    assert yaml.safe_load(f"r1_gamma: {text}") == {"r1_gamma": text}
    (line,) = problems(demo_with({f"{D2O}.objective.r1_gamma": text}))
    offered = yaml.safe_load(line.rpartition("write ")[2])
    assert (type(offered), offered) == (float, float(text))


def test_all_problems_are_listed_in_the_order_of_the_file():
    changes = {
        "tables.digits.snapshot": "best",
        f"{D2O}.objective.r1_gamma": "1e-4",
        f"{D2O}.objective.sigma": None,
        f"{D2O}.batch": "64",
        "samplers.heun.name": "euler",
        "datasets.digits.resolution": 16.0,
    }
    assert [line.split(": ")[1] for line in problems(demo_with(changes))] == [
        "datasets.digits.resolution",
        f"{D2O}.objective.sigma",
        f"{D2O}.objective.r1_gamma",
        f"{D2O}.batch",
        "samplers.heun.name",
        "tables.digits.snapshot",
    ]


def test_a_circle_over_several_runs_is_named():
    document = demo_with({"teachers.second": {"run": "digits_d2o"}, "teachers.digits.run": "digits_d2o_f"})
    document["runs"]["digits_d2o_f"]["teacher"] = "second"
    (line,) = problems(document)
    assert "digits_d2o -> digits_d2o_f -> digits_d2o" in line or "digits_d2o_f -> digits_d2o -> digits_d2o_f" in line


@pytest.mark.parametrize(
    ("changes", "place", "part"),
    [
        (
            {"runs.digits_edm.precision.discriminator": "bfloat16"},
            "runs.digits_edm.precision.discriminator",
            "bfloat16",
        ),
        (
            {"runs.digits_metric.precision": {"generator": "bfloat16"}},
            "runs.digits_metric.precision.generator",
            "bfloat16",
        ),
        ({"runs.digits_metric.recompute": True}, "runs.digits_metric.recompute", "classifier"),
        ({f"{D2O}.frozen_precision": "bfloat16"}, f"{D2O}.frozen_precision", "freeze"),
        ({"runs.digits_metric.shard": True}, "runs.digits_metric.shard", "classifier"),
        ({f"{D2O}.shard": True, f"{D2O}.compile.networks": True}, f"{D2O}.compile.networks", "shard"),
        ({f"{D2O}.shard": True, f"{D2O}.compile.channels_last": True}, f"{D2O}.compile.channels_last", "shard"),
        ({f"{D2O}.frozen_precision": "float16"}, f"{D2O}.frozen_precision", "bfloat16"),
        ({f"{D2O}.micro_batch": 0}, f"{D2O}.micro_batch", "0"),
        ({f"{D2O}.compile.cuda_graphs": True}, f"{D2O}.compile.cuda_graphs", "networks: true"),
        (
            {f"{D2O}.compile.fused_optimizer": True, f"{D2O}.optimizers.generator.name": "radam"},
            f"{D2O}.compile.fused_optimizer",
            "radam",
        ),
        ({f"{D2O}.optimizers.generator.weight_decay": -0.1}, f"{D2O}.optimizers.generator.weight_decay", "-0.1"),
        ({f"{D2O}.optimizers.generator.clip_norm": 0}, f"{D2O}.optimizers.generator.clip_norm", "above 0"),
        (
            {f"{D2O}.optimizers.generator.schedule": {"name": "inverse_sqrt"}},
            f"{D2O}.optimizers.generator.schedule.decay_from",
            "missing",
        ),
        (
            {f"{D2O}.optimizers.generator.schedule": {"name": "constant", "final": 0.5}},
            f"{D2O}.optimizers.generator.schedule.final",
            "0.5",
        ),
        (
            {f"{D2O}.optimizers.generator.schedule": {"name": "cosine", "decay_from": 5}},
            f"{D2O}.optimizers.generator.schedule.decay_from",
            "5",
        ),
        (
            {f"{D2O}.optimizers.generator.schedule": {"warmup": 40_000}},
            f"{D2O}.optimizers.generator.schedule.warmup",
            "40000",
        ),
        (
            {f"{D2O}.optimizers.generator.schedule": {"warm_up": 4}},
            f"{D2O}.optimizers.generator.schedule.warm_up",
            "warmup",
        ),
        ({f"{D2O}.codec": {"name": "vae"}}, f"{D2O}.codec.name", "vae"),
        ({"studies": {"x": {"name": "no_such_study"}}}, "studies.x.name", "no_such_study"),
        ({"watch": {"numbers": {"fid": 100}}}, "watch.numbers.fid", "fd"),
        ({"watch": {"numbers": {"fd": 1}}}, "watch.numbers.fd", "at least"),
        ({"watch": {"numbers": {"fd": "10_000 images"}}}, "watch.numbers.fd", "a whole number"),
        ({"watch": {"fid": 100}}, "watch.fid", "numbers"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(changes, place, part):
    (line,) = problems(demo_with(changes))
    assert line.startswith(f"config.yaml: {place}: ") and part in line
