"""The definitions of activation and D_FFT against recordings of independent arithmetic."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from onestep.studies import _spectra
from onestep.studies.layer_activation import Activations, relative

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def recording(golden):
    folder = golden.folder / "studies"
    if not (folder / "spectra.npz").exists():
        pytest.skip(f"{folder}: these recordings hold no spectra.npz")
    entry = json.loads((folder / "manifest.json").read_text())["files"]["spectra.npz"]
    with np.load(folder / "spectra.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    assert set(arrays) == set(entry["keys"])
    return arrays, entry["constants"], float(re.search(r"rel (\S+);", entry["tol"])[1])


def computed(outputs):
    """Return every recorded quantity from a block's outputs [steps, B, C, H, W], one image a batch."""
    steps, images, _, side, _ = outputs.shape
    maps, seen = _spectra.PowerMaps(steps=steps), Activations(blocks=1, steps=steps)
    for image in range(images):
        for step in range(steps):
            value = torch.from_numpy(outputs[step, image : image + 1])
            maps.see(step, value)
            seen.see(step, "layer", 0, value)
    spectrum, activation = maps.spectrum, seen.means["activation"][0]
    return {
        "ring": _spectra.ring_of(side),
        "ring_counts": _spectra.ring_counts(side),
        "d_fft": spectrum.d_fft,
        "share": spectrum.share,
        "centroid": _spectra.centroids(spectrum.share),
        "high_share": _spectra.high_shares(spectrum.share),
        "minmax_over_time": relative(spectrum.d_fft.T).T,
        "peak_step": spectrum.d_fft.argmax(axis=0) + 1,
        "log_amplitude": _spectra.log_amplitudes(spectrum.power),
        "log_amplitude_change": spectrum.log_change,
        "activation": activation,
        "activation_relative": relative(activation),
    }


def test_all_recorded_quantities_are_those_of_the_recording(recording):
    arrays, constants, tolerance = recording
    for side in constants["H"]:
        found = computed(arrays[f"H{side}/outputs"])
        wanted = {key.partition("/")[2]: each for key, each in arrays.items() if key.startswith(f"H{side}/")}
        assert set(found) == set(wanted) - {"outputs"}
        for key, value in found.items():
            assert value.shape == wanted[key].shape, key
            if wanted[key].dtype == np.int64:
                np.testing.assert_array_equal(value, wanted[key], err_msg=key)
            else:
                np.testing.assert_allclose(value, wanted[key], rtol=tolerance, atol=1e-12, err_msg=key)
