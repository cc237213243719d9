"""Images for people: of chosen seeds and classes, as a grid, as pictures, or as an array.

`onestep.sampling.generate` makes the images that are measured: it always calls the network with 64 rows, so that an
image has the same bytes in every batch. `draw` computes the requested images alone.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from onestep import components
from onestep.archive import write_arrays
from onestep.arithmetic import default_device, entry, record_of
from onestep.autoencoders import Codec
from onestep.autoencoders.identity import Identity
from onestep.checkpoints.snapshot import read_snapshot
from onestep.data._pixels import picture_of, png
from onestep.files import replacing, sha256_of_file, temporary_beside
from onestep.networks import Preconditioned, load_denoiser
from onestep.progress import patient
from onestep.published import origin_of, weights_file
from onestep.sampling import ROWS, PerSeedRandom, Sampler, Samples, dropped, sampled_in, sampling
from onestep.sampling._decoding import codec_of
from onestep.sampling._job import with_guide
from onestep.sheets import tiled

MANY_STEPS = {"name": "heun", "steps": 18}
"""The sampler of a network that takes many steps, as of EDM on CIFAR-10 (arXiv:2206.00364, table 7)."""
_MOST_IN_A_GRID = 4096
_TILE = 64  # pixels that a tile of a grid has at least; smaller images are enlarged, each pixel to a square
_GAP = 2


def write_images(
    weights: Path,
    output: Path,
    *,
    seeds: Sequence[int],
    chosen: str | None,
    sampler: Mapping[str, Any] | None,
    codec: Path | None = None,
) -> str:
    """Write one image per seed to `output`, and return what was done in one line.

    Args:
        weights: What a user names; see `onestep.published.weights_file`.
        output: A grid (.png), an array (.npz), or a new folder, which gets one PNG per seed.
        seeds: One for each image.
        chosen: Class of all images, by its number or name; None draws one from each seed.
        sampler: Its config block; None is that of the network.
        codec: The network that decodes latents; None is the one in the results.
    """
    check_output(output, images=len(seeds))
    try:
        built = None if sampler is None else components.build("sampling", sampler)
    except ValueError as error:
        raise ValueError(
            f"--sampler: {error}. Fix: name it with its steps, such as heun18, or as in config.yaml"
        ) from error
    weights = weights_file(weights)
    origin = origin_of(weights, read_snapshot(weights))
    options = sampler or origin.sampler or MANY_STEPS
    built = built or components.build("sampling", options)
    if (named := getattr(built, "guide", None)) is not None:
        built = with_guide(built, guide=weights_file(named))
    decoder = codec_of(weights, file=codec)
    device = default_device()
    network = load_denoiser(weights).to(device)
    index = None if chosen is None else class_index(chosen, count=network.label_dim, names=origin.class_names)
    samples = _shown(
        draw(network, built, seeds=seeds, classes=None if index is None else [index] * len(seeds), codec=decoder),
        weights=weights,
        count=len(seeds),
    )
    if output.suffix == ".png":
        write_grid(output, samples)
    elif output.suffix == ".npz":
        arithmetic = record_of(sampled_in(network, built), device=device)
        about = {"sampler": dict(options), "evaluations": built.nfe, **entry(arithmetic)}
        write_array(output, samples, seeds=seeds, weights=weights, about=about)
    else:
        write_pictures(output, samples, seeds=seeds)
    of_class = "" if index is None else f" of class {_class_title(index, origin.class_names)}"
    images = f"{len(seeds):,} image{'s' * (len(seeds) > 1)}{of_class} of seeds {seeds[0]}-{seeds[-1]}"
    note = f"; {found}" if (found := dropped(network, built)) else ""
    return f"{output}: {images}, from {weights} by {options['name']}, NFE {built.nfe}{note}"


def check_output(output: Path, *, images: int) -> None:
    """Check before any work where images are to be written. ValueError: The name is not one of the three forms."""
    if output.suffix == ".png" and images > _MOST_IN_A_GRID:
        fix = "Fix: write a folder or an .npz"
        raise ValueError(
            f"{output}: got {images:,} images for one picture, expected at most {_MOST_IN_A_GRID:,}. {fix}"
        )
    if output.suffix in (".png", ".npz"):
        if output.is_dir():
            raise ValueError(f"{output}: got a folder, expected the name of a file. Fix: choose another name")
        return
    if output.suffix and not output.is_dir():
        expected = "expected .png (a grid), .npz (an array), or no ending (a folder of pictures)"
        raise ValueError(f"{output}: got the ending {output.suffix!r}, {expected}. Fix: choose one of them")
    check_new(output)


def _shown(samples: Iterator[Samples], *, weights: Path, count: int) -> Iterator[Samples]:
    """Yield the same with a progress bar; an error names the weights."""
    with patient(name=weights.stem, total=count) as progress:
        try:
            for part in samples:
                progress.update(len(part.pixels))
                yield part
        except ValueError as error:
            raise ValueError(f"{weights}: {error}") from error


@torch.no_grad()
def draw(
    network: Preconditioned,
    sampler: Sampler,
    *,
    seeds: Sequence[int],
    classes: Sequence[int] | None = None,
    codec: Codec | None = None,
) -> Iterator[Samples]:
    """Yield one image per seed, in calls of at most 64 images.

    Noise and images are those of `generate` up to rounding, in the same arithmetic. `classes` has one class per seed;
    without it, a conditional network gets the class that is drawn from the seed.

    ValueError: The network is in training mode or takes no class, a class is not among its classes, or an image is not
    finite.
    """
    if network.training:
        raise ValueError("network: got training mode, where dropout changes images. Fix: call network.eval()")
    if classes is not None:
        _check_classes(classes, seeds, count=network.label_dim)
    device, size = next(network.parameters()).device, network.img_resolution
    for start in range(0, len(seeds), ROWS):
        group = seeds[start : start + ROWS]
        random = PerSeedRandom(group)
        noise = random.normal((network.img_channels, size, size)).to(device)
        labels = (
            random.integers(network.label_dim) if network.label_dim else None
        )  # drawn in any case, as in `generate`
        if classes is not None:
            labels = torch.tensor(classes[start : start + ROWS])
        condition = None if labels is None else F.one_hot(labels, network.label_dim).to(device, torch.float32)
        with sampling(network, sampler):
            images = sampler(network, noise, condition, random=random)
        if not torch.isfinite(images).all():
            fix = "Fix: check the sampler's noise levels, or choose another snapshot"
            raise ValueError(f"images of seeds {group[0]}-{group[-1]}: got NaN or infinity, expected numbers. {fix}")
        pixels = (codec or Identity()).decode(images)
        yield Samples(pixels.permute(0, 2, 3, 1).contiguous().cpu(), labels)


def _check_classes(classes: Sequence[int], seeds: Sequence[int], *, count: int) -> None:
    if not count:
        raise ValueError(f"class: got {classes[0]}, expected none, because the network is unconditional")
    if len(classes) != len(seeds):
        raise ValueError(f"classes: got {len(classes)}, expected one for each of {len(seeds)} seeds")
    if outside := [each for each in classes if not 0 <= each < count]:
        raise ValueError(f"class: got {outside[0]}, expected a number from 0 to {count - 1}")


def class_index(text: str, *, count: int, names: Sequence[str] = ()) -> int:
    """Return the class that a user names by its number or its name. ValueError: There is none."""
    if not count:
        raise ValueError(f"--class: got {text!r}, but the network is unconditional. Fix: omit --class")
    if text.isdecimal() and int(text) < count:
        return int(text)
    if text in names:
        return list(names).index(text)
    shown = f", or one of {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}" if names else ""
    raise ValueError(f"--class: got {text!r}, expected a number from 0 to {count - 1}{shown}")


def _class_title(index: int, names: Sequence[str]) -> str:
    """Return the number of a class, with its name where that is another text."""
    return f"{index} ({names[index]})" if index < len(names) and names[index] != str(index) else str(index)


def write_grid(path: Path, samples: Iterable[Samples]) -> None:
    """Write a PNG of all images, row by row in their order, in about as many columns as rows.

    Images below 64 pixels are enlarged by a whole factor, each pixel to a square.
    """
    pixels = np.concatenate([part.pixels.numpy() for part in samples])
    factor = max(1, _TILE // pixels.shape[1])
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    sheet = tiled(pixels, columns=math.ceil(math.sqrt(len(pixels))), gap=_GAP, ground=255)
    with replacing(path) as temporary:
        picture_of(sheet.transpose(2, 0, 1)).save(temporary, format="png")


def write_pictures(folder: Path, samples: Iterable[Samples], *, seeds: Sequence[int]) -> None:
    """Write one PNG per seed, `{seed:06}.png`; the folder appears when it is complete.

    ValueError: The folder has something in it, which would be measured with the images.
    """
    check_new(folder)
    target = folder.absolute()
    temporary = temporary_beside(target)
    temporary.mkdir(parents=True)
    try:
        names = iter(seeds)
        for part in samples:
            for image in part.pixels.numpy():
                (temporary / f"{next(names):06}.png").write_bytes(png(image.transpose(2, 0, 1)))
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Raise ValueError unless a folder is new or empty."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: got a file, expected a folder, or a name that ends in .png or .npz")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder}: got a folder with files in it, expected a new or empty one. Fix: choose another")


def write_array(
    path: Path, samples: Iterable[Samples], *, seeds: Sequence[int], weights: Path, about: Mapping[str, Any]
) -> None:
    """Write an .npz of the form of `results/samples/`, without the name of a model; `about` is how it was sampled."""
    parts = list(samples)
    labels = [np.full(len(part.pixels), -1) if part.labels is None else part.labels.numpy() for part in parts]
    arrays = {
        "pixels": np.concatenate([part.pixels.numpy() for part in parts]),
        "labels": np.concatenate(labels).astype(np.int64),
        "seeds": np.asarray(seeds, dtype=np.int64),
    }
    write_arrays(path, arrays, about={"subject": {}, "weights_sha256": sha256_of_file(weights), **about})
