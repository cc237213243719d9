"""Trains the small autoencoder of architectures.yaml on the demo's digits and writes it in diffusers' format.

Usage: pip install diffusers==0.35.1; python trials/autoencoder/make.py [FOLDER]
The folder beside this file has its result. Loss: the mean over pixels of the squared error, plus 1e-4 times the
divergence of the posterior from N(0, 1) for each latent. Images are shifted by up to 2 pixels.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from onestep.data.digits import Digits

STEPS, BATCH, RATE, DIVERGENCE, SHIFT = 4_000, 64, 2e-3, 1e-4, 2


def main(folder: Path) -> None:
    """Train, print the error of the last steps every 500, and write the folder."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = _digits()
    model = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    errors = []
    for step in range(1, STEPS + 1):
        batch = _shifted(images[torch.randint(len(images), (BATCH,))])
        posterior = model.encode(batch).latent_dist
        error = F.mse_loss(model.decode(posterior.sample()).sample, batch)
        loss = error + DIVERGENCE * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        errors.append(error.item())
        if step % 500 == 0:
            print(f"{step:,} of {STEPS:,} steps, squared error {sum(errors[-500:]) / 500:.5f}", flush=True)
    with torch.no_grad():
        deviation = model.encode(images).latent_dist.mean.std().item()
    model.register_to_config(scaling_factor=1 / deviation)
    print(f"standard deviation of the latents {deviation:.4f}")
    model.save_pretrained(folder)


def _digits() -> torch.Tensor:
    """Return the images of the demo, float32 [1797, 1, 16, 16] in [-1, 1]."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    data = Digits(source=Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", resolution=16)
    return torch.stack([torch.from_numpy(data[index][0]) for index in range(len(data))]) / 127.5 - 1


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """Return images, all shifted down and right by the same random number of pixels; border pixels are repeated."""
    side = images.shape[-1]
    down, right = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
    return F.pad(images, (SHIFT,) * 4, mode="replicate")[..., down : down + side, right : right + side]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
