"""Networks of timm as backbones: small ones, with weights out of files."""

from __future__ import annotations

import pickle
import re
from typing import ClassVar

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from onestep.checkpoints.published_weights import read_class_embeddings
from onestep.discriminators import build_backbone, build_discriminator
from onestep.discriminators._backbones import load_timm_backbone, probe_batch_norms, timm_backbone
from onestep.discriminators.projected import Projected

_CONVNET, _TRANSFORMER = "test_efficientnet.r160_in1k", "test_vit.r160_in1k"
_SIZE = 160


def _weights(folder, name):
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False)
    save_file(network.state_dict(), folder / f"{name}.safetensors")
    torch.save({"model": network.state_dict()}, folder / f"{name}.pth")
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of one small network of each kind, as safetensors and as a wrapped .pth."""
    made = tmp_path_factory.mktemp("weights")
    for name in (_CONVNET, _TRANSFORMER):
        _weights(made, name)
    return made


def _images(rows=2, *, size=_SIZE):
    return torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _projected(folder, name, **changes):
    backbones = {"one": load_timm_backbone(folder / f"{name}.safetensors", name=name)}
    return Projected(**({"backbones": backbones, "channels": 8, "resolution": _SIZE, "seed": 3} | changes))


@pytest.mark.parametrize("name", [_CONVNET, _TRANSFORMER])
def test_taps_are_inner_results_of_timms_own_network(folder, name):
    given = timm.create_model(name, pretrained=False).pretrained_cfg
    network = _weights(folder, name).eval()
    images = _images()
    mean, std = (torch.tensor(given[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    whole = network.forward_intermediates(((images + 1) / 2 - mean) / std, intermediates_only=True)
    for suffix in ("safetensors", "pth"):
        taps = load_timm_backbone(folder / f"{name}.{suffix}", name=name)(images)
        assert len(taps) == 4
        for tap in taps:
            assert any(tap.shape == each.shape and torch.allclose(tap, each, atol=1e-4) for each in whole)
        torch.testing.assert_close(taps[-1], whole[-1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [_CONVNET, _TRANSFORMER])
def test_sizes_and_channels_are_those_announced(folder, name):
    discriminator = _projected(folder, name)
    backbone = discriminator.pretrained["one"]
    taps = discriminator.taps("one", _images())
    assert tuple(tap.shape[1] for tap in taps) == backbone.tap_channels
    assert tuple(_SIZE / tap.shape[-1] for tap in taps) == tuple(backbone.strides) == backbone.nominal_strides
    assert discriminator(_images()).shape == (2, sum(discriminator.splits))


def test_nothing_after_the_last_tap_is_kept(folder):
    for name in (_CONVNET, _TRANSFORMER):
        kept = load_timm_backbone(folder / f"{name}.safetensors", name=name).state_dict()
        assert kept and not any("head" in key or "classifier" in key for key in kept)


def test_the_penalty_can_be_taken_through_attention(folder):
    discriminator = _projected(folder, _TRANSFORMER)
    images = _images().requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    slope.square().sum().backward()
    assert timm.create_model(_TRANSFORMER).blocks[0].attn.fused_attn  # the setting of others is as it was
    assert all(p.grad is not None for key, p in discriminator.named_parameters() if "weight_orig" in key)


def test_the_probe_moves_statistics_a_tenth_of_the_way_and_nothing_else(folder):
    before = load_timm_backbone(folder / f"{_CONVNET}.safetensors", name=_CONVNET)
    first = before.state_dict()["network.model.bn1.running_var"].clone()
    stem = before.network.model.conv_stem(torch.zeros(1, 3, 256, 256))
    after = _projected(folder, _CONVNET, batch_norm="probed", fold_batch_norm=False).pretrained["one"]
    wanted = 0.9 * first + 0.1 * stem.transpose(0, 1).flatten(1).var(dim=1)
    assert not torch.allclose(wanted, first)
    torch.testing.assert_close(after.state_dict()["network.model.bn1.running_var"], wanted)
    assert not any(part.training for part in after.network.modules())
    moved = {key for key, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[key])}
    assert moved and all(
        key.rsplit(".", 1)[1] in ("running_mean", "running_var", "num_batches_tracked") for key in moved
    )


def test_networks_without_batch_norm_are_not_run_by_the_probe():
    class Unrunnable(nn.Module):
        def forward(self, images):
            raise AssertionError

    probe_batch_norms(Unrunnable(), channels=3)


@pytest.mark.parametrize("name", [_CONVNET, _TRANSFORMER])
def test_a_projection_per_rank_differs_while_the_heads_agree(folder, name):
    ranks = [_projected(folder, name, projection="per_rank", rank=rank) for rank in (0, 1, 1)]
    shared = [_projected(folder, name, rank=rank) for rank in (0, 1)]
    images = _images()

    def buffers(discriminator):
        kept = {
            f"{part}.{k}": v
            for part in ("readouts", "scratch")
            for k, v in getattr(discriminator, part).named_buffers()
        }
        assert kept
        return kept

    zero, one, again = (buffers(each) for each in ranks)
    assert not any(torch.equal(zero[key], one[key]) for key in zero)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert all(torch.equal(zero[key], value) for each in shared for key, value in buffers(each).items())
    heads = [each.discriminators.state_dict() for each in (*ranks, *shared)]
    assert all(torch.equal(heads[0][key], other[key]) for other in heads for key in heads[0])
    assert not torch.allclose(ranks[0].frozen_features(images)[0][0], ranks[1].frozen_features(images)[0][0])


def test_no_state_of_one_rank_overwrites_anothers_projection(folder):
    zero, one = (_projected(folder, _TRANSFORMER, projection="per_rank", rank=rank) for rank in (0, 1))
    before = one.frozen_features(_images())[0][0]
    one.load_state_dict(zero.state_dict(), strict=True)
    assert torch.equal(one.frozen_features(_images())[0][0], before)


def test_loading_draws_nothing_from_the_callers_generator(folder):
    torch.manual_seed(5)
    load_timm_backbone(folder / f"{_CONVNET}.safetensors", name=_CONVNET)
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(5)))


def test_class_tables_start_with_the_first_rows(folder):
    table = torch.randn(5, 7)
    heads = _projected(folder, _CONVNET, classes=3, embedding=table).discriminators["one"].mini_discs
    assert all(torch.equal(head.embed.weight, table[:3]) for head in heads)
    heads[0].embed.weight.data.zero_()
    assert torch.equal(heads[1].embed.weight, table[:3])
    with pytest.raises(ValueError, match="^class_embeddings: .* 5 .* 6"):
        _projected(folder, _CONVNET, classes=6, embedding=table)


def test_builder_takes_timms_networks_by_name_and_embeddings_from_a_file(folder, tmp_path):
    config = {
        "name": "projected",
        "backbones": ["eye"],
        "channels": 8,
        "resolution": _SIZE,
        "class_embeddings": "table",
    }
    embedding, table = nn.Embedding(4, 6), tmp_path / "table.pkl"
    table.write_bytes(pickle.dumps({"embed": embedding}, protocol=3))
    backbones = {"eye": build_backbone(folder / f"{_CONVNET}.pth", timm=_CONVNET)}
    built = build_discriminator(config, backbones=backbones, embedding=read_class_embeddings(table), classes=2, seed=0)
    assert torch.equal(built.discriminators["eye"].mini_discs[0].embed.weight, embedding.weight[:2])
    logits = built(_images(size=32), F.one_hot(torch.tensor([0, 1]), 2).float())
    assert logits.shape == (2, sum(built.splits))


def test_what_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="^timm: .*'vgg17'"):
        load_timm_backbone(folder / f"{_CONVNET}.pth", name="vgg17")
    with pytest.raises(ValueError, match=f"not the weights of timm's {_CONVNET}: .*Missing key"):
        load_timm_backbone(folder / f"{_TRANSFORMER}.pth", name=_CONVNET)
    with pytest.raises(ValueError, match="^resolution: .* 224.* 160 "):
        _projected(folder, _TRANSFORMER, resolution=224)
    mixer = timm.create_model("mixer_s32_224", pretrained=False)
    with pytest.raises(ValueError, match="^mixer: .* strides .* or a plain vision transformer"):
        timm_backbone(mixer, name="mixer")


def test_a_network_without_feature_maps_is_refused_with_the_version_of_timm():
    class Older(nn.Module):  # as timm's VGGs were before 1.0.31
        pretrained_cfg: ClassVar = {"input_size": (3, _SIZE, _SIZE), "mean": (0.5,) * 3, "std": (0.5,) * 3}

    with pytest.raises(ValueError, match=rf"vgg: .*timm {re.escape(timm.__version__)}.*Fix: "):
        timm_backbone(Older(), name="vgg")
