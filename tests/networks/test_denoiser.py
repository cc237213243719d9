"""What a denoiser does whatever its weights, and what its builder refuses."""

from __future__ import annotations

import math

import pytest
import torch

from onestep.checkpoints.snapshot import write_snapshot
from onestep.networks import build_denoiser, load_denoiser

_SONG = {
    "name": "song_unet",
    "img_resolution": 16,
    "img_channels": 2,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (8,),
    "dropout": 0.0,
}
_NCSN = _SONG | {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
}
_ADM = {key: _SONG[key] for key in ("img_resolution", "img_channels", "channel_mult", "num_blocks", "dropout")}
_ADM |= {"name": "dhariwal_unet", "model_channels": 64, "attn_resolutions": (8,)}
_CONFIGS = {"ddpm++": _SONG, "ncsn++": _NCSN, "adm": _ADM}


@pytest.fixture(params=_CONFIGS.values(), ids=_CONFIGS)
def config(request):
    return request.param


def _lively(network):
    """Give every weight a share in the output, which fresh weights do not have."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def _images(rows=3):
    return torch.randn(rows, 2, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_d2o_is_the_identity_at_the_smallest_noise_level(config):
    network = _lively(build_denoiser(config | {"preconditioning": "d2o"}))
    x = _images()
    assert torch.equal(network(x, torch.full((3,), 0.002)), x)
    assert not torch.allclose(network(x, torch.full((3,), 1.0)), x, atol=0.1)


@torch.no_grad()
def test_edm_of_fresh_weights_is_the_best_linear_denoiser(config):
    network, x, sigma = build_denoiser(config).eval(), _images(), torch.tensor([0.1, 1.0, 10.0])
    shrunk = x * (0.25 / (0.25 + sigma**2)).reshape(-1, 1, 1, 1)
    assert (network(x, sigma) - shrunk).abs().max() < 1e-3


@torch.no_grad()
def test_sigma_may_have_any_shape_that_broadcasts(config):
    network, x = _lively(build_denoiser(config)), _images()
    out = network(x, torch.full((3,), 2.0))
    spread = torch.tensor([2.0]).expand(3)
    for sigma in (2.0, torch.tensor(2.0), spread, torch.full((3, 1, 1, 1), 2.0, dtype=torch.float64)):
        assert torch.allclose(network(x, sigma), out, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_row_does_not_see_the_other_rows(config):
    network, x, sigma = _lively(build_denoiser(config)), _images(), torch.tensor([0.1, 1.0, 10.0])
    alone = network(x[1:2], sigma[1:2])
    assert torch.allclose(network(x, sigma)[1:2], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_class_and_no_class_is_another_image(config):
    network, x, sigma = _lively(build_denoiser(config | {"label_dim": 2})), _images(1), torch.ones(1)
    outs = [network(x, sigma, labels) for labels in (None, *torch.eye(2)[:, None])]
    assert all((a - b).abs().max() > 1e-3 for a, b in [(outs[0], outs[1]), (outs[0], outs[2]), (outs[1], outs[2])])


def test_dropout_is_for_training(config):
    network, x, sigma = _lively(build_denoiser(config | {"dropout": 0.5})), _images(), torch.ones(3)
    assert torch.equal(network(x, sigma), network(x, sigma))
    network.train()
    assert not torch.equal(network(x, sigma), network(x, sigma))


def test_withheld_labels_are_for_training(config):
    network = _lively(build_denoiser(config | {"label_dim": 2, "label_dropout": 1.0}))
    x, sigma, labels = _images(1), torch.ones(1), torch.eye(2)[:1]
    known, unknown = network(x, sigma, labels), network(x, sigma)
    network.train()
    assert torch.allclose(network(x, sigma, labels), unknown, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(known, unknown, rtol=1e-4, atol=1e-3)


def test_every_weight_takes_part(config):
    network = _lively(build_denoiser(config | {"label_dim": 2, "augment_dim": 3, "preconditioning": "d2o"}))
    labels, described = torch.eye(2)[[0, 1, 0]], torch.randn(3, 3)
    network(_images(), torch.full((3,), 80.0), labels, described).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad.abs().max() == 0] == []


def test_edm_and_our_spelling_build_the_same_network(config):
    ours = build_denoiser(config)
    named = {"song_unet": "SongUNet", "dhariwal_unet": "DhariwalUNet"}
    edm = {key: value for key, value in config.items() if key != "name"} | {"model_type": named[config["name"]]}
    shapes = [{name: t.shape for name, t in n.state_dict().items()} for n in (ours, build_denoiser(edm))]
    assert shapes[0] == shapes[1]


def test_a_config_read_from_json_has_lists(config):
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    assert build_denoiser(lists).state_dict().keys() == build_denoiser(config).state_dict().keys()


def test_the_preconditioning_keeps_what_samplers_and_training_ask_for(config):
    limits = {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 0.4, "use_fp16": True, "label_dim": 5}
    network = build_denoiser(config | limits)
    assert {key: getattr(network, key) for key in limits} == limits
    assert (network.img_resolution, network.img_channels) == (16, 2)
    plain = build_denoiser(config)
    assert (plain.sigma_min, plain.sigma_max, plain.sigma_data, plain.use_fp16) == (0.0, math.inf, 0.5, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atn_resolutions": (8,)}, "'atn_resolutions'.*attn_resolutions"),
        ({"name": "unet"}, "'unet'.*dhariwal_unet, dit, edm2, song_unet, unet2d"),
        ({"model_type": "SongUNet"}, "name and model_type"),
        ({"preconditioning": "vp"}, "^preconditioning: .*'vp'.*edm, d2o"),
        ({"embedding_type": "learned"}, "^embedding_type: .*'learned'.*positional, fourier"),
        ({"encoder_type": "skip"}, "^encoder_type: .*'skip'.*standard, residual"),
        ({"decoder_type": "skip"}, "^decoder_type: .*'skip'.*standard"),
        ({"model_channels": 10}, "^model_channels, channel_mult: .* 30 "),
        ({"channel_mult": (1,) * 6}, "^channel_mult: .* 16 .* 32"),
        ({"channel_mult": ()}, "^channel_mult: .* 0 "),
    ],
)
def test_a_config_that_describes_no_network_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build_denoiser(_SONG | change)


def test_a_config_without_the_images_size_is_refused():
    with pytest.raises(ValueError, match="img_resolution and no img_channels"):
        build_denoiser({"name": "song_unet"})


def test_a_config_without_a_name_is_refused():
    with pytest.raises(ValueError, match="neither"):
        build_denoiser({"img_resolution": 16, "img_channels": 2})


def test_labels_of_other_classes_are_refused():
    network = build_denoiser(_SONG | {"label_dim": 4})
    with pytest.raises(ValueError, match=r"^condition: .*\[2, 3\].*\[B, 4\]"):
        network(_images(2), torch.ones(2), torch.ones(2, 3))


def test_a_loaded_network_has_the_weights_of_its_file_and_draws_no_random_number(tmp_path, config):
    network = build_denoiser(config)
    write_snapshot(tmp_path / "a.safetensors", network.state_dict(), config)
    state = torch.get_rng_state()
    loaded = load_denoiser(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    found = loaded.state_dict()
    assert list(found) == list(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype and found[name].is_contiguous()
        assert found[name].data_ptr() % 64 == 0
    x = torch.randn(2, config["img_channels"], 16, 16)
    assert torch.equal(loaded(x, 1.0), network.eval()(x, 1.0))


def test_inner_maps_are_those_of_the_same_pass_and_need_half_of_it(config):
    network = _lively(build_denoiser(config))
    x, sigma = _images().requires_grad_(), torch.tensor([0.1, 1.0, 10.0])
    plain = network(x, sigma)
    image, beside = network(x, sigma, maps="beside")
    only = network(x, sigma, maps="only")
    assert torch.equal(image, plain)
    assert [each.shape[1:3] for each in only] == [torch.Size(shape) for shape in network.model.map_shapes]
    assert all(torch.equal(one, other) for one, other in zip(only, beside, strict=True))
    with torch.no_grad():
        scaled = x / (sigma**2 + 0.25).sqrt()[:, None, None, None]
        encoded = network.model.encode(scaled, sigma.log() / 4)
        assert (encoded - only[-1]).abs().max() <= 1e-5 * encoded.abs().max()
    only[0].sum().backward()
    fine = x.grad.clone()
    assert bool(fine.any()) and all(each.grad is None for name, each in network.named_parameters() if ".dec." in name)


def test_a_network_without_inner_maps_is_refused():
    network = build_denoiser(_SONG)
    network.model = torch.nn.Conv2d(2, 2, 1)
    with pytest.raises(ValueError, match="with_maps") as error:
        network(_images(), 1.0, maps="only")
    assert "\n" not in str(error.value)
