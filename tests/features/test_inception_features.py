"""Inception features, spatial features and probabilities as recorded; weights under the names of both publishers."""

from __future__ import annotations

import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from onestep.features.inception import InceptionFeatures

_RECIPE = "inception_recipe.npz"


@pytest.fixture(scope="module")
def tensors(golden):
    """The recipe's weights under the names of the graph and of NVIDIA's file."""
    salt, gain = golden.parameters["salts"]["inc"], float(golden.said(_RECIPE, r"sqrt\(fan_in\)\*([\d.]+)"))
    made = {}
    for name, shape in golden.json("inception_names.json")["state_dict"].items():
        numbers = torch.from_numpy(golden.recipe(salt, name, tuple(shape)))
        made[name] = gain * numbers if name.endswith(".weight") else numbers
    return made


@pytest.fixture(scope="module")
def under_torch_fidelitys_names(golden, tensors):
    made = {"fc.weight": tensors["output.weight"], "fc.bias": tensors["output.bias"]}
    for ours, theirs in golden.json("inception_names.json")["torch_fidelity_mapping"].items():
        made[f"{theirs}.conv.weight"] = tensors[f"{ours}.weight"]
        made[f"{theirs}.bn.weight"] = torch.ones_like(tensors[f"{ours}.beta"])
        for leaf, name in (("bias", "beta"), ("running_mean", "mean"), ("running_var", "var")):
            made[f"{theirs}.bn.{leaf}"] = tensors[f"{ours}.{name}"]
        made[f"{theirs}.bn.num_batches_tracked"] = torch.tensor(0)
    return made


@pytest.fixture(scope="module")
def weights(under_torch_fidelitys_names, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(under_torch_fidelitys_names, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def pool(weights):
    return InceptionFeatures(weights=weights)


@pytest.fixture(scope="module")
def spatial(weights):
    return InceptionFeatures(weights=weights, layer="spatial")


def _images(recorded):
    """Return the recorded images by the ending of their results; the large one is stored small."""
    images = {}
    for key, pixels in recorded.items():
        if large := re.fullmatch(r"img(\d+)_base\d+_nearest_repeat_(\d+)_then_crop", key):
            size, times = map(int, large.groups())
            pixels, key = pixels.repeat(times, axis=2).repeat(times, axis=3)[:, :, :size, :size], f"img{size}"
        if re.fullmatch(r"img\d+", key):
            images[key.removeprefix("img")] = torch.from_numpy(np.ascontiguousarray(pixels))
    assert images
    return images


def _pixels(rows, channels=3):
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(256, (rows, channels, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.mark.golden
def test_features_and_probabilities_are_the_recorded_ones(golden, pool, spatial):
    recorded = golden.load(_RECIPE)
    tolerance = float(golden.manifest["groups"][_RECIPE]["tol"].removeprefix("abs "))
    for size, pixels in _images(recorded).items():
        found = pool(pixels)
        of_map = spatial(pixels)
        assert of_map.probabilities is None
        for name, numbers in (
            ("features2048", found.features),
            ("probs_unbiased", found.probabilities),
            ("spatial2023", of_map.features),
        ):
            wanted = recorded[f"{name}_{size}"]
            assert numbers.dtype == torch.float32 and numbers.shape == wanted.shape
            # Probabilities are of the size of 1 / 1,008, so theirs is a relative tolerance as well.
            np.testing.assert_allclose(numbers, wanted, rtol=1e-3, atol=tolerance * min(1, wanted.max()), err_msg=name)


@pytest.mark.golden
def test_both_publishers_names_give_the_same_network(tensors, pool, tmp_path):
    path = tmp_path / "nvidia.safetensors"
    save_file(tensors, path)
    pixels = _pixels(1)
    found, wanted = InceptionFeatures(weights=path)(pixels), pool(pixels)
    assert torch.equal(found.features, wanted.features)
    assert torch.equal(found.probabilities, wanted.probabilities)


@pytest.mark.golden
def test_features_are_those_of_torch_fidelity(weights, pool):
    import torch_fidelity.feature_extractor_inceptionv3 as module

    peer = module.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    pixels = _pixels(2)
    features, logits = peer(pixels)
    found = pool(pixels)
    assert (found.features - features).norm() <= 1e-4 * features.norm()
    torch.testing.assert_close(found.probabilities, logits.softmax(dim=1), rtol=1e-4, atol=0)


@pytest.mark.golden
def test_features_do_not_depend_on_the_batch_and_grey_is_repeated(pool):
    grey = _pixels(3, channels=1)
    whole = pool(grey)
    alone = pool(grey[2:].repeat(1, 3, 1, 1))
    for kind in ("features", "probabilities"):
        torch.testing.assert_close(getattr(alone, kind), getattr(whole, kind)[2:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.probabilities.sum(dim=1), torch.ones(3))
    assert not whole.features.requires_grad


@pytest.mark.golden
def test_half_precision_is_near_and_leaves_no_trace(weights, pool):
    pixels = _pixels(1)
    rounded = InceptionFeatures(weights=weights, precision="bfloat16")(pixels)
    exact = pool(pixels)
    error = (rounded.features - exact.features).norm() / exact.features.norm()
    assert 1e-4 < error < 0.1
    assert rounded.features.dtype == rounded.probabilities.dtype == torch.float32
    assert torch.equal(pool(pixels).features, exact.features)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": None}, ".*'output.weight' nor 'fc.weight'"),
        ({"Mixed_6b.branch_pool.bn.running_var": None}, "Mixed_6b.branch_pool.bn.running_var: got none"),
        ({"fc.weight": torch.zeros(1000, 2048)}, r"fc.weight: got \[1000, 2048\], .*\[1008, 2048\]"),
        ({"Conv2d_1a_3x3.bn.bias": torch.full((32,), torch.nan)}, "Conv2d_1a_3x3.bn.bias: .*NaN"),
    ],
)
def test_other_weights_are_refused(under_torch_fidelitys_names, tmp_path, change, message):
    path = tmp_path / "weights.pth"
    changed = under_torch_fidelitys_names | change
    torch.save({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=rf"weights\.pth: {message}"):
        InceptionFeatures(weights=path)
    path.unlink()


def test_files_of_other_kinds_are_refused(tmp_path):
    program = tmp_path / "inception-2015-12-05.pt"
    with zipfile.ZipFile(program, "w") as archive:  # as torch.jit.save writes them
        archive.writestr("inception/data.pkl", b"")
        archive.writestr("inception/code/__torch__.py", "")
    with pytest.raises(ValueError, match=r"inception-2015-12-05\.pt: a TorchScript program"):
        InceptionFeatures(weights=program)
    renamed = program.rename(tmp_path / "inception-2015-12-05.pkl")
    with pytest.raises(ValueError, match=r"inception-2015-12-05\.pkl: the file is a zip archive \(TorchScript"):
        InceptionFeatures(weights=renamed)
