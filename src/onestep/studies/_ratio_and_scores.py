"""One ratio network, and two score networks of the same shape, fitted to `onestep.studies._smoothed_points`.

The three train at once, as one stack, on rows of their own; they share nothing, so each is the network that it would be
alone. Legend: B rows of a step, N held-out rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.arithmetic import default_device, products
from onestep.progress import live
from onestep.studies._smoothed_points import Rows, SmoothedPoints

Output = Literal["score", "noise"]

_RATIO, _CONDITIONAL, _MARGINAL = range(3)
_INPUTS, _OUTPUTS = 4, 2  # x, y, ln sigma; of the ratio network the first output counts
_SHOWN = 100  # steps between two refreshes of the progress


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How the networks are fitted; see `onestep.studies.gradient_bias` for the values."""

    layers: int
    width: int
    learning_rate: float
    batch: int
    steps: int
    levels: tuple[float, float]
    held_out: int
    score_output: Output


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """Held-out rows, and what the networks of one training estimate there, float64 [N, 2] on the CPU.

    Attributes:
        ratio: The gradient of the log ratio by x.
        conditional: The score of class y.
        marginal: The score of both classes together.
    """

    rows: Rows
    ratio: Tensor
    conditional: Tensor
    marginal: Tensor


class Stack(nn.Module):
    """Networks of one shape without shared weights; each layer is one batched product. Initialised as `nn.Linear`."""

    def __init__(self, count: int, *, sizes: tuple[int, ...], random: torch.Generator) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            for owner, rows in ((self.weights, fan_in), (self.biases, 1)):
                drawn = torch.rand((count, rows, fan_out), generator=random, device=random.device)
                owner.append(nn.Parameter((2 * drawn - 1) * fan_in**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [count, B, last size] of each network for rows of its own [count, B, first size]."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = F.silu(torch.baddbmm(bias, x, weight))
        return torch.baddbmm(self.biases[-1], x, self.weights[-1])


def estimates(points: SmoothedPoints, fit: Fit, *, seed: int, stepped: Callable[[Tensor], object]) -> Estimates:
    """Draw held-out rows, train the three networks from one seed, and return their estimates.

    `stepped` is called after each step with the losses [3] of ratio, conditional and marginal score.
    """
    device = default_device()
    random = torch.Generator(device).manual_seed(seed)
    sizes = (_INPUTS, *[fit.width] * fit.layers, _OUTPUTS)
    networks = Stack(3, sizes=sizes, random=random)
    held_out = points.draw(fit.held_out, levels=fit.levels, random=random)
    optimizer = torch.optim.Adam(networks.parameters(), lr=fit.learning_rate)
    with products(tf32=False):
        for _ in range(fit.steps):
            optimizer.zero_grad()
            losses = _losses(networks, points, fit, random=random)
            losses.sum().backward()  # each loss reaches the weights of its own network alone
            optimizer.step()
            stepped(losses.detach())
        return _estimated(networks, held_out, output=fit.score_output)


def _losses(networks: Stack, points: SmoothedPoints, fit: Fit, *, random: torch.Generator) -> Tensor:
    """Return the losses [3] of one step: logistic loss of the ratio, sigma^2-weighted squared errors of the scores."""
    rows = points.draw(3, fit.batch, levels=fit.levels, random=random)
    labels = rows.labels.clone()
    half = fit.batch // 2
    # The second half of the ratio's rows has labels that are independent of x.
    labels[_RATIO, half:] = torch.randint(2, (fit.batch - half,), generator=random, device=random.device) * 2.0 - 1
    outputs = networks(_inputs(rows.x, labels, rows.sigma))
    logits = outputs[_RATIO, :, 0]
    logistic = F.softplus(-logits[:half]).mean() + F.softplus(logits[half:]).mean()
    found = _weighted(outputs[1:], rows.sigma[1:], output=fit.score_output)
    errors = (found + rows.noise[1:]).square().sum(dim=-1).mean(dim=-1)  # the score of the noise is -noise / sigma
    return torch.cat([logistic[None], errors])


def _inputs(x: Tensor, labels: Tensor, sigma: Tensor) -> Tensor:
    """Return the inputs [3, B, 4] of rows x [3, B, 2]; the marginal score receives no label."""
    shown = labels * torch.tensor([1.0, 1.0, 0.0], device=labels.device)[:, None]
    return torch.cat([x, shown[..., None], sigma.log()[..., None]], dim=-1)


def _weighted(outputs: Tensor, sigma: Tensor, *, output: Output) -> Tensor:
    """Return sigma times the score."""
    return outputs * sigma[..., None] if output == "score" else outputs


def _estimated(networks: Stack, rows: Rows, *, output: Output) -> Estimates:
    x = rows.x.expand(3, -1, -1).clone().requires_grad_()
    labels, sigma = (each.expand(3, -1) for each in (rows.labels, rows.sigma))
    outputs = networks(_inputs(x, labels, sigma))
    (slopes,) = torch.autograd.grad(outputs[_RATIO, :, 0].sum(), x)
    scores = (_weighted(outputs, sigma, output=output) / sigma[..., None]).detach()
    at = Rows(**{name: _exact(value) for name, value in vars(rows).items()})
    found = slopes[_RATIO], scores[_CONDITIONAL], scores[_MARGINAL]
    ratio, conditional, marginal = map(_exact, found)
    return Estimates(rows=at, ratio=ratio, conditional=conditional, marginal=marginal)


def _exact(value: Tensor) -> Tensor:
    return value.cpu() if value.dtype == torch.int64 else value.to("cpu", torch.float64)


class Progress:
    """A progress bar over the steps of all trainings; without a terminal, a line every 10 seconds."""

    def __init__(self, name: str, *, steps: int) -> None:
        self._steps, self._bar = 0, live(total=steps, name=name, unit="steps")

    def __call__(self, losses: Tensor) -> None:
        """Count a step, and show its losses from time to time: reading them waits for the device."""
        self._steps += 1
        if self._steps % _SHOWN == 0 or self._steps == self._bar.total:
            found = dict(zip(("ratio", "conditional", "marginal"), losses.tolist(), strict=True))
            self._bar.set_postfix(found, refresh=False)
            self._bar.update(self._steps - self._bar.n)

    def close(self) -> None:
        """Finish the bar."""
        self._bar.close()
