"""Layer activation and frequency response: numbers by hand, each verdict, files from networks, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_archives import write_archive
from onestep.archive import read_arrays
from onestep.checkpoints.snapshot import write_snapshot
from onestep.config.messages import ConfigError
from onestep.config.reading import parse_experiment
from onestep.files import read_json
from onestep.fingerprint import Fingerprints
from onestep.networks import build_denoiser
from onestep.plan import Plan
from onestep.plan.study import study_code, study_files
from onestep.studies import RealImages, Weights, _spectra, frequency_response, layer_activation
from onestep.studies._run import study as run_study
from onestep.studies.frequency_response import FrequencyResponse
from onestep.studies.layer_activation import LayerActivation
from tiny import tiny_config, tiny_network

ARMS = {"EDM": ["edm"], "D2O": ["d2o@320"]}
STUDIES = {
    "layers": {"name": "layer_activation", "arms": ARMS, "teacher": "EDM", "dataset": "digits"},
    "bands": {"name": "frequency_response", "arms": ARMS, "teacher": "EDM"},
}


def block(name, **changes):
    return {**STUDIES[name], "seeds": "0-2", "steps": 4, "batch": 2, **changes}


def options(study, **changes):
    return {key: value for key, value in {**study, **changes}.items() if key != "name"}


def test_numbers_by_hand():
    activation = np.array([[1.0, 3.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 4.0]])
    np.testing.assert_allclose(layer_activation.relative(activation), [[0, 1, 0.5, 0.5], [0] * 4, [0, 0, 0, 1]])
    np.testing.assert_allclose(layer_activation.relative_range(activation), [1.0, 0.0, 4.0])
    assert layer_activation.quarters_with_peaks(activation) == 3
    assert layer_activation.quarters_with_peaks(np.eye(18)[[0, 4, 5, 9, 14]]) == 4


def test_means_are_over_all_images_whatever_the_batches():
    layer, output = (
        torch.tensor([[-1.0, 3.0], [2.0, 2.0], [4.0, 0.0]]),
        torch.tensor([[2.0, 2.0], [2.0, 2.0], [6.0, 2.0]]),
    )
    for cuts in ([3], [1, 2]):
        seen = layer_activation.Activations(blocks=1, steps=1)
        for one, other in zip(layer.split(cuts), output.split(cuts), strict=True):
            seen.see(0, "layer", 0, one)
            seen.see(0, "output", 0, other)
            seen.see(0, "denoised", -1, other)
        assert seen.means["activation"].item() == pytest.approx(2)
        assert seen.means["rms"].item() == pytest.approx((34 / 6) ** 0.5)
        assert seen.means["contribution"].item() == pytest.approx(2 / (16 / 6))


@pytest.mark.parametrize(
    ("factor", "quarters", "verdict"),
    [(5.0, 3, "confirmed"), (9.0, 2, "not confirmed"), (4.9, 4, "not confirmed"), (2.0, 4, "contradicted")],
)
def test_each_verdict_of_the_activations(factor, quarters, verdict):
    assert layer_activation.verdict(factor, quarters) == verdict


def trends(image, rising, falling, resolution):
    names = {"image.trend": image, "decoder.trend.rising": rising, "decoder.trend.falling": falling}
    names["resolution.trend"] = resolution
    return {f"{name}{suffix}": value for name, value in names.items() for suffix in ("", ".log")}


FLAT, UP, DOWN = trends(0.1, 0.0, 0.0, 0.1), trends(0.9, 0.7, 0.0, 0.6), trends(-0.9, 0.0, 0.7, 0.6)


@pytest.mark.parametrize(
    ("own", "control", "verdict"),
    [
        (UP, FLAT, "confirmed"),
        (UP, UP, "not confirmed"),
        ({**UP, "image.trend.log": 0.4}, FLAT, "not confirmed"),
        ({**UP, "decoder.trend.rising": 0.6}, FLAT, "not confirmed"),
        ({**UP, "resolution.trend": None}, FLAT, "not confirmed"),
        (DOWN, FLAT, "contradicted"),
        ({**DOWN, "image.trend.log": 0.0}, FLAT, "not confirmed"),
        ({"image.trend": 0.9}, FLAT, "undecided"),
    ],
)
def test_each_verdict_of_the_frequencies(own, control, verdict):
    assert frequency_response.verdict(own, control) == verdict


def test_a_wave_is_in_its_ring_and_a_constant_in_none():
    side, cycles = 16, 5
    wave = torch.sin(2 * torch.pi * cycles * torch.arange(side) / side).expand(1, 1, side, side)
    maps = _spectra.PowerMaps(steps=2)
    maps.see(0, torch.full((1, 1, side, side), 3.0))
    maps.see(1, 3.0 + wave)
    share = maps.spectrum.share[0]
    assert share[cycles - 1] == pytest.approx(1) and share.shape == (side // 2,)
    assert _spectra.centroids(share) == pytest.approx(cycles / 8)
    assert maps.spectrum.output_share[0].sum() == pytest.approx(0, abs=1e-12)
    # Parseval: all of the change is in the rings, for a wave along one axis.
    counted = maps.spectrum.d_fft[0] @ _spectra.ring_counts(side)
    assert counted == pytest.approx(float(wave.square().sum()))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name, law, scale in (("edm", "edm", 0.15), ("d2o@320", "d2o", 0.2)):
        config = tiny_network(channel_mult=[1, 2], attn_resolutions=[8], preconditioning=law)
        torch.manual_seed(0)
        network = build_denoiser(config)
        state = {
            key: each + scale * torch.randn(each.shape, generator=generator) * (each.ndim > 1)
            for key, each in network.state_dict().items()
        }
        made[name] = [folder / f"{name}.safetensors"]
        write_snapshot(made[name][0], state, config)
    made["images.digits"] = [folder / "digits.zip"]
    pixels = torch.randint(256, (9, 1, 16, 16), generator=generator, dtype=torch.uint8)
    write_archive(made["images.digits"][0], [(image, 0) for image in pixels])
    return made


def of(name, files):
    return {key: paths for key, paths in files.items() if name == "layers" or not key.startswith("images")}


@pytest.mark.parametrize("name", STUDIES)
def test_the_files_of_a_study_are_the_same_bytes_with_any_number_of_threads(tmp_path, files, name):
    threads, written = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            run_study(study=block(name), name=name, files=of(name, files), output=tmp_path / str(count))
            written.append({path.name: path.read_bytes() for path in (tmp_path / str(count)).iterdir()})
    finally:
        torch.set_num_threads(threads)
    assert set(written[0]) == {f"{name}{suffix}" for suffix in (".npz", ".json", ".svg", ".md")}
    assert written[0] == written[1]
    found = read_json(tmp_path / "1" / f"{name}.json")
    assert found["verdict"] == "undecided", "one training of the teacher"
    assert found["control"].keys() <= found["numbers"].keys()
    arrays = read_arrays(tmp_path / "1" / f"{name}.npz").arrays
    assert arrays["sigma"][0] == pytest.approx(80) and arrays["sigma"].shape == (4,)
    assert len(arrays["layers"]) == len(arrays["part"]) == len(arrays["resolution"]) == 10
    if name == "layers":
        for who in ("EDM", "untrained", "EDM.noised", "untrained.noised"):
            for key in ("activation", "rms", "contribution"):
                assert arrays[f"{who}.{key}"].shape == (1, 10, 4) and (arrays[f"{who}.{key}"] > 0).all()
        assert arrays["D2O.activation"].shape == (1, 10)
        assert {"range.factor", "noised.range.factor", "depth_trend.decoder"} <= found["numbers"].keys()
    else:
        assert arrays["EDM.enc.8x8_down.d_fft"].shape == (1, 3, 5)
        assert arrays["EDM.image.share"].shape == arrays["EDM.input.share"].shape == (1, 3, 8)
        np.testing.assert_allclose(arrays["EDM.image.share"].sum(axis=-1), 1)
        assert {"image.trend", "image.trend.log", "distance", "D2O.distance"} <= found["numbers"].keys()


@pytest.mark.parametrize("name", STUDIES)
def test_numbers_do_not_depend_on_the_batch_and_one_training_suffices_by_choice(files, name):
    kind = {"layers": LayerActivation, "bands": FrequencyResponse}[name]
    found = [
        kind(**options(block(name, batch=batch, least_trainings=least))).conclude(of(name, files))
        for batch, least in ((2, 1), (3, 3))
    ]
    assert found[0].verdict != "undecided" and found[1].verdict == "undecided"
    for key, value in found[0].arrays.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, found[1].arrays[key], rtol=1e-4, atol=1e-7, err_msg=key)


def test_a_generator_of_another_shape_is_refused_by_its_file(tmp_path, files):
    config = tiny_network(channel_mult=[1], preconditioning="d2o")
    write_snapshot(tmp_path / "other.safetensors", build_denoiser(config).state_dict(), config)
    study = {key: each for key, each in block("layers").items() if key != "dataset"}
    given = {"edm": files["edm"], "d2o@320": [tmp_path / "other.safetensors"]}
    with pytest.raises(ValueError, match=r"other\.safetensors: got other blocks"):
        run_study(study=study, name="layers", files=given, output=tmp_path)


REFUSED = {
    "arms: got EDM, D2O": {"teacher": "VP"},
    "arms: got the label": {"arms": {"EDM": ["edm"], "untrained": ["edm"]}},
    "arms.EDM: ": {"arms": {"EDM": ["a@b@c"]}},
    "arms.EDM: got edm twice": {"arms": {"EDM": ["edm", "edm"]}},
    "seeds: ": {"seeds": "5-4"},
    "sigma_min: ": {"sigma_min": 80.0},
}


@pytest.mark.parametrize(("place", "changes"), REFUSED.items())
@pytest.mark.parametrize("study", [LayerActivation, FrequencyResponse])
def test_options_that_do_not_fit_are_refused_by_name(study, place, changes):
    with pytest.raises(ValueError, match=place.replace(".", r"\.")):
        study(**options({"arms": ARMS, "teacher": "EDM"}, **changes))


def config(**changes):
    found = tiny_config()
    arms = {"EDM": "digits", "D2O": "digits_d2o", "D2O-F": ["digits_d2o_f@160"]}
    found["studies"] = {name: {**each, "arms": arms, **changes} for name, each in STUDIES.items()}
    return found


def test_the_plan_finds_teachers_snapshots_and_last_snapshots():
    plan = Plan(experiment=parse_experiment(config()), fingerprints=Fingerprints())
    found = {name: [str(path) for path in paths] for name, paths in study_files(plan, "layers").items()}
    assert found == {
        "digits": ["results/teachers/digits.safetensors"],
        "digits_d2o": ["results/runs/digits_d2o/snapshots/320.safetensors"],
        "digits_d2o_f@160": ["results/runs/digits_d2o_f/snapshots/160.safetensors"],
        "images.digits": ["results/data/digits.zip"],
    }
    assert study_code(plan, "layers") != study_code(plan, "bands")
    built = LayerActivation(**options(plan.block("studies", "layers")))
    assert built.observes()["digits"] == Weights(model="digits", blocks=True)
    assert built.observes()["images.digits"] == RealImages(dataset="digits")


UNNAMED = """
from torch import nn

class Plain(nn.Module):
    freeze_levels = {}

    def __init__(self, *, img_resolution: int, img_channels: int, label_dim: int = 0):
        super().__init__()
        self.layer = nn.Conv2d(img_channels, img_channels, 1)

    def forward(self, x, noise, condition):
        return self.layer(x)
"""


def test_a_network_without_named_blocks_is_refused_before_any_job(tmp_path, monkeypatch):
    (tmp_path / "plain_network.py").write_text(UNNAMED)
    monkeypatch.chdir(tmp_path)
    found = config()
    found["runs"]["digits_edm"]["network"] = {"name": "plain_network:Plain", "preconditioning": "edm"}
    for name in ("digits_d2o", "digits_d2o_f"):
        found["runs"][name]["freeze"] = []
    with pytest.raises(ConfigError, match="studies.layers.*plain_network:Plain.*block_layers"):
        parse_experiment(found)


@pytest.mark.parametrize("changes", [{"steps": 3}, {"batch": 0}, {"arms": {}}, {"arms": {"EDM": []}}, {"rho": 0.0}])
def test_values_out_of_bounds_are_refused_in_the_config(changes):
    with pytest.raises(ConfigError, match=f"studies.*{next(iter(changes))}"):
        parse_experiment(config(**changes))
