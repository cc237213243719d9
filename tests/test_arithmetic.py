"""The arithmetic of networks is that of their entry point, whatever the process had set, and files say so."""

from __future__ import annotations

import json

import pytest
import torch

import onestep.sampling
from image_archives import write_archive
from onestep import distributed
from onestep.archive import read_arrays, write_arrays
from onestep.arithmetic import deterministic, in_force, products, record_of
from onestep.drawing import draw
from onestep.evaluation.class_means import write_class_means
from onestep.evaluation.extraction import FeatureNetwork, write_extracted, write_features
from onestep.evaluation.extraction import extract as extract_features
from onestep.evaluation.measurement import write_measurement
from onestep.features import Features
from onestep.metrics.frechet import FrechetDistance
from onestep.networks import build_denoiser
from onestep.sampling import dropped, generate, requested_precision, sampled_in
from onestep.sampling.heun import Heun
from onestep.sampling.one_step import OneStep
from onestep.training.execution import Execution
from tiny import tiny_network

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
_GPU = {"precision": "tf32", "device": "NVIDIA A100"}


def _flags():
    """Return what products and convolutions follow."""
    cudnn, others = torch.backends.cudnn, (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    return [each.fp32_precision for each in (*others, cudnn.conv, cudnn.rnn)]


def _exact():
    return all(each in ("ieee", "none") for each in _flags()) and not torch.is_autocast_enabled("cpu")


def _former():
    torch.set_float32_matmul_precision("medium")


def _newer():
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def _general():
    torch.backends.fp32_precision = "tf32"


@pytest.fixture
def process():
    """Let a test set what it likes for the whole process."""
    convolutions, before = torch.backends.cudnn.allow_tf32, _flags()
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = convolutions
    for each, value in zip((torch.backends.cuda.matmul, torch.backends.mkldnn.matmul), before[:2], strict=True):
        each.fp32_precision = value
    assert _flags() == before


@pytest.mark.parametrize("settings", [lambda: None, _former, _newer, _general])
def test_inside_a_block_the_arithmetic_is_its_own_and_afterwards_as_before(process, settings):
    settings()
    before = _flags()
    with products(tf32=False):
        assert _exact() and not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        with products(tf32=True):
            assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
        assert _exact()
    assert _flags() == before


def test_off_cuda_a_generator_computes_in_float32_and_files_do_not_mention_it():
    assert [in_force(each, device=CPU) for each in ("float32", "tf32", "bfloat16")] == ["float32"] * 3
    assert in_force("tf32", device=CUDA) == "tf32"
    assert record_of("float32", device=CPU) == {}
    assert record_of("bfloat16", device=CPU) == {"precision": "bfloat16", "device": "cpu"}


class _Witness(torch.nn.Module):
    """A generator that notes whether it is called in plain float32."""

    img_channels, img_resolution, label_dim, use_fp16 = 1, 8, 0, False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, x, sigma, condition=None, **_):
        self.seen.append(_exact())
        return x * 0


@pytest.mark.parametrize("run", [lambda *each, **more: generate(*each, **more, batch=64), draw])
@pytest.mark.parametrize("sampler", [OneStep(), Heun(steps=2)])
def test_as_a_library_it_computes_as_the_commands_do(process, run, sampler):
    torch.set_float32_matmul_precision("high")
    witness = _Witness().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in run(witness, sampler, seeds=range(2)):
            assert not _exact()  # the caller's own arithmetic is what it was
    assert witness.seen and all(witness.seen)


class _Extractor:
    def __init__(self):
        self.seen = []

    def __call__(self, pixels):
        self.seen.append(_exact())
        return Features(features=pixels.flatten(1).float() / 255, probabilities=None)


class _Backbone(torch.nn.Module):
    def forward(self, images, *, size):
        assert _exact()
        return [images]


def test_features_class_means_and_trainings_compute_so_too(process, tmp_path):
    torch.set_float32_matmul_precision("high")
    network = _Extractor()
    extract_features([network], [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)])
    assert network.seen == [True]
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8).numpy()
    write_archive(tmp_path / "data.zip", zip(pixels, [0, 1], strict=True))
    write_class_means(_Backbone(), tmp_path / "data.zip", resolution=8, output=tmp_path / "means.safetensors")
    with distributed.joined({}):
        assert _exact()
    with Execution(tf32=True).computing():
        assert not _exact()
    assert not _exact()


def test_a_sampler_has_a_precision_and_a_network_of_half_precision_its_own():
    network = build_denoiser(tiny_network(img_resolution=8, model_channels=8)).eval()
    assert requested_precision(network, Heun()) == requested_precision(network, OneStep()) == "float32"
    assert requested_precision(network, Heun(precision="tf32")) == "tf32"
    network.use_fp16 = True
    assert requested_precision(network, Heun()) == "bfloat16"
    assert requested_precision(network, Heun(precision="float32")) == "float32"
    assert requested_precision(network, OneStep()) == "float32"  # as in the reference
    assert sampled_in(network, Heun()) == "float32" and dropped(network, Heun()) is None
    assert "bfloat16" in dropped(network, OneStep(precision="bfloat16"))


def test_the_network_computes_in_the_samplers_precision(monkeypatch):
    monkeypatch.setattr(onestep.sampling, "in_force", lambda precision, *, device: precision)  # as on a GPU
    torch.manual_seed(0)
    network, seen = build_denoiser(tiny_network(img_resolution=8, model_channels=8)).eval(), []
    network.model.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0].dtype, _flags()[0])))
    for precision in (None, "float32", "tf32", "bfloat16"):
        for sampler in (OneStep(precision=precision), Heun(steps=2, precision=precision)):
            list(generate(network, sampler, seeds=range(1), batch=64))
    types, flags = ([each[index] for each in seen] for index in (0, 1))
    assert types == [torch.float32] * 12 + [torch.bfloat16] * 4 and network.image_type is None
    assert all(each in ("none", "ieee") for each in (*flags[:8], *flags[12:])) and set(flags[8:12]) == {"tf32"}


def test_numbers_keep_the_arithmetic_of_images_features_and_reference(tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"x")
    network = FeatureNetwork(extractor=_Extractor(), weights=weights, options={"name": "plain"})
    subject = {"model": "m", "sampler": "s", "seeds": "0-7"}
    pixels = torch.randint(256, (8, 4, 4, 3), dtype=torch.uint8).numpy()
    about = {"subject": subject, "arithmetic": _GPU}
    write_arrays(tmp_path / "images.npz", {"pixels": pixels}, about=about)
    write_features(network, tmp_path / "images.npz", output=tmp_path / "generated.npz")
    assert read_arrays(tmp_path / "generated.npz").about["sampled"] == _GPU
    real = extract_features([network.extractor], [torch.randint(256, (8, 3, 4, 4), dtype=torch.uint8)])
    write_extracted({tmp_path / "real.npz": network}, real, subject={"dataset": "d"})

    files = {"generated": tmp_path / "generated.npz", "real": tmp_path / "real.npz", "output": tmp_path / "fd.json"}
    write_measurement(FrechetDistance(), name="fd", options={"name": "frechet"}, **files)
    assert json.loads((tmp_path / "fd.json").read_text())["arithmetic"] == {"images": _GPU}

    # Of an earlier version, or of a CPU: no record, and none afterwards.
    write_arrays(tmp_path / "images.npz", {"pixels": pixels}, about={"subject": subject})
    write_features(network, tmp_path / "images.npz", output=tmp_path / "generated.npz")
    write_measurement(FrechetDistance(), name="fd", options={"name": "frechet"}, **files)
    assert "arithmetic" not in json.loads((tmp_path / "fd.json").read_text())
    assert not {"sampled", "arithmetic"} & read_arrays(tmp_path / "generated.npz").about.keys()


def test_deterministic_algorithms_last_for_a_block_and_what_has_none_is_one_line():
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ValueError, match="compile.deterministic: got true.* Fix: ") as error, deterministic(True):
        raise RuntimeError("grid_sampler_2d_backward_cuda does not have a deterministic implementation. You can\nturn")
    assert "\n" not in str(error.value) and not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="other"), deterministic(True):
        raise RuntimeError("other")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_what_the_process_has_set_changes_no_image_and_files_name_the_device(process):
    torch.manual_seed(0)
    network, found = build_denoiser(tiny_network(img_resolution=8, model_channels=8)).eval().to("cuda"), []
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
        found += [made.pixels for made in generate(network, Heun(steps=2), seeds=range(64), batch=64)]
    assert torch.equal(*found)
    device = next(network.parameters()).device
    assert record_of(sampled_in(network, Heun(precision="tf32")), device=device)["precision"] == "tf32"
    assert record_of("float32", device=device)["device"] == torch.cuda.get_device_name()
