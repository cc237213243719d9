"""CLIP, DINOv2 and VGG-16: which numbers of the network, of which pixels, from which files."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from onestep.features.clip import ClipFeatures
from onestep.features.dinov2 import DinoFeatures, dinov2_features, load_dinov2, resampled_positions
from onestep.features.vgg16 import VggFeatures

_CLIP, _DINO = "vit_base_patch32_clip_quickgelu_224", "vit_small_patch14_dinov2"


def _filled(make):
    """Return a network with small random weights, made faster than timm's own initialisation makes them."""
    with torch.device("meta"):
        network = make()
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        width = np.prod(value.shape[1:]) if value.ndim > 1 else 100
        value.uniform_(-1, 1, generator=generator).mul_((3 / width) ** 0.5)
        value.add_(1.0 if value.ndim == 1 and name.endswith("weight") else 0.0)
    return network.eval().requires_grad_(False)


def _pixels(rows, height, width, channels=3):
    generator = torch.Generator().manual_seed(height)
    return torch.randint(256, (rows, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def clip_network():
    return _filled(lambda: timm.create_model(_CLIP, num_classes=512))


@pytest.fixture(scope="module")
def clip(clip_network, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "model.safetensors"
    save_file(clip_network.state_dict(), path)
    yield ClipFeatures(weights=path)
    path.unlink()


def _in_openais_layout(state):
    """Return timm's weights as CLIP has them, beside a part of the text encoder."""
    renamed = {
        "visual.class_embedding": state["cls_token"].flatten(),
        "visual.positional_embedding": state["pos_embed"][0],
        "visual.proj": state["head.weight"].T.contiguous(),
        "text_projection": torch.zeros(512, 512),
        "ln_final.weight": torch.zeros(512),
    }
    parts = {
        "patch_embed.proj": "conv1",
        "blocks.": "transformer.resblocks.",
        "norm_pre": "ln_pre",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for name, tensor in state.items():
        if name not in ("cls_token", "pos_embed", "head.weight", "head.bias"):
            for ours, theirs in parts.items():
                name = name.replace(ours, theirs)
            renamed["visual." + ("ln_post" + name[4:] if name.startswith("norm.") else name)] = tensor
    return renamed


@pytest.fixture(scope="module")
def openais(clip_network):
    return _in_openais_layout(clip_network.state_dict() | {"head.bias": torch.zeros(512)})


def test_clip_gives_the_embedding_of_prepared_pixels_as_it_is(clip, clip_network):
    pixels = _pixels(2, 224, 224)
    found = clip(pixels)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    wanted = clip_network((pixels / 255 - mean) / std)
    assert found.probabilities is None and found.features.shape == (2, 512)
    torch.testing.assert_close(found.features, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert (found.features.norm(dim=1) - 1).abs().min() > 0.1


def test_clip_in_openais_layout_has_the_features_of_torch_fidelity(openais, tmp_path):
    import torch_fidelity.feature_extractor_clip as module

    visual = module.CLIPVisual(512, 224, 12, 768, 32).eval().requires_grad_(False)
    visual.load_state_dict({name: tensor for name, tensor in openais.items() if name.startswith("visual.")})
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(openais, path)
    pixels = _pixels(2, 224, 224)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    wanted = visual.visual((pixels / 255 - mean) / std)
    found = ClipFeatures(weights=path)(pixels).features
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
    path.unlink()


def test_clip_in_either_layout_is_one_network(openais, clip_network, tmp_path):
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(openais, path)
    found = ClipFeatures(weights=path).network.state_dict()
    path.unlink()
    for name, tensor in clip_network.state_dict().items():
        assert torch.equal(found[name], torch.zeros(512) if name == "head.bias" else tensor), name


def test_clip_does_not_depend_on_the_batch_and_repeats_grey(clip):
    grey = _pixels(3, 32, 32, channels=1)
    whole = clip(grey).features
    alone = clip(grey[1:2].repeat(1, 3, 1, 1)).features
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2), "pos_embed": torch.zeros(1, 5, 2)}, path)
    for extractor in (ClipFeatures, DinoFeatures, VggFeatures):
        with pytest.raises(ValueError, match=r"model\.safetensors: not the weights of timm's v\w+: Missing key"):
            extractor(weights=path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"not the weights of timm's vit_large_patch14_dinov2: lacks 'pos_embed'"):
        DinoFeatures(weights=path)


def test_positions_are_sampled_as_meta_samples_them():
    """Written out: cubic convolution (a = -0.75) at steps of n / 16.1, without smoothing; DINOv2's `offset` is 0.1."""
    positions = torch.randn(1, 1 + 37 * 37, 2, generator=torch.Generator().manual_seed(0))
    grid = positions[0, 1:].reshape(37, 37, 2).double().numpy()

    def cubic(distance, a=-0.75):
        d = abs(distance)
        if d < 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    matrix = np.zeros((16, 37))
    for i in range(16):
        place = (i + 0.5) * 37 / 16.1 - 0.5
        for j in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            matrix[i, min(max(j, 0), 36)] += cubic(place - j)
    wanted = np.einsum("ia,jb,abc->ijc", matrix, matrix, grid).reshape(256, 2)
    found = resampled_positions(positions, side=16)
    np.testing.assert_allclose(found[0, 1:], wanted, atol=1e-5)
    assert torch.equal(found[:, 0], positions[:, 0])
    assert torch.equal(resampled_positions(positions, side=37), positions)


@pytest.mark.parametrize("published", [{}, {"mask_token": torch.zeros(1, 384)}])
def test_dinov2_gives_the_class_token_of_pixels_at_224(published, tmp_path):
    """The small network of the family stands for the large one; both are built by the same function."""
    network = _filled(lambda: timm.create_model(_DINO, num_classes=0))
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save(network.state_dict() | published, path)
    pixels = _pixels(2, 224, 224)
    found = dinov2_features(load_dinov2(path, name=_DINO), pixels, "float32")
    smaller = timm.create_model(_DINO, num_classes=0, img_size=224).eval().requires_grad_(False)
    positions = resampled_positions(network.state_dict()["pos_embed"], side=16)
    smaller.load_state_dict(network.state_dict() | {"pos_embed": positions})
    mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    wanted = smaller.forward_features((pixels / 255 - mean) / std)[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_vgg16_gives_its_second_hidden_layer(tmp_path):
    from torchvision.models import vgg16

    network = _filled(vgg16)
    path = tmp_path / "vgg16-397923af.pth"
    torch.save(network.state_dict(), path)
    extractor = VggFeatures(weights=path)
    path.unlink()
    pixels = _pixels(1, 224, 224)
    mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    maps = network.avgpool(network.features((pixels / 255 - mean) / std))
    wanted = F.relu(nn.Sequential(*network.classifier[:4])(maps.flatten(1)))
    found = extractor(pixels).features
    assert found.shape == (1, 4096)
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
