"""Preconditioning laws: c_skip, c_out, c_in and c_noise as functions of sigma.

A denoiser is D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) around a network F (Karras et al., arXiv:2206.00364,
eq. 7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

_D2O_SIGMA_MIN = 0.002  # where D2O's denoiser is the identity


class Coefficients(NamedTuple):
    """The four factors of a law, each of the shape of sigma: c_skip, c_out, c_in, c_noise."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


@dataclass(frozen=True, kw_only=True)
class Law:
    """A preconditioning."""

    coefficients: Callable[[Tensor, float], Coefficients]  # from sigma and sigma_data
    container: torch.dtype | None  # of the noisy images and of the sum of the two terms; None keeps the images' type


def edm_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Return EDM's factors (arXiv:2206.00364, table 1)."""
    variance = sigma**2 + sigma_data**2
    skip, out = sigma_data**2 / variance, sigma * sigma_data / variance.sqrt()
    return Coefficients(skip=skip, out=out, input=1 / variance.sqrt(), noise=sigma.log() / 4)


def d2o_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Return D2O's factors: EDM's, shifted so that D is the identity at sigma 0.002.

    This is the boundary condition of consistency models (arXiv:2303.01469, appendix C); the denominator of c_out is
    not shifted.
    """
    above = sigma - _D2O_SIGMA_MIN
    skip, out = sigma_data**2 / (above**2 + sigma_data**2), above * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    return edm_coefficients(sigma, sigma_data)._replace(skip=skip, out=out)


LAWS: Mapping[str, Law] = MappingProxyType(
    {
        "edm": Law(coefficients=edm_coefficients, container=torch.float32),
        # float64 images are scaled and summed in float64 around the network, as in the D2O reference.
        "d2o": Law(coefficients=d2o_coefficients, container=None),
    }
)
