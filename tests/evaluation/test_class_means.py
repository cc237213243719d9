"""Class embeddings of a dataset, against a plain loop over its images."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from image_archives import write_archive
from onestep.checkpoints.published_weights import read_class_embeddings, write_class_embeddings
from onestep.cli import main
from onestep.discriminators import build_backbone, build_discriminator

_NAME = "test_efficientnet.r160_in1k"
_CLASSES = [2, 0, 1, 1, 0, 2, 2]


def _pixels():
    return np.random.RandomState(1).randint(256, size=(len(_CLASSES), 3, 16, 16), dtype=np.uint8)


def _archive(path, labels):
    write_archive(path, zip(_pixels(), labels, strict=True))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file of a small network of timm, and the network."""
    path = tmp_path_factory.mktemp("weights") / "eye.safetensors"
    torch.manual_seed(0)
    network = timm.create_model(_NAME, pretrained=False)
    save_file(network.state_dict(), path)
    return path, network.eval()


def _embed(weights, data, output, *options):
    arguments = ["--backbone", str(weights), "--data", str(data), "--resolution", "64", "--output", str(output)]
    return main(["embed", *arguments, *options])


def test_a_row_is_the_mean_of_the_last_features_of_its_class(weights, tmp_path):
    path, network = weights
    data, output = _archive(tmp_path / "data.zip", _CLASSES), tmp_path / "own.safetensors"
    assert _embed(path, data, output, "--timm", _NAME) == 0
    mean, std = (torch.tensor(network.pretrained_cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    rows = []
    for wanted in range(3):
        found = []
        for picture, label in zip(_pixels(), _CLASSES, strict=True):
            if label == wanted:
                image = torch.from_numpy(picture)[None] / 255
                image = F.interpolate((image - mean) / std, size=(64, 64), mode="bilinear", align_corners=False)
                with torch.no_grad():
                    last = network.forward_intermediates(image, intermediates_only=True)[-1]
                found.append(last[0].flatten(1).mean(dim=1))
        rows.append(sum(found) / len(found))
    table = read_class_embeddings(output)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, torch.stack(rows), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(table[0], table[1], rtol=0, atol=1e-3)

    again = tmp_path / "again.safetensors"
    _embed(path, data, again, "--timm", _NAME)
    assert again.read_bytes() == output.read_bytes()

    config = {"name": "projected", "backbones": ["eye"], "channels": 4, "resolution": 64, "class_embeddings": "own"}
    backbones = {"eye": build_backbone(path, timm=_NAME)}
    built = build_discriminator(config, backbones=backbones, embedding=read_class_embeddings(output), classes=2, seed=0)
    assert torch.equal(built.discriminators["eye"].mini_discs[0].embed.weight, table[:2])


def test_the_efficientnet_of_the_paper_gives_rows_of_320_numbers(tmp_path):
    name = "tf_efficientnet_lite0.in1k"
    save_file(timm.create_model(name, pretrained=False).state_dict(), tmp_path / "lite0.safetensors")
    data, output = _archive(tmp_path / "data.zip", _CLASSES), tmp_path / "own.safetensors"
    assert _embed(tmp_path / "lite0.safetensors", data, output, "--timm", name) == 0
    assert read_class_embeddings(output).shape == (3, 320)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([None] * len(_CLASSES), "data.zip: got images without labels"),
        ([3, 0, 1, 1, 0, 3, 3], "data.zip: got no image of class 2"),
    ],
)
def test_what_has_no_classes_is_refused_in_one_line(weights, tmp_path, capsys, labels, message):
    data = _archive(tmp_path / "data.zip", labels)
    assert _embed(weights[0], data, tmp_path / "own.safetensors", "--timm", _NAME) == 1
    said = capsys.readouterr().err.strip()
    assert message in said and len(said.splitlines()) == 1 and not (tmp_path / "own.safetensors").exists()


def test_another_file_of_tensors_is_not_taken_for_a_table(weights, tmp_path):
    with pytest.raises(ValueError, match="not a table of class embeddings"):
        read_class_embeddings(weights[0])
    with pytest.raises(ValueError, match="ends in .safetensors"):
        write_class_embeddings(tmp_path / "table.pkl", torch.zeros(1, 1), note={})
