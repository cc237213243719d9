"""A config for one's own images and checkpoint, whatever holds them."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from checkpoints import edm_writer
from image_archives import write_archive, write_folder, write_zip
from onestep.checkpoints.snapshot import write_snapshot
from onestep.init.teacher import examine_teacher
from onestep.init.verbs import init
from onestep.networks import build_denoiser
from onestep.plan import Plan
from unet2d_folders import write_folder as write_unet2d

UNET = {
    "img_resolution": 16,
    "img_channels": 1,
    "label_dim": 0,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
CLASSES = ("cat", "dog", "owl")


def png(seed: int, *, shape: tuple[int, ...] = (16, 16)) -> bytes:
    """Return a picture of noise."""
    content = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(256, size=shape).astype(np.uint8)).save(content, "png")
    return content.getvalue()


def members(*, labelled: bool = True, images: int = 99, shape: tuple[int, ...] = (16, 16)) -> dict[str, bytes]:
    """Return pictures by name, in class folders if `labelled`."""
    folders = [f"{CLASSES[number % 3]}/" if labelled else "" for number in range(images)]
    return {f"{folder}{number:03d}.png": png(number, shape=shape) for number, folder in enumerate(folders)}


def snapshot_of(path: Path, **changes: object) -> Path:
    """Write the snapshot of a small U-Net."""
    config = {"name": "song_unet", "preconditioning": "edm", **UNET, **changes}
    write_snapshot(path, build_denoiser(config).state_dict(), config)
    return path


def pickle_of(path: Path, **changes: object) -> Path:
    """Write the same network as EDM would publish it."""
    config = {"model_type": "SongUNet", **UNET, **changes}
    arrays = {name: tensor.numpy() for name, tensor in build_denoiser(config).state_dict().items()}
    path.write_bytes(edm_writer.dump({"ema": edm_writer.network(arrays, config)}))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory on a machine without a GPU and a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONESTEP_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def planned(teacher: object = "none", *, dataset: Path, **options: object) -> dict:
    """Return the config that `onestep init` writes, after the checks of the workflow."""
    init(dataset=dataset, teacher=str(teacher), device="cpu", **options)  # type: ignore[arg-type]
    Plan.read("config.yaml")
    return yaml.safe_load(Path("config.yaml").read_text())


def test_a_folder_with_classes_and_no_teacher(here):
    config = planned(dataset=write_folder(Path("pets"), members()))
    assert config["inputs"] == {"pets": {"file": "pets"}}
    assert config["datasets"]["pets"]["labels"] == "folders"
    assert config["datasets"]["pets"]["resolution"] == 16
    assert config["runs"]["pets_edm"]["conditional"] is True
    assert config["runs"]["pets_backbone"]["dataset"] == "pets"
    assert config["tables"]["pets"]["seeds"] == ["0-98", "99-197"]
    assert [row["run"] for row in config["tables"]["pets"]["rows"]] == ["pets_edm", "pets_edm", "pets_d2o_f"]
    assert "fid" not in config["metrics"]


def test_a_zip_without_classes_learns_features_from_rotations_and_takes_a_pickle(here):
    config = planned(pickle_of(Path("edm.pkl")), dataset=write_zip(Path("My photos.zip"), members(labelled=False)))
    assert config["datasets"]["my_photos"]["labels"] == "none"
    assert config["datasets"]["my_photos_rotations"]["labels"] == "rotations"
    assert config["runs"]["my_photos_backbone"]["dataset"] == "my_photos_rotations"
    assert config["teachers"]["my_photos_teacher"] == {"weights": "teacher"}
    assert config["inputs"]["teacher"] == {"file": "edm.pkl"}
    assert "my_photos_edm" not in config["runs"]


def test_the_images_of_a_tar_take_size_channels_and_classes_of_a_conditional_snapshot(here):
    with tarfile.open("photos.tar", "w") as archive:
        for name, content in members(shape=(20, 24)).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    teacher = snapshot_of(Path("t.safetensors"), img_channels=3, label_dim=5, preconditioning="d2o")
    config = planned(teacher, dataset=Path("photos.tar"))
    dataset = config["datasets"]["photos"]
    assert (dataset["resolution"], dataset["channels"], dataset["classes"]) == (16, 3, 5)
    assert dataset["transform"] == "center_crop"
    assert config["runs"]["photos_d2o_f"]["conditional"] is True
    # A one-step generator is not sampled by Heun's method.
    assert [row["sampler"] for row in config["tables"]["photos"]["rows"]] == ["one_step", "one_step"]


def test_the_folder_of_a_unet2d_is_a_teacher(here):
    write_unet2d(Path("unet"))
    config = planned(Path("unet"), dataset=write_folder(Path("d"), members(labelled=False)))
    assert config["inputs"]["teacher"] == {"file": "unet"} and config["teachers"]["d_teacher"] == {"weights": "teacher"}
    assert config["datasets"]["d"]["resolution"] == 16
    experiment = Plan.read("config.yaml").experiment
    assert experiment.runs["d_d2o_f"].preconditioning == "ddpm"
    level = experiment.runs["d_d2o_f"].objective.options["sigma"]
    assert experiment.samplers["one_step"].options["sigma"] == level < 80
    published = examine_teacher("ddpm-cifar10-32", folder=here)
    assert (published.resolution, published.channels, published.classes, published.law) == (32, 3, 0, "ddpm")


def test_an_archive_of_edms_format_keeps_its_labels(here):
    pixels = np.random.RandomState(0).randint(256, size=(99, 3, 16, 16)).astype(np.uint8)
    write_archive(Path("cifar.zip"), [(each, number % 3) for number, each in enumerate(pixels)])
    config = planned(dataset=Path("cifar.zip"))
    assert config["datasets"] == {"cifar": {"name": "image_zip", "input": "cifar"}}
    assert config["runs"]["cifar_edm"]["conditional"] is True


@pytest.mark.parametrize(
    ("names", "labels", "root"),
    [
        (["00000/{}.png", "01000/{}.png"], "none", None),  # parts of a dataset
        (["train/a/{}.png", "train/b/{}.png", "test/a/{}.png"], "folders", "train"),
        (["a/{}.png", "{}.png"], "none", None),
    ],
)
def test_folders_that_are_no_classes(here, names, labels, root):
    files = {names[number % len(names)].format(number): png(number) for number in range(300)}
    config = planned(dataset=write_folder(Path("d"), files))
    assert config["datasets"]["d"]["labels"] == labels
    assert config["datasets"]["d"].get("root") == root


def test_images_of_many_sizes_get_the_power_of_two_next_to_their_median(here):
    files = {f"{n}.png": png(n, shape=(28 + n % 3, 40, 3)) for n in range(100)}
    dataset = planned(dataset=write_folder(Path("d"), files))["datasets"]["d"]
    assert (dataset["resolution"], dataset["transform"], dataset["channels"]) == (32, "center_crop", 3)


REFUSED = {
    "too few images": (lambda: ("none", write_folder(Path("d"), members(images=20))), "20 images"),
    "no images": (lambda: ("none", write_folder(Path("d"), {"a.txt": b"x"})), "no images"),
    "no such teacher": (lambda: ("no.pkl", write_folder(Path("d"), members())), "no.pkl"),
    "weights of another program": (
        lambda: (write_folder(Path("t"), {"a.pt": b"x"}) / "a.pt", write_folder(Path("d"), members())),
        "ends in .pt",
    ),
    "a folder of weights": (
        lambda: (write_folder(Path("t"), {"a": b"x"}), write_folder(Path("d"), members())),
        "folder",
    ),
    "no classes for a conditional teacher": (
        lambda: (snapshot_of(Path("t.safetensors"), label_dim=3), write_folder(Path("d"), members(labelled=False))),
        "3 classes",
    ),
    "colours for a grey teacher": (
        lambda: (snapshot_of(Path("t.safetensors")), write_folder(Path("d"), members(shape=(16, 16, 3)))),
        "1 channel",
    ),
}


@pytest.mark.parametrize(("made", "part"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_and_nothing_is_written(here, made, part):
    teacher, dataset = made()
    with pytest.raises(ValueError, match=r"expected .*Fix: |Fix: .*expected|expected") as caught:
        init(dataset=dataset, teacher=str(teacher), device="cpu")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("config.yaml").exists()


def test_a_config_is_overwritten_only_by_force(here):
    dataset = write_folder(Path("d"), members())
    Path("config.yaml").write_text("mine")
    with pytest.raises(ValueError, match="config.yaml: got an existing file"):
        init(dataset=dataset, teacher="none", device="cpu")
    assert Path("config.yaml").read_text() == "mine"
    assert planned(dataset=dataset, force=True)["runs"]


def test_a_published_name_stands_for_a_teacher_that_is_not_here(here):
    config = planned("edm-cifar10-32x32-uncond-vp", dataset=write_folder(Path("d"), members(shape=(32, 32, 3))))
    assert config["inputs"]["teacher"] == {"published": "edm-cifar10-32x32-uncond-vp"}
    assert config["runs"]["d_d2o_f"]["conditional"] is False


def test_the_snakefile_of_the_package_plans_the_config_from_any_folder(here):
    init(dataset=write_folder(Path("d"), members()), teacher="none", device="cpu", output=Path("own/config.yaml"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "onestep", "run", "--config", "own/config.yaml", "--dry-run", "--cores", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "d_d2o_f" in done.stdout + done.stderr
    assert not (Path("own") / "results").exists()
    shutil.rmtree("own")
    done = subprocess.run([*command[:4]], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
