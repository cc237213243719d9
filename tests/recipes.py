"""The paper's five D2O-F runs (arXiv:2506.09376, train.sh of its code), each as the document that trains it."""

from __future__ import annotations

from typing import Any

from onestep.config import parse_experiment, run_document

RECIPES = ("cifar10_uncond_d2o_f", "cifar10_cond_d2o_f", "afhqv2_d2o_f", "ffhq_d2o_f", "imagenet64_d2o_f")


def recipe(run: str) -> dict[str, Any]:
    """Return what run.yaml would hold for one of the runs."""
    return run_document(parse_experiment(_EXPERIMENT), run)


def _run(dataset: str, *, eyes: list[str], batch: int, images: int, rates: tuple[float, float], **more: Any) -> Any:
    """Return the block of a run on 4 GPUs; `rates` are those of generator and discriminator, as published."""
    adam = {"name": "adam", "betas": [0.0, 0.99], "eps": 1.0e-8}
    conditional = more.get("conditional", False)
    table = {"class_embeddings": "imagenet"} if conditional else {}
    return {
        "dataset": dataset,
        "conditional": conditional,
        "teacher": more["teacher"],
        "preconditioning": "d2o",
        "dropout": 0.0,
        "freeze": ["conv", "proj"],
        "objective": {
            "name": "d2o",
            "loss": "non_saturating",
            "sigma": 80.0,
            "rows_per_rank": batch / 4,
            "r1_gamma": 1.0e-4,
            "r1_every": 16,
        },
        "discriminator": {
            "name": "projected",
            "backbones": eyes,
            "channels": 64,
            "resolution": 224,
            "batch_norm": "probed",
            "projection": "per_rank",
            **table,
        },
        "optimizers": {
            role: {**adam, "lr": rate} for role, rate in zip(("generator", "discriminator"), rates, strict=True)
        },
        "ema": {"half_life": more.get("half_life", 500_000), "ramp_up": 0.05},
        "batch": batch,
        "images": images,
        "snapshot_every": 250_000,
        "non_finite_limit": 0.01,
        "seed": 42,
    }


_CONVOLUTIONS, _WITH_TRANSFORMER = ["vgg16_bn", "lite0"], ["deit", "lite0"]
_CIFAR = {"eyes": _CONVOLUTIONS, "batch": 256, "images": 5_000_000, "rates": (1.0e-4, 1.0e-4)}
_FACES = {"eyes": _WITH_TRANSFORMER, "batch": 256, "images": 10_000_000, "rates": (2.0e-5, 4.0e-5)}
_IMAGENET = {"eyes": _WITH_TRANSFORMER, "batch": 512, "images": 10_000_000, "rates": (8.0e-6, 4.0e-5)}
_TEACHERS = ("cifar10_uncond", "cifar10_cond", "afhqv2", "ffhq", "imagenet64")
_TIMM = {
    "vgg16_bn": "vgg16_bn.tv_in1k",
    "lite0": "tf_efficientnet_lite0.in1k",
    "deit": "deit_base_distilled_patch16_224.fb_in1k",
}
_EXPERIMENT = {
    "inputs": {name: {"file": f"/data/{name}"} for name in (*_TEACHERS, *_TIMM, "images", "table")},
    "datasets": {
        name: {"name": "image_zip", "input": "images"} for name in ("cifar10", "afhqv2", "ffhq", "imagenet64")
    },
    "teachers": {name: {"pickle": name} for name in _TEACHERS},
    "backbones": {name: {"timm": timm, "input": name} for name, timm in _TIMM.items()},
    "class_embeddings": {"imagenet": {"input": "table"}},
    "runs": {
        "cifar10_uncond_d2o_f": _run("cifar10", teacher="cifar10_uncond", **_CIFAR),
        "cifar10_cond_d2o_f": _run("cifar10", teacher="cifar10_cond", conditional=True, **_CIFAR),
        "afhqv2_d2o_f": _run("afhqv2", teacher="afhqv2", **_FACES),
        "ffhq_d2o_f": _run("ffhq", teacher="ffhq", **_FACES),
        "imagenet64_d2o_f": _run(
            "imagenet64", teacher="imagenet64", conditional=True, half_life=50_000_000, **_IMAGENET
        ),
    },
}
