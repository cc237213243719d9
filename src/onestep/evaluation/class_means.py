"""Class embeddings: the mean features of a backbone for each class (StyleGAN-XL, arXiv:2202.00273, section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from onestep.arithmetic import computing, default_device, entry, record_of
from onestep.checkpoints.digests import checked_digest
from onestep.checkpoints.published_weights import write_class_embeddings
from onestep.data import to_images
from onestep.data.image_zip import ImageZip

if TYPE_CHECKING:
    from onestep.discriminators import Backbone

_BATCH = 64


def write_class_means(backbone: Backbone, data: Path, *, resolution: int, output: Path) -> None:
    """Write the means of the last features of a backbone with E channels over pixels and images, float32 [K, E].

    Images are resized to `resolution` before the backbone, which normalises by the statistics in its file. ValueError:
    The images have no labels, a class has no images, or the images do not fit the backbone.
    """
    digest, archive = checked_digest(data), ImageZip(source=data)
    if not archive.classes:
        raise ValueError(f"{data}: got images without labels, expected a class for each image")
    pixels, labels = (torch.from_numpy(array) for array in archive.read_all())
    device = default_device()
    backbone = backbone.to(device)
    batches = (to_images(part.to(device)) for part in pixels.split(_BATCH))
    with computing("float32", device=device):
        features = torch.cat([backbone(part, size=resolution)[-1].double().mean(dim=(2, 3)).cpu() for part in batches])
    # In float64, so that the mean of a thousand images is as exact as that of two.
    sums = torch.zeros(archive.classes, features.shape[1], dtype=torch.float64).index_add_(0, labels, features)
    table = (sums / torch.bincount(labels, minlength=archive.classes)[:, None]).float()
    if not torch.isfinite(table).all():
        empty = sorted(set(range(archive.classes)) - set(labels.tolist()))
        raise ValueError(
            f"{data}: got no image of class {empty[0]}, expected at least one"
            if empty
            else f"{data}: got features that are not finite. Fix: check the weights of the backbone"
        )
    note = {"data_sha256": digest, "images": len(archive), "resolution": resolution}
    note |= entry(record_of("float32", device=device))
    write_class_embeddings(output, table, note=note)
