"""The diffusion transformers DiT (arXiv:2212.09748) and SiT (arXiv:2401.08740), with the names of their files.

They are one network in two laws: DiT in `ddpm`, where it returns the noise at a time from 0 to 999, SiT in `flow`,
where it returns the velocity at a time from 0 (noise) to 1 (data). Both times enter as they are.

Legend: B images, C H W an image, T tokens, one of each patch, row by row, D their width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Mlp, PatchEmbed
from torch import Tensor, nn

from onestep.checkpoints.dit_weights import position_table
from onestep.config.constraints import Constraint, Positive, ShareBelowOne, Width
from onestep.networks._unet import condition_dropped, run_block

__all__ = ["DiT"]

_FREQUENCIES = 128  # of the time's embedding
_EPS = 1e-6  # of layer normalisations
_MAPS = (1 / 2, 3 / 4, 1.0)  # parts of the depth, as FastGen (NVIDIA) has them for DMD2's heads
_Depth = Annotated[int, Constraint(gt=0, le=256)]
_Patch = Annotated[int, Constraint(gt=0, le=64)]


class DiT(nn.Module):
    """DiT or SiT; the defaults are size XL with patches of 2, as published for ImageNet.

    Other sizes (hidden_size, depth, num_heads): S 384, 12, 6; B 768, 12, 12; L 1024, 24, 16. From scratch, all layers
    that a block's gates and the output depend on are zero, so that the network returns zeros (adaLN-Zero).

    Args:
        img_resolution: H and W of the images, or of their latents; a multiple of the patch.
        img_channels: Channels of input and output.
        label_dim: Width of the condition, one-hot classes; 0 for an unconditional network.
        patch_size: Height and width of a patch.
        hidden_size: D, a multiple of 4.
        depth: Number of blocks.
        num_heads: Attention heads of a block, a divisor of D.
        learn_sigma: Whether the last layer has further channels, a variance of each, as published. They are dropped;
            their weights have gradients of zero.
        no_class: Whether the table of classes has one more row, for a condition of zeros.
        label_dropout: Probability of a condition of zeros in training, for classifier-free guidance; 0.1 as published.
        freq_shift: What is subtracted from the 128 frequencies by which exponents of the time's embedding are divided:
            0 as published, 1 in diffusers.
        mlp_norm_eps: Added to the variance by the normalisation before a block's second half.

    Raises:
        ValueError: The options do not fit each other or the resolution.
    """

    freeze_levels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "proj": ("model.blocks.*.attn.proj.*",),
        "mlp": ("model.blocks.*.mlp.fc[12].*",),
        "qkv": ("model.blocks.*.attn.qkv.*",),
        "modulation": ("model.blocks.*.adaLN_modulation.1.weight",),  # its biases move all classes together
        # What mixes channels or tokens in blocks, as [conv, proj] of U-Nets; with qkv; with modulation.
        "F1": ("model.blocks.*.attn.proj.*", "model.blocks.*.mlp.fc[12].*"),
        "F2": ("model.blocks.*.attn.*", "model.blocks.*.mlp.fc[12].*"),
        "F3": ("model.blocks.*.attn.*", "model.blocks.*.mlp.fc[12].*", "model.blocks.*.adaLN_modulation.1.weight"),
    }
    generator_options: ClassVar[Mapping[str, float]] = {"label_dropout": 0.0}
    block_layers: ClassVar[Mapping[str, tuple[str, str]]] = {"body": ("model.blocks.*", "mlp.fc2")}

    pos_embed: Tensor

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        patch_size: _Patch = 2,
        hidden_size: Width = 1152,
        depth: _Depth = 28,
        num_heads: Width = 16,
        learn_sigma: bool = True,
        no_class: bool = True,
        label_dropout: ShareBelowOne = 0.0,
        freq_shift: Literal[0, 1] = 0,
        mlp_norm_eps: Positive = _EPS,
    ) -> None:
        super().__init__()
        if img_resolution % patch_size:
            expected = f"expected a divisor of {img_resolution}, the resolution"
            raise ValueError(f"patch_size: got {patch_size}, {expected}. Fix: patch_size: 1, or another resolution")
        if hidden_size % 4 or hidden_size % num_heads:
            expected = f"expected a multiple of 4 and of {num_heads}, the heads"
            raise ValueError(f"hidden_size: got {hidden_size}, {expected}. Fix: change num_heads or hidden_size")
        if label_dropout and not (no_class and label_dim):
            raise ValueError(f"label_dropout: got {label_dropout}, expected 0 without classes, or with no_class: false")
        self.patch, self.side, self.channels = patch_size, img_resolution // patch_size, img_channels
        self.no_class, self.label_dropout, self.freq_shift = no_class, label_dropout, freq_shift
        # A buffer, as no training moves it; the published files have it among the parameters.
        self.register_buffer("pos_embed", position_table(hidden_size, self.side)[None])
        self.x_embedder = PatchEmbed(img_resolution, patch_size, img_channels, hidden_size)
        self.t_embedder = _TimeEmbedder(hidden_size)
        self.y_embedder = _ClassEmbedder(label_dim + no_class, hidden_size) if label_dim else None
        self.blocks = nn.ModuleList(_Block(hidden_size, num_heads, eps=mlp_norm_eps) for _ in range(depth))
        self.final_layer = _FinalLayer(hidden_size, patch_size**2 * img_channels * (1 + learn_sigma))
        self.depths = tuple(math.ceil(part * depth) for part in _MAPS)
        self.map_shapes = tuple((hidden_size, self.side) for _ in self.depths)
        self._initialise()

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Run the network; `noise` is the time of the law: see `onestep.networks.Network`."""
        tokens, emb = self._begin(x, noise, condition)
        for block in self.blocks:
            tokens = block(tokens, emb)
        return self._end(tokens, emb)

    def with_maps(
        self, x: Tensor, noise: Tensor, condition: Tensor | None = None, *, stop_early: bool
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Run the network, or its blocks alone, and return its tokens as maps [B, D, H/patch, W/patch].

        They are those after half, three quarters and all of the blocks: see `onestep.networks.Network`.
        """
        tokens, emb = self._begin(x, noise, condition)
        after = []
        for block in self.blocks:
            tokens = block(tokens, emb)
            after.append(tokens)
        maps = tuple(after[depth - 1].transpose(1, 2).unflatten(2, (self.side, self.side)) for depth in self.depths)
        return None if stop_early else self._end(tokens, emb), maps

    def _begin(self, x: Tensor, noise: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return tokens [B, T, D] and the embedding of time and class [B, D], or [1, D] of one for all images."""
        emb = self.t_embedder(time_angles(noise, shift=self.freq_shift))
        if self.y_embedder is not None:
            condition = condition_dropped(condition, probability=self.label_dropout, training=self.training)
            if self.no_class:
                condition = torch.cat([condition, 1 - condition.sum(dim=1, keepdim=True)], dim=1)
            emb = emb + condition @ self.y_embedder.embedding_table.weight
        return self.x_embedder(x) + self.pos_embed, emb

    def _end(self, tokens: Tensor, emb: Tensor) -> Tensor:
        """Return the output [B, C, H, W], whose patches have their channels last in the tokens."""
        patches = self.final_layer(tokens, emb).unflatten(2, (self.patch, self.patch, -1))[..., : self.channels]
        grid = patches.unflatten(1, (self.side, self.side))
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or "adaLN_modulation" in name or name.startswith("final_layer."):
                nn.init.zeros_(parameter)
            elif name.startswith(("t_embedder.", "y_embedder.")):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter.flatten(1))  # a view


def time_angles(time: Tensor, *, shift: int = 0) -> Tensor:
    """Return the cosines, then the sines, of times [B] times 128 frequencies from 1 downwards, float32 [B, 256]."""
    steps = torch.arange(_FREQUENCIES, dtype=torch.float32, device=time.device)
    rates = (-math.log(10_000) * steps / (_FREQUENCIES - shift)).exp()  # in this order, as rounding counts at time 999
    angles = torch.outer(time.to(torch.float32), rates)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def for_one_time(
    config: Mapping[str, Any], state: Mapping[str, Tensor], *, time: float
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and tensors of a denoiser with diffusers' frequencies that is the same network at one time.

    What the frequencies change there is a constant, which goes into the first bias of the time's embedding.
    """
    moment, own = torch.tensor([time]), config.get("freq_shift", 0)
    apart = (time_angles(moment, shift=own).double() - time_angles(moment, shift=1).double())[0]
    weight, bias = (state[f"model.t_embedder.mlp.0.{kind}"].double() for kind in ("weight", "bias"))
    changed = {**state, "model.t_embedder.mlp.0.bias": (bias + weight @ apart).to(torch.float32)}
    return {**config, "freq_shift": 1}, changed


class _TimeEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, angles: Tensor) -> Tensor:
        return self.mlp(angles)


class _ClassEmbedder(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)


class _Block(nn.Module):
    """Self-attention, then two layers for each token, both with shift, scale and gate from the embedding.

    Attributes:
        recompute: Whether the backward pass computes the block's activations again, from its input.
    """

    recompute = False

    def __init__(self, width: int, heads: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.mlp = Mlp(width, hidden_features=4 * width, act_layer=_Gelu)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, emb: Tensor) -> Tensor:
        """Map [B, T, D] with embeddings [B, D] (or [1, D]) to the same shape."""
        return run_block(self._run, tokens, emb, recompute=self.recompute)

    def _run(self, tokens: Tensor, emb: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(emb)[:, None].chunk(6, dim=2)
        tokens = tokens + gate * self.attn(_normalised(tokens, eps=_EPS) * (1 + scale) + shift)
        return tokens + mlp_gate * self.mlp(_normalised(tokens, eps=self.eps) * (1 + mlp_scale) + mlp_shift)


class _Gelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class _FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, tokens: Tensor, emb: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(emb)[:, None].chunk(2, dim=2)
        return self.linear(_normalised(tokens, eps=_EPS) * (1 + scale) + shift)


def _normalised(tokens: Tensor, *, eps: float) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=eps)
