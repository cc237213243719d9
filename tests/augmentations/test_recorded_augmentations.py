"""The pipes change images as the reference does, draw by draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onestep.augmentations.diffaugment import DiffAugment
from onestep.augmentations.edm import Edm
from onestep.augmentations.stylegan2_ada import StyleGan2Ada

pytestmark = pytest.mark.golden

TOLERANCE = 2e-5
TINTS = ["brightness", "contrast", "lumaflip", "hue", "saturation"]
ADA = dict.fromkeys(["xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac", *TINTS], 1.0)
EDM_TRAINING = {"xflip": 1e8, "yflip": 1.0, "scale": 1.0, "rotate_frac": 1.0, "aniso": 1.0, "translate_frac": 1.0}
EDM_ALL = EDM_TRAINING | dict.fromkeys(["xflip", "rotate_int", "translate_int", *TINTS], 1.0)
OPERATIONS = {
    ("d2o", "flags"): (StyleGan2Ada, ADA),
    ("edm", "train_flags"): (Edm, EDM_TRAINING),
    ("edm", "all_flags"): (Edm, EDM_ALL),
    ("d2o", "all_off"): (StyleGan2Ada, {}),
    ("edm", "all_off"): (Edm, {}),
}


def _pipe(case):
    """Build the pipe of a recorded case, "edm_train_flags_p0.12"."""
    family, _, rest = case.partition("_")
    flags, _, probability = rest.partition("_p")
    pipe, operations = OPERATIONS[family, flags]
    return pipe(probability=float(probability or 1), operations=operations)


@pytest.mark.parametrize("family", ["d2o", "edm"])
def test_images_and_labels_equal_the_recordings(golden, family):
    arrays = golden.load(f"augment_{family}.npz")
    cases = {key.split("/")[0] for key in arrays if key.endswith("/out")}
    assert cases
    for case in cases:
        torch.manual_seed(golden.parameters[f"augment_{family}"]["seed"])
        found = _pipe(case)(torch.from_numpy(arrays["images"]), generator=None)
        tolerance = TOLERANCE * max(1.0, np.abs(arrays[f"{case}/out"]).max())
        np.testing.assert_allclose(found.images, arrays[f"{case}/out"], rtol=0, atol=tolerance, err_msg=case)
        np.testing.assert_allclose(found.labels, arrays[f"{case}/labels"], rtol=0, atol=tolerance, err_msg=case)


def test_differentiable_augmentation_equals_the_recordings(golden):
    arrays = golden.load("augment_d2o.npz")
    cases = [key for key in arrays if key.startswith("diffaug_")]
    assert cases
    for case in cases:
        torch.manual_seed(golden.parameters["augment_d2o"]["diffaug_seed"])
        pipe = DiffAugment(**{policy: policy in case for policy in ("color", "translation", "cutout")})
        found = pipe(torch.from_numpy(arrays["images"]), generator=None)
        tolerance = TOLERANCE * max(1.0, np.abs(arrays[case]).max())
        np.testing.assert_allclose(found.images, arrays[case], rtol=0, atol=tolerance, err_msg=case)
        assert found.labels.shape == (len(found.images), 0)
