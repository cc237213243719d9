"""A generator of several evaluations: a chain of a denoiser's estimates, each moved on to the next lower noise level.

The multi-step generators of D2O (arXiv:2405.20750, figure 2; github.com/Zyriix/D2O, its loss and its samplers). The
released code passes the next noise level to the network as well, which its networks do not take; so do these not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onestep import components

if TYPE_CHECKING:
    from torch import Tensor

MIDDLE = 0.8
"""Second noise level of two steps in the released training script; the default of its sampler is 1."""

SIGMA_MIN, RHO = 0.002, 7.0  # end and exponent of the grid of more steps: EDM's (arXiv:2206.00364, eq. 5)


_MOST_STEPS = 64  # of `Few`, the bound of configs
_SIGMA = 80.0  # the default of the sampler one_step


def chain_levels(steps: int, *, sigma: float, middle: float | None = None) -> tuple[float, ...]:
    """Return the noise levels of the evaluations, one for each step, the highest, `sigma`, first.

    Two steps evaluate at `sigma` and at `middle`. N > 2 steps evaluate at the upper ends of N equal intervals of
    sigma^(1/7) between 0.002 and `sigma`.

    Raises:
        ValueError: No step, a middle with another number of steps than two or outside [0.002, `sigma`], or several
            steps below 0.002.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    if middle is not None and steps != 2:
        raise ValueError(f"middle: got {middle} with steps {steps}, expected none. Fix: steps 2, or remove it")
    if steps == 1:
        return (sigma,)
    if not sigma > SIGMA_MIN:
        raise ValueError(f"sigma: got {sigma}, expected a noise level above {SIGMA_MIN} for {steps} steps")
    if steps == 2:
        level = MIDDLE if middle is None else middle
        if not SIGMA_MIN <= level <= sigma:
            raise ValueError(f"middle: got {level}, expected a noise level from {SIGMA_MIN} to sigma ({sigma})")
        return (sigma, level)
    low, high = SIGMA_MIN ** (1 / RHO), sigma ** (1 / RHO)
    return (sigma, *((high + (1 - index / steps) * (low - high)) ** RHO for index in range(steps - 1, 0, -1)))


def chained(
    generator: Callable[..., Tensor], x: Tensor, condition: Tensor | None, *, levels: Sequence[float]
) -> Tensor:
    """Return images [B, C, H, W] of noisy images x [B, C, H, W] of the first of the noise `levels`, which descend.

    Between two levels s > t, x moves along the line to the estimate G(x; s): x + (s - t) (G(x; s) - x) / s. The last
    estimate is the result; with one level it is the only one. Gradients flow through all evaluations.
    """
    for level, following in zip(levels, levels[1:], strict=False):
        estimate = generator(x, x.new_full((len(x),), level), condition)
        x = x + (level - following) * (estimate - x) / level
    return generator(x, x.new_full((len(x),), levels[-1]), condition)


def sampler_for(objective: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the sampler, a block of the config, for which an objective's block trains: of one step, or a chain.

    None if the objective does not fix the number of steps. ValueError: It refuses an option.
    """
    steps = getattr(components.build_outline("objectives", objective), "samples_in", None)
    if steps is None:
        return None
    if steps == 1:
        return {"name": "one_step", **_numbers(objective, "sigma")}
    return {"name": "chain", "steps": steps, **_numbers(objective, "sigma", "middle")}


def _numbers(objective: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: objective[key] for key in keys if isinstance(objective.get(key), (int, float))}


def sampler_misfit(sampler: Mapping[str, Any], *, steps: int | None, sigma: float | None = None) -> str | None:
    """Return why a sampler, a block of the config, cannot sample a generator that is trained in a chain of `steps`.

    None if it can. A generator of no fixed number of steps may be sampled in any way, one of one step also by solvers,
    and in one step at the noise level `sigma` alone, if that is given; a sampler from outside may be a chain; and
    another middle than in training is a choice of the sampling.
    """
    name = sampler["name"]
    if steps == 1 and name == "one_step" and sigma is not None and sampler.get("sigma", _SIGMA) != sigma:
        found = f"got the sampler one_step at sigma {sampler.get('sigma', _SIGMA):g}"
        return f"{found}, expected {sigma:g}, as in training. Fix: {{name: one_step, sigma: {sigma:g}}}"
    own = sampler.get("steps", 2) if name == "chain" else None
    if steps is None or steps == 1 or own == steps or name not in ("chain", "one_step", "heun", "ddpm", "guided"):
        return None
    found = f"{name} of {own} steps" if name == "chain" else name
    return f"got the sampler {found}, expected chain with steps: {steps}, as in training. Fix: choose it"


def sampler_in(note: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the sampler in the note of a snapshot, which one has whose law does not imply it; else None."""
    found = note.get("sampler")
    if not isinstance(found, dict) or found.get("name") not in ("chain", "one_step"):
        return None
    steps = 1 if found["name"] == "one_step" else found.get("steps")
    numbers = [value for key, value in found.items() if key != "name"]
    is_sane = isinstance(steps, int) and 0 < steps <= _MOST_STEPS and all(isinstance(n, (int, float)) for n in numbers)
    return found if is_sane else None
