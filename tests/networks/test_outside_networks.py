"""A network from outside the package: a small transformer in a folder of its own, as teacher and generator."""

from __future__ import annotations

import sys

import pytest
import torch

from onestep.checkpoints.snapshot import write_snapshot
from onestep.networks import (
    build_denoiser,
    execution_view,
    frozen_parameters,
    load_denoiser,
    one_step_config,
    teacher_weights_for,
)

_MODULE = '''
"""A diffusion transformer (arXiv:2212.09748) of toy size."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TinyTransformer"]


class TinyTransformer(nn.Module):
    """Patches, transformer blocks with adaptive layer norm, and a linear layer to pixels."""

    freeze_levels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attention": ("model.blocks.*.qkv.*", "model.blocks.*.out.*"),
        "mlp": ("model.blocks.*.mlp.*",),
    }

    def __init__(
        self, *, img_resolution: int, img_channels: int, label_dim: int = 0, patch: int = 4, width: int = 8
    ) -> None:
        super().__init__()
        self.patch, self.channels, self.width = patch, img_channels, width
        side = img_resolution // patch
        self.embed = nn.Linear(img_channels * patch**2, width)
        self.positions = nn.Parameter(torch.randn(1, side**2, width) * 0.02)
        self.noise = nn.Linear(1, width)
        self.label = nn.Linear(label_dim, width, bias=False) if label_dim else None
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.final = nn.Linear(width, img_channels * patch**2)

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None) -> Tensor:
        emb = self.noise(noise[:, None])
        if self.label is not None:
            emb = emb + self.label(condition)
        tokens = self.embed(F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)) + self.positions
        for block in self.blocks:
            tokens = block(tokens, F.silu(emb))
        return F.fold(self.final(tokens).transpose(1, 2), x.shape[-2:], self.patch, stride=self.patch)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada, self.qkv, self.out = nn.Linear(width, 4 * width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor, emb: Tensor) -> Tensor:
        first, second, third, fourth = self.ada(emb)[:, None].chunk(4, dim=-1)
        normed = F.layer_norm(tokens, tokens.shape[-1:]) * (1 + first) + second
        query, key, value = self.qkv(normed)[:, None].chunk(3, dim=-1)
        tokens = tokens + self.out(F.scaled_dot_product_attention(query, key, value)[:, 0])
        return tokens + self.mlp(F.layer_norm(tokens, tokens.shape[-1:]) * (1 + third) + fourth)


class Described(TinyTransformer):
    """The same, for augmented images."""

    def forward(self, x, noise, condition, augment_labels=None):
        out = super().forward(x, noise, condition)
        return out if augment_labels is None else out + augment_labels.sum()
'''


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The config of the transformer, whose file is in the working directory."""
    (tmp_path / "tiny_transformer.py").write_text(_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield {
        "name": "tiny_transformer:TinyTransformer",
        "img_resolution": 16,
        "img_channels": 2,
        "label_dim": 3,
        "width": 8,
        "sigma_max": 80.0,
    }
    sys.modules.pop("tiny_transformer", None)


def _batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.eye(3)[[0, 2]]
    return torch.randn(2, 2, 16, 16, generator=generator), torch.tensor([0.5, 2.0]), labels


def test_it_is_preconditioned_by_either_law(config):
    torch.manual_seed(0)
    x, sigma, labels = _batch()
    for law in ("edm", "d2o"):
        network = build_denoiser(config | {"preconditioning": law})
        assert network(x, sigma, labels).shape == x.shape and network.sigma_max == 80.0
    assert torch.equal(network(x, torch.full((2,), 0.002), labels), x)
    assert not torch.equal(network(x, sigma, labels), network(x, sigma))


def test_it_is_frozen_by_its_own_levels(config):
    network = build_denoiser(config)
    attention = frozen_parameters(network, ["attention"])
    assert attention == [
        f"model.blocks.{block}.{layer}.{leaf}"
        for block in range(2)
        for layer in ("qkv", "out")
        for leaf in ("weight", "bias")
    ]
    both = frozen_parameters(network, ["attention", "mlp"])
    assert set(attention) < set(both) and not any(".ada." in name for name in both)
    with pytest.raises(ValueError, match="^freeze: .*'conv'.*attention, mlp"):
        frozen_parameters(network, ["conv"])


def test_a_saved_one_is_loaded(config, tmp_path):
    network = build_denoiser(config)
    write_snapshot(tmp_path / "network.safetensors", network.state_dict(), config)
    loaded = load_denoiser(tmp_path / "network.safetensors")
    # Equal tensors at other addresses have another kernel on some processors.
    assert torch.allclose(loaded(*_batch()), network.eval()(*_batch()), rtol=0, atol=1e-5) and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("dropout", [0.0, None])
def test_a_generator_starts_from_it_though_it_has_neither_dropout_nor_augmentation(config, dropout):
    teacher = build_denoiser(config)
    options = one_step_config(config, preconditioning="d2o", dropout=dropout)
    assert options == config | {"preconditioning": "d2o"}
    generator = build_denoiser(options)
    generator.load_state_dict(teacher_weights_for(generator, teacher.state_dict()), strict=True)
    x, sigma, labels = _batch()
    scale = (0.25 + sigma**2).rsqrt().reshape(-1, 1, 1, 1)
    inner = [network.model(scale * x, sigma.log() / 4, labels) for network in (teacher, generator)]
    assert torch.equal(*inner)


def test_dropout_that_it_does_not_have_is_refused(config):
    with pytest.raises(ValueError, match="^dropout: got 0.1, expected 0.*TinyTransformer"):
        one_step_config(config, preconditioning="d2o", dropout=0.1)


def test_augmentation_labels_reach_only_a_network_that_takes_them(config):
    x, sigma, labels = _batch()
    plain = build_denoiser(config)
    assert torch.equal(plain(x, sigma, labels, torch.ones(2, 0)), plain(x, sigma, labels))
    with pytest.raises(ValueError, match=r"^augment_labels: got \[2, 9\].*TinyTransformer"):
        plain(x, sigma, labels, torch.ones(2, 9))
    described = build_denoiser(config | {"name": "tiny_transformer:Described"})
    assert not torch.equal(described(x, sigma, labels, torch.ones(2, 9)), described(x, sigma, labels))


def test_its_image_path_runs_in_bfloat16_by_autocast(config):
    network, batch = build_denoiser(config), _batch()
    single, types = network(*batch), []
    network.model.embed.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    view = execution_view(network, bfloat16=True, compiled=lambda function: function)
    half = view(*batch)
    half.square().mean().backward()
    assert types == [torch.bfloat16] and half.dtype == torch.float32
    assert 0 < (half - single).abs().max() < 0.05 * single.abs().max()
    assert all(parameter.grad is not None and parameter.dtype == torch.float32 for parameter in network.parameters())


def test_a_module_without_a_view_of_its_own_is_compiled_as_it_is():
    module, seen = torch.nn.Identity(), []
    view = execution_view(module, bfloat16=True, compiled=lambda each: seen.append(each) or "view")
    assert view == "view" and seen == [module]
