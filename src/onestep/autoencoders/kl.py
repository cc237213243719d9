"""The autoencoder of Stable Diffusion (AutoencoderKL, arXiv:2112.10752), with the latents of DiT or those of EDM2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from onestep.autoencoders._kl_network import KLNetwork, Sizes
from onestep.checkpoints.autoencoder_folder import CODEC, read_autoencoder
from onestep.checkpoints.digests import known_digest
from onestep.checkpoints.snapshot import Snapshot, read_snapshot
from onestep.config.constraints import Constraint, Positive, SmallCount

__all__ = ["KL"]

_Numbers = Constraint(min_length=1, max_length=64)


class KL:
    """Encoder and decoder of an AutoencoderKL, and the scaling of its latents.

    `stable_diffusion`, of Stable Diffusion and DiT (arXiv:2212.09748): the network takes pixels as x / 127.5 - 1; an
    image is a draw of the posterior times `scaling`; pixels are 127.5 y + 128, clipped to [0, 255] and truncated.
    `edm2` (arXiv:2312.02696): it takes x / 255; an image is (draw - means) * 0.5 / deviations for each channel, so that
    its standard deviation is about 0.5, sigma_data of EDM's law; pixels are y clipped to [0, 1], times 255, truncated.
    `encode` takes the mean of the posterior; in training images are drawn, unless `posterior` is `mean`.
    """

    # Of the latents of ImageNet at 512 pixels by sd-vae-ft-mse, as EDM2 has them.
    edm2_means: ClassVar[tuple[float, ...]] = (5.81, 3.25, 0.12, -2.15)
    edm2_deviations: ClassVar[tuple[float, ...]] = (4.17, 4.62, 3.71, 3.28)
    edm2_std: ClassVar[float] = 0.5

    def __init__(
        self,
        *,
        weights: Path | str | Snapshot,
        latents: Literal["stable_diffusion", "edm2"],
        posterior: Literal["sample", "mean"] = "sample",
        scaling: Positive | None = None,
        means: Annotated[tuple[float, ...], _Numbers] | None = None,
        deviations: Annotated[tuple[Positive, ...], _Numbers] | None = None,
        rows: SmallCount = 4,
    ) -> None:
        """Read the network.

        Args:
            weights: A folder of diffusers with an AutoencoderKL, or what `onestep convert` makes of it (.safetensors),
                or what these contain.
            latents: Which of the two scalings.
            posterior: What an image is in training: a draw of its posterior, or the mean of it.
            scaling: Of `stable_diffusion`; by default that of the autoencoder's config, 0.18215.
            means: Of `edm2`, one for each latent channel; by default those of EDM2, as `deviations`.
            deviations: Likewise.
            rows: Images that pass through the network at once, which bounds the memory.

        Raises:
            ValueError: The file is damaged, is no autoencoder, or an option does not suit it.
        """
        path = Path("weights" if isinstance(weights, Snapshot) else weights)
        found = weights if isinstance(weights, Snapshot) else _read(path)
        if found.config.get("name") != CODEC:
            raise ValueError(f"{path}: got the network {found.config.get('name')!r}, expected an autoencoder, {CODEC}")
        for key, value in (("scaling", scaling), ("means", means), ("deviations", deviations)):
            if value is not None and (key == "scaling") != (latents == "stable_diffusion"):
                raise ValueError(f"{key}: got {value}, expected none with latents: {latents}. Fix: remove it")
        sizes = sizes_of(found.config)
        # Without memory and time for random weights.
        with torch.device("meta"):
            network = KLNetwork(sizes)
        network.load_state_dict(found.state_dict, strict=True, assign=True)
        self.network = network.requires_grad_(False).eval()
        self.channels, self.latent_channels, self.factor = sizes.channels, sizes.latent_channels, sizes.factor
        self.draws, self.rows = posterior == "sample", rows
        self._is_edm2 = latents == "edm2"
        shift, scale = [0.0], [found.config["scaling_factor"] if scaling is None else scaling]
        if self._is_edm2:
            shift = list(means or self.edm2_means)
            scale = [self.edm2_std / each for each in deviations or self.edm2_deviations]
            for key, given in (("means", shift), ("deviations", scale)):
                if len(given) != self.latent_channels:
                    of = f"one for each of the {self.latent_channels} latent channels of {path}"
                    raise ValueError(f"{key}: got {len(given)} numbers, expected {of}. Fix: give {key}")
        self._shift, self._scale = (torch.tensor(each)[:, None, None] for each in (shift, scale))
        digest = found.note["sha256"] if "sha256" in found.note else known_digest(path)
        self.origin: Mapping[str, Any] = {"weights_sha256": digest, "pixels": [0, 1] if self._is_edm2 else [-1, 1]}

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """Return mean and standard deviation of the latents of pixels, float32 [B, 2 Z, H / f, W / f], not scaled."""
        scaled = pixels.float() / 255 if self._is_edm2 else pixels.float() / 127.5 - 1
        return self._by_parts(self.network.to(pixels.device).moments, scaled)

    def drawn(self, moments: Tensor, normal: Tensor | None) -> Tensor:
        """Return (mean + std * normal - shift) * scale of moments [B, 2 Z, h, w]; without `normal`, of the mean."""
        mean, deviation = moments.chunk(2, dim=1)
        latents = mean if normal is None else mean + deviation * normal
        return (latents - self._shift.to(latents.device)) * self._scale.to(latents.device)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the mean of the posterior as images."""
        return self.drawn(self.moments(pixels), None)

    def pictures(self, images: Tensor) -> Tensor:
        """Return images [B, Z, h, w] decoded, float32 [B, C, f h, f w] in [-1, 1] up to overshoot, with a gradient.

        Part by part of `rows` images, so that with `network.recompute` the activations of one part alone are held.
        """
        decoded = self._decoded(images, padded=False)
        return 2 * decoded - 1 if self._is_edm2 else decoded

    @torch.no_grad()
    def decode(self, images: Tensor) -> Tensor:
        """Return images [B, Z, h, w] as pixels, uint8 [B, C, f h, f w]; the bytes do not depend on their number."""
        decoded = self._decoded(images, padded=True)
        if self._is_edm2:
            return (decoded.clip(0, 1) * 255).byte()
        return (127.5 * decoded + 128).clip(0, 255).byte()

    def _decoded(self, images: Tensor, *, padded: bool) -> Tensor:
        device = images.device
        latents = images.float() / self._scale.to(device) + self._shift.to(device)
        return self._by_parts(self.network.to(device).decode, latents, padded=padded)

    def _by_parts(self, function: Callable[[Tensor], Tensor], rows: Tensor, *, padded: bool = True) -> Tensor:
        """Call a function on a few rows at a time; with `padded` on as many each time, of which it may round alike."""
        made = []
        for part in rows.split(self.rows) if len(rows) else [rows]:
            missing = self.rows - len(part) if padded and len(part) else 0
            given = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            made.append(function(given)[: len(part)])
        return made[0] if len(made) == 1 else torch.cat(made)


def _read(path: Path) -> Snapshot:
    return read_autoencoder(path) if path.is_dir() or path.suffix == ".folder" else read_snapshot(path)


def sizes_of(config: Mapping[str, Any]) -> Sizes:
    """Return the architecture of a config as `read_autoencoder` returns it."""
    return Sizes(
        channels=config["in_channels"],
        latent_channels=config["latent_channels"],
        widths=tuple(config["block_out_channels"]),
        layers=config["layers_per_block"],
        groups=config["norm_num_groups"],
    )
