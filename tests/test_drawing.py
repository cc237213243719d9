"""`onestep sample` for people: pictures, arrays and folders of chosen seeds and classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from onestep.archive import read_arrays
from onestep.checkpoints.snapshot import write_snapshot
from onestep.cli import main
from onestep.drawing import draw
from onestep.networks import build_denoiser
from onestep.sampling import generate
from onestep.sampling.heun import Heun
from onestep.sampling.one_step import OneStep
from tiny import tiny_network

NETWORK = tiny_network(label_dim=3)
NAMES = ["cat", "dog", "owl"]


def network(**changes):
    torch.manual_seed(0)
    found = build_denoiser(NETWORK | changes)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3)
    return found.eval()


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The results of a conditional run with two snapshots, and a teacher, in the working directory."""
    run = tmp_path / "results" / "runs" / "pets"
    document = {"run": "pets", "dataset": "pets", "conditional": True, "objective": {"name": "d2o", "sigma": 5.0}}
    for path, content in (
        (run / "run.yaml", yaml.safe_dump(document)),
        (tmp_path / "results" / "data" / "pets.json", json.dumps({"class_names": NAMES})),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for images in (90, 640):
        write_snapshot(run / "snapshots" / f"{images}.safetensors", network().state_dict(), NETWORK)
    teacher = NETWORK | {"preconditioning": "edm", "label_dim": 0}
    state = network(preconditioning="edm", label_dim=0).state_dict()
    write_snapshot(tmp_path / "results" / "teachers" / "edm.safetensors", state, teacher)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def array(*words: str) -> tuple[dict[str, np.ndarray], dict]:
    assert main(["sample", words[0], "out.npz", *words[1:], "--seeds", "3-8"]) == 0
    return read_arrays(Path("out.npz"))


def test_a_grid_a_folder_and_an_array_have_the_same_images(results):
    for output in ("out.png", "out", "out.npz"):
        assert main(["sample", "pets", output, "--seeds", "3-8"]) == 0
    pixels = read_arrays(Path("out.npz")).arrays["pixels"]
    assert pixels.shape == (6, 16, 16, 1) and pixels.std() > 20
    assert sorted(path.name for path in Path("out").iterdir()) == [f"{seed:06}.png" for seed in range(3, 9)]
    for index in range(6):
        assert np.array_equal(pixels_of(Path(f"out/{index + 3:06}.png")), pixels[index, :, :, 0])
    grid = pixels_of(Path("out.png"))
    assert grid.shape == (2 * 66 - 2, 3 * 66 - 2)  # each pixel a square of 4, and gaps of 2
    for index in range(6):
        top, left = index // 3 * 66, index % 3 * 66
        assert np.array_equal(grid[top : top + 64 : 4, left : left + 64 : 4], pixels[index, :, :, 0])


def test_images_are_those_of_the_pipeline_but_only_what_is_asked_for(results):
    rows = []

    class Counting(OneStep):
        def __call__(self, generator, noise, condition, *, random=None):
            rows.append(len(noise))
            return super().__call__(generator, noise, condition, random=random)

    drawn = next(draw(network(), Counting(), seeds=[5]))
    made = next(generate(network(), OneStep(), seeds=[5], batch=1))
    assert rows == [1]
    assert torch.equal(drawn.labels, made.labels)
    assert (drawn.pixels.int() - made.pixels.int()).abs().max() <= 1


def test_the_rules_use_writes_the_pipelines_bytes(results):
    words = ["--weights", "results/runs/pets/snapshots/640.safetensors", "--sampler", '{"name": "one_step"}']
    identity = ["--model", "pets@640", "--sampler-name", "one_step", "--seeds", "0-1", "--grid", "g.npz"]
    assert main(["sample", *words, *identity, "--output", "o.npz"]) == 0
    found = read_arrays(Path("o.npz"))
    made = next(generate(network(), OneStep(), seeds=range(2), batch=2))
    assert np.array_equal(found.arrays["pixels"], made.pixels.numpy()) and Path("g.npz").exists()
    assert found.about["subject"] == {"model": "pets@640", "sampler": "one_step", "seeds": "0-1"}
    assert main(["sample", *words, *identity, "--output", "o.png"]) == 1
    assert not Path("o.png").exists()


def test_a_class_is_chosen_by_number_or_name(results):
    by_number, by_name, drawn = (array("pets", *words)[0] for words in (["--class", "1"], ["--class", "dog"], []))
    assert by_number["labels"].tolist() == [1] * 6 and len(set(drawn["labels"].tolist())) > 1
    assert np.array_equal(by_number["pixels"], by_name["pixels"])
    same = drawn["labels"] == 1
    assert same.any() and np.array_equal(by_number["pixels"][same], drawn["pixels"][same])
    assert not np.array_equal(by_number["pixels"][~same], drawn["pixels"][~same])
    condition = torch.eye(3)[[1]]
    noise = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(3))[None]
    expected = (OneStep(sigma=5.0)(network(), noise, condition) * 127.5 + 128).clip(0, 255).to(torch.uint8)
    assert (expected.int()[0, 0] - torch.from_numpy(by_number["pixels"])[0, :, :, 0].int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("weights", "sampler"),
    [
        ("pets", {"name": "one_step", "sigma": 5.0}),
        ("pets@90", {"name": "one_step", "sigma": 5.0}),
        ("results/runs/pets", {"name": "one_step", "sigma": 5.0}),
        ("edm", {"name": "heun", "steps": 18}),
        ("results/teachers/edm.safetensors", {"name": "heun", "steps": 18}),
    ],
)
def test_weights_know_their_sampler(results, weights, sampler):
    assert array(weights)[1]["sampler"] == sampler


def test_a_file_alone_goes_by_its_law(results, tmp_path):
    (results / "runs/pets/snapshots/640.safetensors").rename(tmp_path / "alone.safetensors")
    assert array("alone.safetensors")[1]["sampler"] == {"name": "one_step"}
    assert array("alone.safetensors", "--sampler", "heun2")[1]["sampler"] == {"name": "heun", "steps": 2}


def test_a_file_of_one_step_has_its_noise_level_and_is_sampled_at_no_other(results, tmp_path, capsys):
    own = {"name": "one_step", "sigma": 2.5}
    config = {**NETWORK, "preconditioning": "edm"}
    write_snapshot(tmp_path / "alone.safetensors", network().state_dict(), config, note={"sampler": own})
    assert array("alone.safetensors")[1]["sampler"] == own
    capsys.readouterr()
    assert main(["sample", "alone.safetensors", "x.png", "--sampler", "one_step"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "alone.safetensors" in line and "expected 2.5" in line and not Path("x.png").exists()
    words = ["--source", "alone.safetensors", "--output", str(results / "teachers" / "one.safetensors")]
    assert main(["convert", *words]) == 0
    assert array("one")[1]["sampler"] == own


def test_a_file_of_several_steps_has_its_chain_and_is_sampled_by_no_other(results, tmp_path, capsys):
    chain = {"name": "chain", "steps": 2, "middle": 0.5, "sigma": 5.0}
    weights, odd = tmp_path / "alone.safetensors", tmp_path / "odd.safetensors"
    write_snapshot(weights, network().state_dict(), NETWORK, note={"sampler": chain})
    write_snapshot(odd, network().state_dict(), NETWORK, note={"sampler": {"name": "chain", "steps": "2"}})
    assert array("alone.safetensors")[1]["sampler"] == chain and array("alone.safetensors")[1]["evaluations"] == 2
    assert array("alone.safetensors", "--sampler", "chain2")[1]["sampler"] == {"name": "chain", "steps": 2}
    assert array("odd.safetensors")[1]["sampler"] == {"name": "one_step"}
    capsys.readouterr()
    for sampler in ("one_step", "heun2", "chain3"):
        assert main(["sample", "alone.safetensors", "x.png", "--sampler", sampler]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "alone.safetensors" in line and "chain with steps: 2" in line
    assert not Path("x.png").exists()
    words = ["--source", str(weights), "--output", str(results / "teachers" / "two.safetensors")]
    assert main(["convert", *words]) == 0
    assert array("two")[1]["sampler"] == chain


def test_the_newest_snapshot_is_that_with_most_images(results):
    (results / "runs/pets/snapshots/640.safetensors").write_bytes(b"damaged")
    assert main(["sample", "pets", "out.png"]) == 1
    (results / "runs/pets/snapshots/640.safetensors").rename(results / "runs/pets/snapshots/640-ema5.safetensors")
    assert main(["sample", "pets", "out.png"]) == 0


REFUSED = {
    "an unknown ending": (["pets", "x.jpg"], ".jpg"),
    "an unknown run": (["pet", "x.png"], "Did you mean pets?"),
    "no weights at all": (["absent/a.safetensors", "x.png"], "absent/a.safetensors"),
    "another kind of file": (["results/data/pets.json", "x.png"], "onestep convert"),
    "a folder of no run": (["results/data", "x.png"], "results/data"),
    "a class that is none": (["pets", "x.png", "--class", "3"], "cat, dog, owl"),
    "a class of an unconditional network": (["edm", "x.png", "--class", "0"], "unconditional"),
    "a sampler with too few steps": (["pets", "x.png", "--sampler", "heun1"], "heun18"),
    "a folder with files": (["pets", "results"], "results"),
    "a folder as a picture": (["pets", "folder.png"], "folder.png"),
    "too many for a picture": (["pets", "y.png", "--seeds", "0-9999"], "10,000"),
}


@pytest.mark.parametrize(("arguments", "named"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_one_line_and_writes_nothing(results, capsys, arguments, named):
    Path("folder.png").mkdir()
    before = sorted(Path().rglob("*"))
    assert main(["sample", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onestep sample: ") and named in line
    assert sorted(Path().rglob("*")) == before


def test_images_that_are_not_finite_leave_no_folder(results):
    broken = network()
    with torch.no_grad():
        next(broken.parameters()).mul_(1e30)
    write_snapshot("broken.safetensors", broken.state_dict(), NETWORK)
    assert main(["sample", "broken.safetensors", "images", "--sampler", "one_step"]) == 1
    assert not Path("images").exists() and not list(Path().glob(".images*"))


def test_a_class_for_each_seed():
    found = next(draw(network(), Heun(steps=2), seeds=[0, 0], classes=[0, 2]))
    assert found.labels.tolist() == [0, 2] and not torch.equal(found.pixels[0], found.pixels[1])
    with pytest.raises(ValueError, match="classes: got 1"):
        next(draw(network(), Heun(steps=2), seeds=[0, 0], classes=[0]))
    with pytest.raises(ValueError, match="class: got 3"):
        next(draw(network(), Heun(steps=2), seeds=[0], classes=[3]))
