"""Class embeddings of a labelled dataset: the mean features of a backbone for each class.

StyleGAN-XL (arXiv:2202.00273, section 3.1) computes its embeddings of ImageNet in this way.
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

    Raises:
        ValueError: The images have no labels, a class has no images, or the images do not fit the backbone.
    """
    archive = ImageZip(source=data)
    if not archive.classes:
        raise ValueError(f"{data}: got images without labels, expected a class for each image")
    pixels, labels = (torch.from_numpy(array) for array in archive.read_all())
    table = class_means(backbone, pixels, labels=labels, classes=archive.classes, resolution=resolution)
    if not torch.isfinite(table).all():
        empty = sorted(set(range(archive.classes)) - set(labels.tolist()))
        raise ValueError(
            f"{data}: got no image of class {empty[0]}, expected at least one"
            if empty
            else f"{data}: got features that are not finite. Fix: check the weights of the backbone"
        )
    note = {"data_sha256": sha256_of_file(data), "images": len(archive), "resolution": resolution}
    write_class_embeddings(output, table, note=note)


@torch.no_grad()
def class_means(backbone: _Backbone, pixels: Tensor, *, labels: Tensor, classes: int, resolution: int) -> Tensor:
    """Return the mean of the last features over the pixels and over the images of each class, float32 [K, E].

    Args:
        backbone: The network, normalising by the statistics in its file.
        pixels: Images, uint8 [N, C, H, W].
        labels: Their classes, int64 [N].
        classes: K; the row of a class without images is NaN.
        resolution: Size to which images are resized.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = backbone.to(device)
    batches = (to_images(part.to(device)) for part in pixels.split(_BATCH))
    features = torch.cat([backbone(part, size=resolution)[-1].double().mean(dim=(2, 3)).cpu() for part in batches])
    # In float64, so that the mean of a thousand images is as exact as that of two.
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64).index_add_(0, labels, features)
    return (sums / torch.bincount(labels, minlength=classes)[:, None]).float()
