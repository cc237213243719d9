"""What the tests at full size run in processes of their own, so that each peak of memory is one recipe's.

Usage: python full_size_worker.py weights FOLDER
       python full_size_worker.py teacher FOLDER TEACHER_JSON
       python full_size_worker.py train FOLDER RUN_JSON OUTPUT
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import resource
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from image_archives import write_archive
from onestep import distributed
from onestep.checkpoints.snapshot import write_snapshot
from onestep.config.run import run_of
from onestep.networks import build_denoiser
from onestep.training.assignment import Inputs
from onestep.training.loop import train
from onestep.training.run import assemble

_TIMM = {
    "vgg16": "vgg16.tv_in1k",
    "vgg16_bn": "vgg16_bn.tv_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
    "deit_base": "deit_base_distilled_patch16_224.fb_in1k",
}
_LPIPS = (64, 128, 256, 512, 512)  # channels of its five maps


def weights(folder):
    """Write timm's networks with the random weights they begin with, and a table of class embeddings."""
    torch.manual_seed(0)
    for name, network in _TIMM.items():
        save_file(timm.create_model(network, pretrained=False).state_dict(), folder / f"{name}.safetensors")
    linear = {f"lin{place}.model.1.weight": torch.rand(1, width, 1, 1) for place, width in enumerate(_LPIPS)}
    save_file(linear, folder / "lpips.safetensors")
    (folder / "table.pkl").write_bytes(pickle.dumps({"embed": nn.Embedding(1000, 320)}, protocol=3))


def teacher(folder, config):
    """Write a teacher of that config, no parameter of it zero as none of a trained one is, and images for it."""
    torch.manual_seed(1)
    network = build_denoiser(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(float(name.endswith("weight")) + 0.1 * noise)
    write_snapshot(folder / "teacher.safetensors", network.state_dict(), config)
    size, classes = config["img_resolution"], config.get("label_dim", 0)
    pixels = np.random.RandomState(2).randint(256, size=(8, 3, size, size), dtype=np.uint8)
    labels = [None] * 8 if not classes else [index % classes for index in range(7)] + [classes - 1]
    write_archive(folder / "data.zip", zip(pixels, labels, strict=True))
    (folder / "teacher.json").write_text(json.dumps({"parameters": sum(p.numel() for p in network.parameters())}))


def digests(tensors):
    """Return the hash of each tensor's bytes, by name."""
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


def moved_shares(tensors, before):
    """Return which share of each tensor's entries is not what the file `before` holds, by name."""
    with safe_open(before, framework="pt") as file:
        return {name: float((tensor != file.get_tensor(name)).double().mean()) for name, tensor in tensors.items()}


def state_of(networks):
    """Return what an optimizer moves, and all other parameters and buffers, by role and name."""
    parts = [
        (f"{role}.{name}", tensor)
        for role, network in networks.items()
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    ]
    trained = {name: tensor.detach() for name, tensor in parts if tensor.requires_grad}
    return trained, {name: tensor.detach() for name, tensor in parts if not tensor.requires_grad}


def run(folder, weights_folder, document, output):
    """Train to the end and report what moved, how long it took, and the peak of memory."""
    distance, discriminator = document["objective"].get("distance", {}), document.get("discriminator") or {}
    names = [
        *discriminator.get("backbones", ()),
        *document["objective"].get("features", ()),
        *(distance[key] for key in ("trunk", "linear") if key in distance),
    ]
    backbones = {name: weights_folder / f"{name}.safetensors" for name in names}
    named = discriminator.get("class_embeddings")
    with distributed.joined() as ranks:
        files = Inputs(
            run=folder / "run.json",
            data=folder / "data.zip",
            teacher=folder / "teacher.safetensors",
            backbones=backbones,
            class_embeddings=None if named is None else weights_folder / "table.pkl",
            pairs=tuple(folder / f"{seeds}.npz" for seeds in document.get("pairs", {}).get("seeds", ())),
        )
        training = assemble(run_of(document), files=files, ranks=ranks)
        trained, held = state_of(training.networks)
        before = folder / "before.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in trained.items()}, before)
        held_before = digests(held)
        began = time.monotonic()
        done = train(training, folder=folder / "state", ranks=ranks, state_seconds=math.inf, code="")
        seconds = time.monotonic() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        held_after = digests(held)
        generator = training.networks["generator"]
        total = sum(p.numel() for p in generator.parameters())
        frozen = total - sum(tensor.numel() for name, tensor in trained.items() if name.startswith("generator."))
        report = {
            "parameters": total,
            "frozen_share": frozen / total,
            "held": sorted(held),
            "held_changed": sorted(name for name in held if held_before[name] != held_after[name]),
            "moved": moved_shares(trained, before),
            "arithmetic": done.get("arithmetic", {}),
            "seconds": seconds,
            "peak_mib": peak >> 10,
            "finite": all(bool(torch.isfinite(tensor).all()) for tensor in (*trained.values(), *held.values())),
        }
        output.write_text(json.dumps(report))


if __name__ == "__main__":
    verb, place, *rest = sys.argv[1:]
    if verb == "weights":
        weights(Path(place))
    elif verb == "teacher":
        teacher(Path(place), json.loads(rest[0]))
    else:
        run(Path(place), Path(rest[0]), json.loads(Path(rest[1]).read_text()), Path(rest[2]))
