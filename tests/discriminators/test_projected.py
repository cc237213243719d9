"""The projected discriminator as a whole: what is frozen, what is fixed, what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onestep.checkpoints.snapshot import write_snapshot
from onestep.classifiers import build_classifier
from onestep.discriminators import build_backbone, build_discriminator
from onestep.discriminators._backbones import Backbone, ClassifierTaps
from onestep.discriminators._heads import MultiScaleHeads
from onestep.discriminators.projected import CrossScaleMixing, Projected, mixing_channels
from onestep.objectives import Batch
from onestep.objectives.d2o import D2O
from onestep.training.assignment import Inputs
from onestep.training.sources import FileSources

_CLASSIFIER = {"name": "convnet", "resolution": 16, "channels": 1, "classes": 3, "width": 4}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A file with an untrained classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "classifier.safetensors"
    write_snapshot(path, build_classifier(_CLASSIFIER).state_dict(), _CLASSIFIER)
    return path


def _projected(snapshot, **changes):
    options = {"channels": 4, "resolution": 16, "classes": 0, "seed": 3} | changes
    if "backbones" not in options:
        options["backbones"] = {"digits": build_backbone(snapshot, timm=None)}
    return Projected(**options)


def _images(rows=4, *, channels=1, size=16):
    return torch.rand(rows, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Noise:
    """Random streams of a batch of four."""

    def normal(self, *shape):
        return torch.randn(4, *shape)


class Shift(nn.Module):
    """A generator of one number."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, noisy, sigma, labels):
        return noisy / 80 + self.bias


def test_frozen_parts_stay_bitwise_while_the_heads_train(snapshot):
    torch.manual_seed(0)
    networks = {"generator": Shift(), "discriminator": _projected(snapshot)}
    before = {key: value.clone() for key, value in networks["discriminator"].state_dict().items()}
    objective = D2O(loss="non_saturating", sigma=80.0, rows_per_rank=4.0, r1_gamma=1.0, r1_every=2)
    optimizers = {role: torch.optim.AdamW(player.parameters(), lr=0.01) for role, player in networks.items()}
    for _ in range(3):
        for phase in objective.phases():
            for player in networks.values():
                player.train().zero_grad()
            batch = Batch(images=_images(), condition=None, random=Noise(), images_seen=0)
            (phase.loss(networks, batch).value * phase.gain).backward()
            optimizers[phase.trains].step()
    moved = {
        key for key, value in networks["discriminator"].state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved and all(key.startswith("discriminators.") for key in moved)
    assert {key for key, _ in networks["discriminator"].named_parameters()} <= moved


def test_only_the_heads_are_parameters_and_only_they_train(snapshot):
    discriminator = _projected(snapshot)
    assert all(name.startswith("discriminators.") for name, _ in discriminator.named_parameters())
    for mode in (True, False, True):
        discriminator.train(mode)
        modes = {name.split(".")[0]: module.training for name, module in discriminator.named_modules() if name}
        assert modes == {"pretrained": False, "readouts": False, "scratch": False, "discriminators": mode}


def test_names_of_the_state_dict_are_the_documented_ones(snapshot):
    names = set(_projected(snapshot).state_dict()) | set(_projected(snapshot, classes=3).state_dict())
    documented = {
        "pretrained.digits.network.classifier.stages.0.0.weight",
        *(f"scratch.digits.layer{i}_ccm.{leaf}" for i in range(4) for leaf in ("weight", "bias")),
        *(f"scratch.digits.layer{i}_csm.out_conv.{leaf}" for i in range(4) for leaf in ("weight", "bias")),
        *(f"discriminators.digits.mini_discs.0.main.2.main.0.weight_{leaf}" for leaf in ("orig", "u", "v")),
        "discriminators.digits.mini_discs.0.main.2.main.1.running_var",
        "discriminators.digits.mini_discs.3.main.0.weight_orig",
        "discriminators.digits.mini_discs.3.cls.weight_orig",
        "discriminators.digits.mini_discs.3.embed.weight",
        "discriminators.digits.mini_discs.3.embed_proj.bias",
    }
    assert documented <= names


def test_mixing_and_heads_follow_from_the_seed_alone(snapshot):
    backbones = [{"digits": build_backbone(snapshot, timm=None)} for _ in range(3)]
    torch.manual_seed(5)
    first = _projected(snapshot, backbones=backbones[0]).state_dict()
    assert torch.equal(torch.randn(20), torch.randn(20, generator=torch.Generator().manual_seed(5)))
    second = _projected(snapshot, backbones=backbones[1]).state_dict()
    other = _projected(snapshot, backbones=backbones[2], seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    weights = [key for key in first if key.startswith("scratch.") and key.endswith("weight")]
    assert weights and not any(torch.equal(first[key], other[key]) for key in weights)


def test_numbers_are_drawn_mixing_first_then_class_table_then_heads(snapshot):
    # A published run is made again from its seed: what is drawn, and in which order, may never change.
    backbone, seed = build_backbone(snapshot, timm=None), 3
    discriminator = _projected(snapshot, classes=3, seed=seed)
    torch.manual_seed(seed)
    ccm, out = mixing_channels(4)
    mixing = CrossScaleMixing(tap_channels=backbone.tap_channels, ccm_channels=ccm, out_channels=out)
    heads = MultiScaleHeads(in_channels=out, resolutions=(32, 16, 8, 4), channels=4, embedding=torch.randn(3, 64))
    found = (discriminator.scratch["digits"], discriminator.discriminators["digits"])
    for drawn, wanted in zip(found, (mixing, heads), strict=True):
        assert set(drawn.state_dict()) == set(wanted.state_dict())
        assert all(torch.equal(value, drawn.state_dict()[key]) for key, value in wanted.state_dict().items())


def test_it_can_be_saved_and_loaded(snapshot):
    source, target = _projected(snapshot, seed=1).eval(), _projected(snapshot, seed=2).eval()
    target.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(source(_images()), target(_images()))


def test_judging_the_features_is_judging_the_images(snapshot):
    discriminator = _projected(snapshot, classes=3).eval()
    labels = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    logits = discriminator(_images(), labels)
    assert logits.shape == (4, sum(discriminator.splits))
    assert torch.equal(logits, discriminator.heads(discriminator.frozen_features(_images()), labels))


def test_features_do_not_depend_on_the_other_rows(snapshot):
    discriminator = _projected(snapshot)
    whole, part = (discriminator.frozen_features(images) for images in (_images(), _images()[:2]))
    for together, alone in zip(whole[0], part[0], strict=True):
        torch.testing.assert_close(together[:2], alone, rtol=0, atol=1e-6)


def test_gradients_reach_the_images_twice(snapshot):
    discriminator = _projected(snapshot).double()
    images = _images().double().requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    assert (slope.abs().flatten(1).sum(dim=1) > 0).all()
    slope.square().sum().backward()
    assert all(
        parameter.grad is not None for name, parameter in discriminator.named_parameters() if "weight_orig" in name
    )


def test_each_critic_has_its_share_of_the_logits(snapshot):
    alone = _projected(snapshot, channels=2, resolution=64)
    pair = _projected(
        snapshot,
        backbones={name: build_backbone(snapshot, timm=None) for name in ("one", "two")},
        channels=2,
        resolution=64,
    )
    assert alone.splits == (4 * 5**2,) and pair.splits == 2 * alone.splits
    assert pair(_images(size=64)).shape == (4, sum(pair.splits))


def test_heads_are_laid_out_for_the_next_power_of_two(snapshot):
    # The published layout: taps at a quarter to a thirty-second of 224 pixels, laid out for 256, end in 4x4 logits.
    network = nn.Identity()
    backbone = Backbone(
        network, channels=3, tap_channels=(8, 8, 8, 8), strides=(4, 8, 16, 32), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    discriminator = _projected(snapshot, backbones={"one": backbone}, resolution=224)
    assert discriminator.discriminators["one"].resolutions == (128, 64, 32, 16)
    assert discriminator.splits == (4 * 4**2,)


def test_images_of_another_size_are_resized(snapshot):
    discriminator = _projected(snapshot).eval()
    images = _images(size=20)
    resized = F.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(discriminator(images), discriminator(resized))


def test_grey_images_are_repeated_and_normalised_as_the_backbone_was_trained():
    seen = []
    network = nn.Identity()
    network.register_forward_hook(lambda module, inputs, output: seen.append(output))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    backbone = Backbone(network, channels=3, tap_channels=(1,), strides=(1,), mean=mean, std=std)
    backbone(_images())
    for channel in range(3):
        torch.testing.assert_close(seen[0][:, channel], ((_images()[:, 0] + 1) / 2 - mean[channel]) / std[channel])


def test_a_classifier_sees_the_images_exactly_as_they_are(snapshot):
    classifier = build_classifier(_CLASSIFIER)
    backbone = build_backbone(snapshot, timm=None)
    classifier.load_state_dict(backbone.network.classifier.state_dict())
    for found, wanted in zip(backbone(_images()), classifier(_images()).taps, strict=True):
        assert torch.equal(found, wanted)


def test_builder_takes_the_options_of_the_config(snapshot):
    config = {"name": "projected", "backbones": ["digits"], "channels": 4, "resolution": 16}
    backbones = {"digits": build_backbone(snapshot, timm=None)}
    built = build_discriminator(config, backbones=backbones, embedding=None, classes=3, seed=3)
    wanted = _projected(snapshot, classes=3).state_dict()
    assert list(built.state_dict()) == list(wanted)
    assert all(torch.equal(value, wanted[key]) for key, value in built.state_dict().items())


def test_what_does_not_fit_is_refused(snapshot):
    with pytest.raises(ValueError, match="^backbones: .*digits.*'vgg'"):
        files = Inputs(run=snapshot, data=snapshot, backbones={"digits": snapshot})
        FileSources(files=files).backbone("vgg")
    with pytest.raises(ValueError, match="^backbones: "):
        _projected(snapshot, backbones={})
    with pytest.raises(ValueError, match="^resolution: .*small"):
        _projected(snapshot, resolution=8)
    with pytest.raises(ValueError, match=r"^condition: .*\[B, 3\]"):
        _projected(snapshot, classes=3)(_images())
    with pytest.raises(ValueError, match="^images: .* 3 .* 1 "):
        _projected(snapshot)(_images(channels=3))


def test_a_snapshot_of_something_else_is_refused(tmp_path):
    path = tmp_path / "denoiser.safetensors"
    write_snapshot(path, {"weight": torch.zeros(1)}, {"name": "song_unet"})
    with pytest.raises(ValueError, match="no classifiers called 'song_unet'"):
        build_backbone(path, timm=None)


def test_backbone_of_a_classifier_has_its_taps(snapshot):
    backbone = build_backbone(snapshot, timm=None)
    assert isinstance(backbone.network, ClassifierTaps)
    taps = backbone(_images())
    assert tuple(tap.shape[1] for tap in taps) == backbone.tap_channels
    assert tuple(16 // tap.shape[-1] for tap in taps) == backbone.strides


def test_one_scale_is_the_coarsest_head_of_four_and_mixes_no_other(snapshot):
    # 2x2 taps of 16 pixels become mixed maps of 4x4, of one logit.
    four, one = _projected(snapshot, classes=3), _projected(snapshot, classes=3, scales="last")
    assert one.splits == (1,) and one.splits[0] < four.splits[0]
    assert {name.split(".")[2] for name in one.scratch.state_dict(prefix="scratch.")} == {"layer3_ccm", "layer3_csm"}
    kept = {name: value for name, value in four.scratch.state_dict().items() if ".layer3_" in name}
    one.scratch.load_state_dict(kept, strict=True)
    coarsest = {
        name.replace("mini_discs.3.", "mini_discs.0."): value
        for name, value in four.discriminators.state_dict().items()
        if "mini_discs.3." in name
    }
    one.discriminators.load_state_dict(coarsest, strict=True)
    labels = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    four, one = four.eval(), one.eval()
    ((coarse,),) = one.frozen_features(_images())
    assert torch.equal(coarse, four.frozen_features(_images())[0][-1])
    assert torch.equal(one(_images(), labels), four(_images(), labels)[:, -1:])
    taps = [tap.detach().requires_grad_() for tap in one.taps("digits", _images())]
    slopes = torch.autograd.grad(one.scratch["digits"](taps)[0].sum(), taps, allow_unused=True)
    assert [slope is not None for slope in slopes] == [False, False, False, True]


def test_one_scale_of_a_coarse_network_is_refused_where_its_map_is_too_small(snapshot):
    with pytest.raises(ValueError, match="^resolution: .*small"):
        backbone = Backbone(
            nn.Identity(), channels=1, tap_channels=(4,) * 4, strides=(4, 8, 16, 32), mean=(0.5,), std=(0.5,)
        )
        _projected(snapshot, backbones={"one": backbone}, resolution=32, scales="last")
