"""The laws of denoisers: c_skip, c_out, c_in and c_noise as functions of sigma.

Noisy images are y = x + sigma n; the denoiser around a network F is D(y; sigma) = c_skip y + c_out F(c_in y; c_noise)
(Karras et al., arXiv:2206.00364, eq. 7). `edm` and `d2o` share the scale and the noise number that F receives, so a
network of one runs in the other; those of `ddpm` and `flow` are of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]  # c_skip, c_out, c_in, c_noise, each of the shape of sigma

_D2O_SIGMA_MIN = 0.002  # where D2O's denoiser is the identity
_NEAR = 1e-3  # of a whole time, which is then meant: single precision moves it by 1e-5

# The process of DDPM (arXiv:2006.11239, section 4): a thousand times, variances that rise linearly.
TIMES, FIRST_BETA, LAST_BETA = 1000, 1e-4, 0.02
_DDPM_RANGE = (0.010000500, 157.40728)  # sigma of times 0 and 999


class Law(NamedTuple):
    """A law, and the noise levels of its networks' training."""

    coefficients: Callable[[Tensor, float], Coefficients]  # of sigma and the standard deviation of the data
    # Type of the noisy images and of the sum of the two terms; None keeps the images' type: float64 images are scaled
    # and summed in float64 around the network, as in the D2O reference.
    container: torch.dtype | None = None
    sigma_min: float = 0.0
    sigma_max: float = float("inf")


def edm_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Return EDM's factors (arXiv:2206.00364, table 1)."""
    variance = sigma**2 + sigma_data**2
    return sigma_data**2 / variance, sigma * sigma_data / variance.sqrt(), 1 / variance.sqrt(), sigma.log() / 4


def d2o_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Return D2O's factors: EDM's, shifted so that D is the identity at sigma 0.002.

    This is the boundary condition of consistency models (arXiv:2303.01469, appendix C); the denominator of c_out is
    not shifted.
    """
    above = sigma - _D2O_SIGMA_MIN
    skip, out = sigma_data**2 / (above**2 + sigma_data**2), above * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    return skip, out, *edm_coefficients(sigma, sigma_data)[2:]


def ddpm_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Return the factors of a network that returns the noise: D = y - sigma F(y / sqrt(1 + sigma^2); t).

    The image of DDPM at time t is y / sqrt(1 + sigma^2) with sigma^2 = (1 - a) / a, a its share of the data's variance
    (arXiv:2206.00364, table 1, row VP, with DDPM's discrete times). `sigma_data` has no part in it.
    """
    return torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt(), ddpm_time(sigma)


def flow_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Return the factors of a network that returns the velocity x - n of the line from noise (t = 0) to data (t = 1).

    With t = 1 / (1 + sigma), the image on the line is t y (rectified flow, arXiv:2209.03003; the direction of time of
    SiT, arXiv:2401.08740). `sigma_data` has no part in it.
    """
    time = 1 / (1 + sigma)
    return time, sigma * time, time, time


def ddpm_sigmas(device: torch.device | str | None = None) -> Tensor:
    """Return the noise level of each time of DDPM, float64 [1000], from 0.0100 to 157.407.

    Times begin at 0, which has noise as well. Source: arXiv:2006.11239, section 4: sigma^2 = (1 - a) / a with a the
    product of 1 - beta up to that time.
    """
    betas = torch.linspace(FIRST_BETA, LAST_BETA, TIMES, dtype=torch.float64, device=device)
    kept = (1 - betas).cumprod(0)
    return ((1 - kept) / kept).sqrt()


def ddpm_time(sigma: Tensor) -> Tensor:
    """Return the time of noise levels, float32 of their shape in [0, 999]: ln sigma is interpolated between times.

    Exact at the levels of whole times; levels outside of the range have the time of the nearest one.
    """
    levels, wanted = ddpm_sigmas(sigma.device).log(), sigma.to(torch.float64).log().contiguous()
    above = torch.searchsorted(levels, wanted).clamp(1, TIMES - 1)
    low, high = levels[above - 1], levels[above]
    time = (above - 1 + (wanted - low) / (high - low)).clamp(0, TIMES - 1)
    return torch.where((time - time.round()).abs() < _NEAR, time.round(), time).to(torch.float32)


LAWS: Mapping[str, Law] = {
    "edm": Law(edm_coefficients, torch.float32),
    "d2o": Law(d2o_coefficients),
    "ddpm": Law(ddpm_coefficients, None, *_DDPM_RANGE),
    "flow": Law(flow_coefficients),
}
