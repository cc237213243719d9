"""The trained heads: recordings of the reference, and torch's own spectral norm."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onestep.discriminators._heads import (
    MultiScaleHeads,
    SpectralConv2d,
    divided_weights,
    logits_of,
    spectral_convolutions,
    vectors_of,
)

_FILE = "disc_heads.npz"


class Recording:
    """One case of the recordings: its name, its numbers, and the network and inputs they came from."""

    def __init__(self, golden, case):
        arrays = golden.load(_FILE)
        self.arrays = {key.removeprefix(f"{case}/"): a for key, a in arrays.items() if key.startswith(f"{case}/")}
        self.salt, self.rows = golden.parameters["salts"]["disc"], len(self.arrays["logits_call1"])
        conditioning, self.features_name = case.split("/")
        self.prefix, self.conditional = f"heads_{conditioning}:", conditioning == "cond1"
        self.channels, self.resolutions, self.classes = (
            json.loads(golden.said(_FILE, rf"{word} (\[[^]]*\])")) for word in ("channels", "resolutions", "classes")
        )
        self.golden = golden

    def heads(self):
        """Return the recorded network."""
        heads = MultiScaleHeads(
            in_channels=self.channels,
            resolutions=self.resolutions,
            channels=len(self.arrays["buffers_after_call1/mini_discs.0.main.0.main.0.weight_u"]),
            embedding=self._embedding(),
        )
        recipe = {
            k: self.golden.recipe(self.salt, self.prefix + k, tuple(v.shape)) for k, v in heads.state_dict().items()
        }
        heads.load_state_dict({k: torch.from_numpy(v) for k, v in recipe.items() if v is not None}, strict=False)
        return heads.train()

    def _embedding(self):
        rows = [a for key, a in self.arrays.items() if key.endswith("embed.weight")]
        # The recipe fills tables row by row, so a shorter table has the same rows.
        return torch.zeros(max(self.classes) + 1, rows[0].shape[1]) if self.conditional else None

    def features(self):
        """Return the recorded inputs."""
        coarsest = self.arrays[f"grad_feat{len(self.channels) - 1}"].shape[-1]
        sizes = [coarsest << level for level in reversed(range(len(self.channels)))]
        shapes = [(self.rows, channels, size, size) for channels, size in zip(self.channels, sizes, strict=True)]
        numbers = [self.golden.normal(self.salt, f"{self.features_name}:feat{i}", s) for i, s in enumerate(shapes)]
        return [torch.from_numpy(n.astype(np.float32)).requires_grad_() for n in numbers]

    def labels(self):
        """Return the recorded classes, one-hot."""
        return F.one_hot(torch.tensor(self.classes)).float() if self.conditional else None


@pytest.fixture(scope="module")
def recorded(golden):
    """Each case with all that was recorded of it, computed anew."""
    recordings = [Recording(golden, case) for case in golden.cases(golden.load(_FILE), parts=2)]
    return [(recording, _recompute(recording)) for recording in recordings]


def _recompute(recording):
    heads, features, labels = recording.heads(), recording.features(), recording.labels()
    logits = heads(features, labels)
    found = {f"buffers_after_call1/{key}": value.clone() for key, value in heads.named_buffers()}
    loss = F.softplus(-logits).mean(dim=1).sum()
    loss.backward()
    found |= {"logits_call1": logits, "loss_G_ns": loss}
    found |= {f"grad_feat{level}": feature.grad for level, feature in enumerate(features)}
    found |= {f"grad/{key}": parameter.grad for key, parameter in heads.named_parameters()}
    with torch.no_grad():
        found["logits_call2"] = heads(features, labels)
    return found


def _shown(golden, found, key, shape):
    """Return what the recording shows under `key`: some rows of a table's gradient, or every n-th entry of an axis."""
    if rows := re.fullmatch(r"grad_rows_(\d+)_(\d+)/(.+)", key):
        first, end, gradient = int(rows[1]), int(rows[2]), found[f"grad/{rows[3]}"]
        return F.pad(gradient, (0, 0, 0, max(0, end - len(gradient))))[first:end]
    tensor = found[key.removesuffix("_slice")].detach()
    for axis, (have, want) in enumerate(zip(tensor.shape, shape, strict=True)):
        tensor = tensor[(slice(None),) * axis + (slice(None, None, golden.stride(have, want)),)]
    return tensor


@pytest.mark.golden
@pytest.mark.parametrize(
    "kind", ["logits_call1", "loss_G_ns", "grad_feat", "grad", "buffers_after_call1", "logits_call2"]
)
def test_heads_equal_the_recordings(golden, recorded, kind):
    for recording, found in recorded:
        keys = [key for key in recording.arrays if key.split("/")[0].startswith(kind)]
        assert keys
        for key in keys:
            wanted = torch.from_numpy(recording.arrays[key])
            have = _shown(golden, found, key, wanted.shape)
            torch.testing.assert_close(have, wanted, rtol=0, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.golden
def test_number_of_logits_is_known_before_the_first_call(recorded):
    for recording, _ in recorded:
        sizes = [feature.shape[-1] for feature in recording.features()]
        assert logits_of(sizes, resolutions=recording.resolutions) == recording.arrays["logits_call1"].shape[1]


def _twins():
    """Return our spectral convolution, and torch's with the same numbers."""
    ours = SpectralConv2d(3, 5, stride=2, padding=1, bias=True)
    theirs = torch.nn.utils.spectral_norm(nn.Conv2d(3, 5, kernel_size=4, stride=2, padding=1), eps=1e-12)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch may retire the function that this compares with
def test_spectral_convolution_equals_torchs_for_several_steps():
    torch.manual_seed(0)
    ours, theirs = _twins()
    for _ in range(3):
        images = torch.randn(2, 3, 8, 8)
        for convolution in (ours, theirs):
            convolution.zero_grad()
            convolution(images).square().sum().backward()
        torch.testing.assert_close(ours.weight_orig.grad, theirs.weight_orig.grad)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_spectral_convolution_holds_its_vectors_in_evaluation_mode():
    torch.manual_seed(0)
    convolution = SpectralConv2d(3, 5, stride=2, padding=1, bias=True).eval()
    before = convolution.weight_u.clone()
    convolution(torch.randn(2, 3, 8, 8))
    assert torch.equal(convolution.weight_u, before)
    convolution.train()(torch.randn(2, 3, 8, 8))
    assert not torch.equal(convolution.weight_u, before)


def _convolutions():
    torch.manual_seed(0)
    widths = {"in_channels": (4, 4, 8, 16), "resolutions": (64, 32, 16, 8), "channels": 4}
    return spectral_convolutions(MultiScaleHeads(**widths, embedding=None).train())


def test_an_iteration_has_the_bits_of_products_one_by_one():
    convolutions = _convolutions()
    weights, vectors = divided_weights(convolutions, vectors_of(convolutions))
    for each, weight, (u, v) in zip(convolutions, weights, vectors, strict=True):
        matrix = each.weight_orig.detach().flatten(1)
        other_v = F.normalize(torch.mv(matrix.t(), each.weight_u), dim=0, eps=1e-12)
        other_u = F.normalize(torch.mv(matrix, other_v), dim=0, eps=1e-12)
        assert torch.equal(v, other_v) and torch.equal(u, other_u)
        assert torch.equal(weight, each.weight_orig / torch.dot(other_u, torch.mv(matrix, other_v)))


def test_matrices_of_one_shape_iterate_together_to_the_same_numbers_and_gradients():
    convolutions, found = _convolutions(), {}
    for together in (False, True):
        weights, vectors = divided_weights(convolutions, vectors_of(convolutions), together=together)
        loss = sum((weight * torch.linspace(-1, 1, weight.numel()).view_as(weight)).sum() for weight in weights)
        gradients = torch.autograd.grad(loss, [each.weight_orig for each in convolutions])
        found[together] = weights, vectors, gradients
    for one, other in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_normalised_matrix_has_largest_singular_value_one():
    torch.manual_seed(0)
    convolution = SpectralConv2d(3, 5, stride=1, padding=0, bias=False)
    for _ in range(200):
        convolution(torch.zeros(1, 3, 4, 4))
    matrix = convolution.weight_orig.flatten(1)
    largest = torch.dot(convolution.weight_u, matrix @ convolution.weight_v)
    torch.testing.assert_close(largest, torch.linalg.matrix_norm(matrix, ord=2), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("resolutions", "halvings"), [((128, 64, 32, 16), (4, 3, 2, 1)), ((32, 16, 8, 4), (3, 2, 1, 0))]
)
def test_heads_halve_to_a_common_end(resolutions, halvings):
    heads = MultiScaleHeads(in_channels=(4, 4, 8, 16), resolutions=resolutions, channels=4, embedding=None)
    assert tuple(len(head.main) - 1 for head in heads.mini_discs) == halvings
    maps = [torch.randn(2, channels, size, size) for channels, size in zip((4, 4, 8, 16), resolutions, strict=True)]
    assert heads(maps, None).shape == (2, logits_of(resolutions, resolutions=resolutions))


def test_maps_too_small_for_a_head_are_refused():
    with pytest.raises(ValueError, match="^resolution: "):
        logits_of((16, 8, 4, 2), resolutions=(16, 8, 4, 2))


def test_conditional_heads_read_the_class_and_train_their_own_tables():
    torch.manual_seed(0)
    heads = MultiScaleHeads(
        in_channels=(4, 4, 8, 16), resolutions=(32, 16, 8, 4), channels=4, embedding=torch.randn(3, 5)
    ).eval()
    maps = [torch.randn(1, channels, size, size) for channels, size in zip((4, 4, 8, 16), (32, 16, 8, 4), strict=True)]
    first, second = (heads(maps, F.one_hot(torch.tensor([k]), 3).float()) for k in (0, 2))
    assert not torch.allclose(first, second)
    first.sum().backward()
    tables = [head.embed.weight for head in heads.mini_discs]
    assert len({table.data_ptr() for table in tables}) == len(tables)
    assert all(table.grad[0].abs().sum() > 0 and table.grad[1:].abs().sum() == 0 for table in tables)
