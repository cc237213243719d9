"""What a network sees in the images of each class, on average: a table of class embeddings for a discriminator.

As StyleGAN-XL (arXiv:2202.00273, section 3.1) makes its table for ImageNet, from any labelled dataset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from onestep.checkpoints.class_embeddings import write_class_embeddings
from onestep.data import to_images
from onestep.data.image_zip import ImageZip
from onestep.files import sha256_of_file

_BATCH = 64


class _Backbone(Protocol):
    """Images [B, C, H, W] in [-1, 1] to feature maps, fine to coarse; see `onestep.discriminators`."""

    def __call__(self, images: Tensor, *, size: int) -> tuple[Tensor, ...]: ...

    def to(self, device: torch.device) -> _Backbone: ...


def write_class_means(backbone: _Backbone, data: Path, *, resolution: int, output: Path) -> None:
    """Write the table of a labelled dataset: float32 [K, E], E the channels of the backbone's last feature map.

    Args:
        backbone: The frozen network, normalising by the statistics in its file.
        data: The dataset archive.
        resolution: Size to which images are resized before the backbone.
        output: The table, `.safetensors`.

    Raises:
        ValueError: The images have no labels, or there is none of some class; or the backbone takes no such images.
    """
    archive = ImageZip(source=data)
    if not archive.classes:
        raise ValueError(f"{data}: its images have no labels, and class embeddings are means over classes")
    pixels, labels = (torch.from_numpy(array) for array in archive.read_all())
    table = class_means(backbone, pixels, labels=labels, classes=archive.classes, resolution=resolution)
    if not torch.isfinite(table).all():
        empty = sorted(set(range(archive.classes)) - set(labels.tolist()))
        raise ValueError(f"{data}: no image of class {empty[0]}" if empty else f"{data}: features that are not finite")
    note = {"data_sha256": sha256_of_file(data), "images": len(archive), "resolution": resolution}
    write_class_embeddings(output, table, note=note)


@torch.no_grad()
def class_means(backbone: _Backbone, pixels: Tensor, *, labels: Tensor, classes: int, resolution: int) -> Tensor:
    """Return the mean of the last features over the pixels, and over the images of each class, float32 [K, E].

    Args:
        backbone: The network.
        pixels: Images, uint8 [N, C, H, W].
        labels: Their classes, int64 [N].
        classes: K; the row of a class without images is not a number.
        resolution: Size to which images are resized.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = backbone.to(device)
    batches = (to_images(part.to(device)) for part in pixels.split(_BATCH))
    features = torch.cat([backbone(part, size=resolution)[-1].double().mean(dim=(2, 3)).cpu() for part in batches])
    # In double precision, so that the mean of a thousand images is as exact as that of two.
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64).index_add_(0, labels, features)
    return (sums / torch.bincount(labels, minlength=classes)[:, None]).float()
