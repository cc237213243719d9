"""`onestep evaluate`: the same numbers from a folder, a zip, an array and a tensor; one line for what cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from image_archives import write_archive
from onestep.checkpoints.snapshot import write_snapshot
from onestep.classifiers import build_classifier
from onestep.cli import main
from onestep.evaluation.extraction import FeatureNetwork, extract
from onestep.evaluation.standalone import NamedMetric, iter_images, write_evaluation
from onestep.features import Features
from onestep.features._networks import as_rgb
from onestep.files import read_json
from onestep.metrics.frechet import FrechetDistance, gaussian_fit
from onestep.report.verbs import compare

FRECHET, SCORE = '{"name": "frechet"}', '{"name": "inception_score", "splits": 2}'
NEIGHBOURS = ('{"name": "precision_recall"}', '{"name": "density_coverage", "neighbours": 3}')
ONE_COLOUR = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)
OTHERS = np.random.default_rng(1).integers(0, 200, (50, 16, 16, 1), dtype=np.uint8)


def classifier(path, *, channels=1, spoilt=False):
    config = {"name": "convnet", "resolution": 16, "channels": channels, "classes": 10, "width": 8}
    torch.manual_seed(0)
    state = build_classifier(config).state_dict()
    if spoilt:
        state = {name: tensor * torch.nan if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    write_snapshot(path, state, config)
    return path


def first_pixels(pixels):
    """A network that takes grey for RGB, as the published ones do."""
    return Features(features=as_rgb(pixels)[:, :, :4, 0].flatten(1).float(), probabilities=None)


def folder_of(path, pixels):
    for index, image in enumerate(pixels):
        name = path / f"{index % 3}" / f"{index:05}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(name)
    return path


def in_order(pixels):
    """Return images in the order of the names that `folder_of` gives them."""
    return pixels[sorted(range(len(pixels)), key=lambda index: (index % 3, index))]


def zip_of(path, pixels):
    write_archive(path, ((image.transpose(2, 0, 1), 0) for image in pixels))
    return path


def npz_of(path, **arrays):
    np.savez(path, **arrays)
    return path


def tensor_of(path, pixels):
    torch.save(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))), path)
    return path


@pytest.fixture
def evaluate(tmp_path):
    def run(images, reference, *metrics, weights=None, features='{"name": "classifier"}'):
        output = tmp_path / "found.json"
        weights = weights or classifier(tmp_path / "weights.safetensors")
        options = ["--images", images, "--features", features, "--weights", weights, "--output", output]
        options += ["--metrics", *metrics] if metrics else []
        options += [] if reference is None else ["--reference", reference]
        code = main(["evaluate", *map(str, options)])
        return read_json(output) if code == 0 else None

    return run


def test_every_kind_of_file_gives_the_same_numbers(evaluate, tmp_path):
    pixels = in_order(ONE_COLOUR)
    reference = zip_of(tmp_path / "real.zip", OTHERS)
    kinds = [
        folder_of(tmp_path / "folder", ONE_COLOUR),
        zip_of(tmp_path / "edm.zip", pixels),
        npz_of(tmp_path / "adm.npz", arr_0=pixels),
        npz_of(tmp_path / "ours.npz", pixels=pixels),
        tensor_of(tmp_path / "tensor.pt", pixels),
    ]
    found = [evaluate(kind, reference, FRECHET, SCORE, *NEIGHBOURS) for kind in kinds]
    first = {**found[0], "source": None}
    assert all({**each, "source": None} == first for each in found)
    assert set(first["values"]) >= {"frechet", "inception_score", "precision", "recall", "density", "coverage"}
    assert first["images"] == 40 and first["reference"]["frechet"]["images"] == 50
    assert "inception_score" not in first["reference"]


def test_published_statistics_stand_in_for_images(evaluate, tmp_path):
    images, real = npz_of(tmp_path / "a.npz", arr_0=ONE_COLOUR), npz_of(tmp_path / "b.npz", arr_0=OTHERS)
    expected = evaluate(images, real, FRECHET)
    weights, features = tmp_path / "weights.safetensors", tmp_path / "features.npz"
    options = ["--features", '{"name": "classifier"}', "--weights", str(weights), "--output", str(features)]
    assert main(["extract", "--images", str(real), *options]) == 0
    assert evaluate(images, features, FRECHET)["values"] == expected["values"]
    mean, covariance = gaussian_fit(np.load(features)["features"])
    batch = npz_of(tmp_path / "adm.npz", arr_0=OTHERS, mu=mean.numpy(), sigma=covariance.numpy())
    found = evaluate(images, batch, FRECHET, NEIGHBOURS[0])
    assert found["values"]["frechet"] == pytest.approx(expected["values"]["frechet"], rel=1e-9)
    assert found["reference"]["frechet"]["statistics"] == "mu, sigma"
    assert found["reference"]["precision_recall"]["images"] == 50


def test_what_is_computed_is_announced_and_shown_as_a_table(evaluate, tmp_path, capsys):
    images, real = npz_of(tmp_path / "a.npz", arr_0=ONE_COLOUR), npz_of(tmp_path / "b.npz", arr_0=OTHERS)
    found = evaluate(images, real, FRECHET, SCORE)
    lines = capsys.readouterr().out.splitlines()
    announced = {line.split()[0]: line for line in lines[:5]}
    assert list(announced) == ["images", "reference", "features", "metrics", "device"]
    assert str(real) in announced["reference"] and "frechet, inception_score (splits 2)" in announced["metrics"]
    assert ["frechet", f"{found['values']['frechet']:.6g}", "lower"] in [line.split() for line in lines]
    assert evaluate(images, real, SCORE) is not None
    lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("reference ") for line in lines) and any(str(real) in line for line in lines)


def test_grey_pictures_stay_grey_and_are_repeated_among_others(tmp_path):
    grey = folder_of(tmp_path / "grey", ONE_COLOUR[:3])
    assert [tuple(image.shape) for image in iter_images(grey)] == [(1, 1, 16, 16)] * 3
    folder_of(tmp_path / "mixed", ONE_COLOUR[:2])
    folder_of(tmp_path / "mixed" / "more", np.repeat(ONE_COLOUR[2:3], 3, axis=3))
    colour = folder_of(tmp_path / "colour", np.repeat(ONE_COLOUR[:3], 3, axis=3))
    shown = [extract([first_pixels], iter_images(path)).arrays[0]["features"] for path in (tmp_path / "mixed", colour)]
    np.testing.assert_array_equal(*shown)


def test_two_evaluations_can_be_compared(evaluate, tmp_path, capsys):
    real = npz_of(tmp_path / "b.npz", arr_0=OTHERS)
    for name, images in (("one", ONE_COLOUR), ("two", ONE_COLOUR[::-1] // 2)):
        evaluate(npz_of(tmp_path / f"{name}.npz", arr_0=images), real, FRECHET)
        (tmp_path / "found.json").rename(tmp_path / f"{name}.json")
    capsys.readouterr()
    assert compare(tmp_path / "one.json", tmp_path / "two.json") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["value", "one.json", "two.json", "difference"]
    assert rows[2][-1].endswith("two.npz") and rows[3][0] == "frechet" and len(rows) == 4


def _sixteen_bits(folder):
    folder.mkdir()
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(folder / "a.png")
    return folder


def _mixed(folder):
    folder_of(folder, ONE_COLOUR[:3])
    Image.fromarray(np.zeros((16, 8), np.uint8)).save(folder / "2" / "z.png")
    return folder


def _empty(folder):
    folder.mkdir()
    return folder


REFUSED = {
    "an empty folder": (_empty, "images: got no pictures"),
    "nothing": (lambda path: path, "images: there is no such file or folder"),
    "one image": (
        lambda path: folder_of(path, ONE_COLOUR[:1]),
        "images: generated features: got 1 images",
    ),
    "mixed sizes": (_mixed, "images: 2/z.png: got 8 x 16 pixels, expected 16 x 16 as in 0/00000.png"),
    "16 bits": (_sixteen_bits, "images: a.png: its colour mode is I;16 of 16 bits"),
    "16 bits in an array": (
        lambda path: npz_of(path.with_suffix(".npz"), arr_0=ONE_COLOUR.astype(np.uint16)),
        "images.npz: arr_0: got uint16 [40, 16, 16, 1]",
    ),
    "objects": (
        lambda path: npz_of(path.with_suffix(".npz"), arr_0=np.array([{}, []], dtype=object)),
        "images.npz: not a whole .npz of plain arrays",
    ),
    "a tensor of floats": (
        lambda path: torch.save(torch.zeros(2, 1, 16, 16), f"{path}.pt") or path.with_suffix(".pt"),
        "images.pt: got float32 [2, 1, 16, 16]",
    ),
    "a program": (
        lambda path: torch.save({"pixels": print}, f"{path}.pt") or path.with_suffix(".pt"),
        "images.pt: not a whole file of tensors alone",
    ),
    "weights": (
        lambda path: torch.save({"a": torch.zeros(1)}, f"{path}.pt") or path.with_suffix(".pt"),
        "images.pt: holds a dict, expected one tensor",
    ),
    "colour for a network of grey": (
        lambda path: folder_of(path, np.repeat(ONE_COLOUR, 3, axis=3)),
        "images: pixels: got uint8 [40, 3, 16, 16], expected uint8 [B, 1, 16, 16]",
    ),
}


@pytest.mark.parametrize(("images", "line"), REFUSED.values(), ids=REFUSED)
def test_images_that_cannot_be_measured_are_refused_in_one_line(evaluate, tmp_path, capsys, images, line):
    real = npz_of(tmp_path / "real.npz", arr_0=OTHERS)
    assert evaluate(images(tmp_path / "images"), real, FRECHET) is None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"onestep evaluate: {tmp_path}/{line}"), said


def test_an_extractor_that_is_not_finite_is_refused_in_one_line(evaluate, tmp_path, capsys):
    images = npz_of(tmp_path / "images.npz", arr_0=ONE_COLOUR)
    weights = classifier(tmp_path / "spoilt.safetensors", spoilt=True)
    assert evaluate(images, images, FRECHET, weights=weights) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{weights}: " in line and "NaN or infinite" in line


REFERENCES = {
    "of another width": ({"mu": np.zeros(5), "sigma": np.eye(5)}, FRECHET, "reference.npz: got statistics mu [5]"),
    "statistics for neighbours": (
        {"mu": np.zeros(5), "sigma": np.eye(5)},
        NEIGHBOURS[0],
        "got statistics, expected features",
    ),
    "nothing of use": ({"a": np.zeros(5)}, FRECHET, "reference.npz: got a, expected one of"),
    "none": (None, FRECHET, "--reference: got none"),
    "none, twice": (None, (SCORE, SCORE), "--metrics: got inception_score, inception_score"),
    "no metric": (None, (), "--metrics"),
    "a metric of two options": (
        None,
        '{"name": "inception_score", "splits": 2, "split_size": 2}',
        "--metrics: inception_score: splits or split_size",
    ),
    "no such option": (None, '{"name": "inception_score", "slices": 2}', "slices"),
}


@pytest.mark.parametrize(("arrays", "metrics", "line"), REFERENCES.values(), ids=REFERENCES)
def test_references_that_do_not_fit_are_refused_in_one_line(evaluate, tmp_path, capsys, arrays, metrics, line):
    images = npz_of(tmp_path / "images.npz", arr_0=ONE_COLOUR)
    reference = None if arrays is None else npz_of(tmp_path / "reference.npz", **arrays)
    assert evaluate(images, reference, *([metrics] if isinstance(metrics, str) else metrics)) is None
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("onestep evaluate: ") and line in said, said


def test_scores_of_generated_images_alone_need_no_reference(evaluate, tmp_path):
    found = evaluate(npz_of(tmp_path / "images.npz", arr_0=ONE_COLOUR), None, json.dumps(json.loads(SCORE)))
    assert found["values"]["inception_score"] >= 1 and found["reference"] == {}
    assert json.loads((tmp_path / "found.json").read_text())["metric"] == [json.loads(SCORE)]


class PixelGap:
    """A metric of pixels: the absolute difference of the means."""

    inputs = ("pixels", "real_pixels")
    values = {"gap": "lower"}
    takes_statistics = False
    least_images = 1

    def __call__(self, *, pixels, real_pixels):
        assert pixels.dtype == np.uint8 and pixels.shape[1:] == (1, 16, 16)
        return {"gap": abs(float(pixels.mean()) - float(real_pixels.mean()))}


GAP = NamedMetric(metric=PixelGap(), options={"name": "gap"})


def test_a_metric_of_pixels_needs_no_feature_network(tmp_path):
    images, real = npz_of(tmp_path / "a.npz", arr_0=ONE_COLOUR), folder_of(tmp_path / "real", OTHERS)
    found = write_evaluation(None, [GAP], images=images, reference=real, output=tmp_path / "found.json")
    assert found["gap"] == pytest.approx(abs(ONE_COLOUR.mean() - OTHERS.mean()))
    written = read_json(tmp_path / "found.json")
    assert written["features"] is None and written["reference"]["gap"]["images"] == 50


def test_metrics_of_pixels_and_features_are_measured_together(evaluate, tmp_path):
    images, real = npz_of(tmp_path / "a.npz", arr_0=ONE_COLOUR), npz_of(tmp_path / "b.npz", arr_0=OTHERS)
    expected = evaluate(images, real, FRECHET)
    network = FeatureNetwork(extractor=first_pixels, weights=images, options={"name": "first"})
    frechet = NamedMetric(metric=FrechetDistance(), options={"name": "frechet"})
    with pytest.raises(ValueError, match="--features and --weights"):
        write_evaluation(None, [frechet, GAP], images=images, reference=real, output=tmp_path / "found.json")
    found = write_evaluation(network, [frechet, GAP], images=images, reference=real, output=tmp_path / "found.json")
    assert set(found) == {"frechet", "gap"} and expected["reference"]["frechet"]["images"] == 50
