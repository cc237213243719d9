"""The U-Net of EDM2, whose activations, weights and updates keep their magnitudes (Karras et al., arXiv:2312.02696)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from onestep.checkpoints.edm_pickle import edm2_tensors
from onestep.config.constraints import Factors, Few, Positive, Resolutions, Share, ShareBelowOne, Taps, Width
from onestep.networks._magnitudes import (
    Fourier,
    UnitWeights,
    concatenated,
    normalized,
    resampled,
    silu,
    weighted_sum,
)
from onestep.networks._unet import attend, condition_dropped, run_block

__all__ = ["EDM2"]


class EDM2(nn.Module):
    """EDM2's U-Net. Its sizes differ in `model_channels`: XXS 64, XS 128, S 192, M 256, L 320, XL 384, XXL 448.

    The defaults are those of EDM2's constructor, because published checkpoints omit them.

    Args:
        img_resolution: H and W of the images, or of their latents.
        img_channels: Channels of input and output.
        label_dim: Width of the condition; 0 for an unconditional network.
        model_channels: Base width, multiplied by the factors below.
        channel_mult: Width factor of each level, from fine to coarse; each level halves the resolution. The embedding
            has the largest of these widths.
        num_blocks: Blocks per level of the encoder; the decoder has one more.
        attn_resolutions: Resolutions with self-attention.
        channels_per_head: Width of an attention head; a block below that width has no attention.
        dropout: Probability between the convolutions of a block: 0.1 from size M on.
        label_dropout: Probability of a condition of zeros in training, for classifier-free guidance.
        label_balance: Share of the condition in the embedding; `concat_balance` of a skip in its concatenation,
            `res_balance` and `attn_balance` of the branches of a block.
        clip_act: Largest magnitude of a block's output.
        resample_filter: Taps of the low-pass filter around resampling.

    Raises:
        ValueError: The resolution cannot be halved as often as there are levels.
    """

    freeze_levels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "conv": ("model.*.conv_res[01].*",),
        "proj": ("model.*.attn_proj.*",),
        "qkv": ("model.*.attn_qkv.*",),
        "skip": ("model.*.conv_skip.*",),
        "encoder": ("model.enc.*",),
        "decoder": ("model.dec.*",),
    }
    block_layers: ClassVar[Mapping[str, tuple[str, str]]] = {
        "encoder": ("model.enc.*", "conv_res1"),
        "decoder": ("model.dec.*", "conv_res1"),
    }
    casts_weights: ClassVar[bool] = True
    decoder_parts: ClassVar[tuple[str, ...]] = ("dec", "out_conv", "out_gain")
    published_tensors = staticmethod(edm2_tensors)

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_channels: Width = 192,
        channel_mult: Factors = (1, 2, 3, 4),
        num_blocks: Few = 3,
        attn_resolutions: Resolutions = (16, 8),
        channels_per_head: Width = 64,
        dropout: ShareBelowOne = 0.0,
        label_dropout: ShareBelowOne = 0.0,
        label_balance: Share = 0.5,
        concat_balance: Share = 0.5,
        res_balance: Share = 0.3,
        attn_balance: Share = 0.3,
        clip_act: Positive | None = 256.0,
        resample_filter: Taps = (1, 1),
    ) -> None:
        super().__init__()
        if not channel_mult or img_resolution % (1 << (len(channel_mult) - 1)):
            raise ValueError(
                f"channel_mult: got {len(channel_mult)} levels for images of {img_resolution} pixels, expected at "
                "least one, and a resolution that can be halved from each level to the next"
            )
        self.label_dropout, self.label_balance, self.concat_balance = label_dropout, label_balance, concat_balance
        widths = [model_channels * factor for factor in channel_mult]
        embedding = max(widths)
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.emb_fourier = Fourier(model_channels)
        self.emb_noise = UnitWeights(model_channels, embedding)
        self.emb_label = UnitWeights(label_dim, embedding) if label_dim else None
        sizes = [img_resolution >> level for level in range(len(widths))]
        self.encoded = widths[-1], sizes[-1]

        def block(inner: int, outer: int, *, flavor: str, mode: str | None = None, attends: bool = False) -> Block:
            return Block(
                inner,
                outer,
                embedding,
                is_decoder=flavor == "dec",
                mode=mode,
                heads=outer // channels_per_head if attends else 0,
                dropout=dropout,
                res_balance=res_balance,
                attn_balance=attn_balance,
                clip_act=clip_act,
                resample_filter=resample_filter,
            )

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, skips = model_channels, list[int]()
        for level, (size, outer) in enumerate(zip(sizes, widths, strict=True)):
            if level == 0:
                width = outer
                self.enc[f"{size}x{size}_conv"] = UnitWeights(img_channels + 1, outer, kernel=(3, 3))
            else:
                self.enc[f"{size}x{size}_down"] = block(width, width, flavor="enc", mode="down")
            skips.append(width)
            for index in range(num_blocks):
                name, attends = f"{size}x{size}_block{index}", size in attn_resolutions
                self.enc[name] = block(width, outer, flavor="enc", attends=attends)
                width = outer
                skips.append(width)
        for level, (size, outer) in enumerate(zip(sizes[::-1], widths[::-1], strict=True)):
            if level == 0:
                self.dec[f"{size}x{size}_in0"] = block(width, width, flavor="dec", attends=True)
                self.dec[f"{size}x{size}_in1"] = block(width, width, flavor="dec")
            else:
                self.dec[f"{size}x{size}_up"] = block(width, width, flavor="dec", mode="up")
            for index in range(num_blocks + 1):
                name, attends = f"{size}x{size}_block{index}", size in attn_resolutions
                self.dec[name] = block(width + skips.pop(), outer, flavor="dec", attends=attends)
                width = outer
        self.out_conv = UnitWeights(width, img_channels, kernel=(3, 3))

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Run the network, in the type of `x`: see `onestep.networks.Network`."""
        emb = self._embed(noise, condition)
        skips = self._skips(x, emb)
        x = skips[-1]
        for name, block in self.dec.items():
            if "block" in name:
                x = concatenated(x, skips.pop(), t=self.concat_balance)
            x = block(x, emb)
        return self.out_conv(x, gain=self.out_gain)

    def encode(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Run the encoder alone: see `onestep.networks.Network`."""
        return self._skips(x, self._embed(noise, condition))[-1]

    def _skips(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Return the maps that the decoder takes, the coarsest last."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # in place of biases
        skips: list[Tensor] = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, Block) else block(x)
            skips.append(x)
        return skips

    def _embed(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None:
            condition = condition_dropped(condition, probability=self.label_dropout, training=self.training)
            described = self.emb_label(condition * math.sqrt(condition.shape[1]))
            emb = weighted_sum(emb, described, t=self.label_balance)
        return silu(emb)


class Block(nn.Module):
    """Two convolutions with a shortcut, then self-attention with a shortcut, or none, for `heads` 0.

    Attributes:
        recompute: Whether the backward pass computes the block's activations again, from its input.
    """

    recompute = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        is_decoder: bool,
        mode: str | None,
        heads: int,
        dropout: float,
        res_balance: float,
        attn_balance: float,
        clip_act: float | None,
        resample_filter: Sequence[int],
    ) -> None:
        super().__init__()
        self.is_decoder, self.mode, self.taps, self.heads = is_decoder, mode, tuple(resample_filter), heads
        self.dropout, self.clip_act = nn.Dropout(dropout), clip_act
        self.res_balance, self.attn_balance = res_balance, attn_balance
        self.emb_gain = nn.Parameter(torch.zeros(()))
        inner = in_channels if is_decoder else out_channels
        self.conv_res0 = UnitWeights(inner, out_channels, kernel=(3, 3))
        self.emb_linear = UnitWeights(emb_channels, out_channels)
        self.conv_res1 = UnitWeights(out_channels, out_channels, kernel=(3, 3))
        is_same = in_channels == out_channels
        self.conv_skip = None if is_same else UnitWeights(in_channels, out_channels, kernel=(1, 1))
        self.attn_qkv = UnitWeights(out_channels, out_channels * 3, kernel=(1, 1)) if heads else None
        self.attn_proj = UnitWeights(out_channels, out_channels, kernel=(1, 1)) if heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map [B, in, H, W] with embeddings [B, E] (or [1, E]) to [B, out, H', W']."""
        random = self.training and self.dropout.p > 0
        return run_block(self._run, x, emb, recompute=self.recompute, random=random)

    def _run(self, x: Tensor, emb: Tensor) -> Tensor:
        x = resampled(x, mode=self.mode, taps=self.taps)
        if not self.is_decoder:
            x = normalized(x if self.conv_skip is None else self.conv_skip(x), dim=1)
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        h = self.conv_res0(silu(x))
        h = self.conv_res1(self.dropout(silu(h * scale[:, :, None, None].to(h.dtype))))
        if self.is_decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = weighted_sum(x, h, t=self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            h = attend(self._unit_heads(self.attn_qkv(x)), heads=self.heads)
            x = weighted_sum(x, self.attn_proj(h), t=self.attn_balance)
        return x if self.clip_act is None else x.clip(-self.clip_act, self.clip_act)

    def _unit_heads(self, qkv: Tensor) -> Tensor:
        """Return queries, keys and values [B, 3C, H, W], each of unit RMS within a head."""
        rows, channels, height, width = qkv.shape
        heads = qkv.reshape(rows, self.heads, channels // (3 * self.heads), 3, height * width)
        return normalized(heads, dim=2).reshape(rows, channels, height, width)
