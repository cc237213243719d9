"""A generator is passed on as one file that builds itself, with a card whose code runs as it stands."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from dit_files import SMALL as DIT_CONFIG
from dit_files import small_dit
from onestep.archive import read_arrays
from onestep.checkpoints.denoiser_folder import read_denoiser_folder
from onestep.checkpoints.diffusers_folder import read_unet2d
from onestep.checkpoints.snapshot import write_snapshot
from onestep.cli import main
from onestep.networks import build_denoiser, load_denoiser
from tiny import tiny_config, tiny_network, write_config
from unet2d_folders import SMALL, network_config, small_unet2d

NETWORK = tiny_network()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a finished run."""
    torch.manual_seed(0)
    folder = tmp_path / "results" / "runs" / "d2o"
    (folder / "snapshots").mkdir(parents=True)
    write_snapshot(folder / "snapshots" / "640.safetensors", build_denoiser(NETWORK).state_dict(), NETWORK)
    objective = {"name": "d2o", "sigma": 80.0}
    document = {"run": "d2o", "dataset": "digits", "teacher": "edm", "objective": objective}
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    (folder / "summary.json").write_text(json.dumps({"parameters": 12_345, "frozen_share": 0.844}))
    return folder


def table_of(run: Path, *snapshots: str) -> Path:
    path = run.parent.parent / "table.json"
    rows = [
        {"run": "d2o", "snapshot": name, "sampler": "one_step", "nfe": 1, "metrics": {"fd": 1.25, "is": None}}
        for name in snapshots
    ]
    rows = [row | {"show": "best"} for row in rows]
    path.write_text(json.dumps(rows))
    return path


def exported(run: Path, *options: str) -> int:
    weights = run / "snapshots" / "640.safetensors"
    terms = [] if "--licence" in options else ["--licence", "mit"]
    return main(["export", "--weights", str(weights), "--output", str(run / "out"), *options, *terms])


def test_the_cards_own_code_makes_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exported(run, "--table", str(table_of(run, "d2o@640"))) == 0
    card = (run / "out" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, flags=re.S).group(1)
    monkeypatch.chdir(run / "out")
    names: dict[str, object] = {}
    exec(code, names)
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "onestep"
    assert names["samples"].pixels.shape == (16, 16, 16, 1)
    assert len(set(map(bytes, names["samples"].pixels.numpy()))) == 16


def test_the_card_of_several_steps_has_its_chain(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = yaml.safe_load((run / "run.yaml").read_text())
    document["objective"] |= {"steps": 2, "middle": 0.5}
    (run / "run.yaml").write_text(yaml.safe_dump(document))
    assert exported(run) == 0
    card = (run / "out" / "README.md").read_text()
    assert "A 2-step image generator" in card
    assert yaml.safe_load(card.split("---")[1])["onestep"]["sampler"] == {
        "name": "chain",
        "steps": 2,
        "sigma": 80.0,
        "middle": 0.5,
    }
    monkeypatch.chdir(run / "out")
    names: dict[str, object] = {}
    exec(re.search(r"```python\n(.*?)```", card, flags=re.S).group(1), names)
    assert names["samples"].pixels.shape == (16, 16, 16, 1)


def test_the_card_says_what_it_is_and_what_was_measured(run: Path) -> None:
    exported(run, "--table", str(table_of(run, "d2o@320", "d2o@640")), "--licence", "apache-2.0")
    card = (run / "out" / "README.md").read_text()
    digest = hashlib.sha256((run / "out" / "generator.safetensors").read_bytes()).hexdigest()
    assert digest in card
    assert "license: apache-2.0" in card
    assert "12,345 parameters, 84.4 % of them frozen, trained on 640 images of digits" in card
    assert "| d2o@640 | one_step | 1 | 1.25 |" in card
    assert "best of its blocks of seeds" in card
    assert "d2o@320" not in card


def licensed(run: Path, capsys: pytest.CaptureFixture[str], **inputs: str | None) -> tuple[int, str, str]:
    """Export with the licences of a dataset and a teacher in the config; return the code, the card and the error."""
    named = {name: {"file": name} | ({} if text is None else {"licence": text}) for name, text in inputs.items()}
    config = tiny_config()
    config["inputs"] |= named
    config["datasets"]["digits"]["input"] = "data"
    config["teachers"]["edm"] = {"pickle": "teacher"}
    config["runs"]["d2o"] = config["runs"]["digits_d2o"] | {"teacher": "edm"}
    write_config(run.parents[2], config)
    weights = run / "snapshots" / "640.safetensors"
    code = main(["export", str(weights), str(run / "out")])
    card = run / "out" / "README.md"
    return code, card.read_text() if card.exists() else "", capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "teacher", "expected"),
    [
        ("CC BY 4.0 (UCI)", "MIT", "cc-by-4.0"),
        ("CC BY 4.0 (UCI)", "MIT (its authors); derived from EDM's checkpoints, CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0"),
        ("CC BY-NC 4.0", "CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0"),
        ("CC BY-SA 4.0", "CC BY-NC-SA 4.0", None),
        ("none stated by its authors", "MIT", None),
        ("MIT; the images are ImageNet's, for non-commercial research", "MIT", None),
        (None, "MIT", None),
    ],
)
def test_the_licence_follows_from_the_inputs_or_is_asked_for(
    run: Path, capsys: pytest.CaptureFixture[str], data: str | None, teacher: str, expected: str | None
) -> None:
    code, card, error = licensed(run, capsys, data=data, teacher=teacher)
    if expected is None:
        assert code == 1 and not (run / "out").exists()
        assert error.count("\n") == 1 and "Fix: --licence" in error
    else:
        assert code == 0 and yaml.safe_load(card.split("---")[1])["license"] == expected


def test_without_a_config_the_licence_is_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), str(run / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--licence" in line and not (run / "out").exists()


def test_an_export_says_how_it_is_sampled(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = yaml.safe_load((run / "run.yaml").read_text())
    (run / "run.yaml").write_text(yaml.safe_dump(document | {"objective": {"name": "d2o", "sigma": 5.0}}))
    assert exported(run) == 0
    with Image.open(run / "out" / "samples.png") as picture:
        assert picture.format == "PNG" and picture.size == (4 * 66 - 2, 4 * 66 - 2)
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(run / "out"), "a.npz", "--seeds", "0-3"]) == 0
    assert main(["sample", str(run), "b.npz", "--seeds", "0-3"]) == 0
    assert read_arrays(Path("a.npz")).about["sampler"] == {"name": "one_step", "sigma": 5.0}
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()


@pytest.mark.parametrize("layout", ["edm", "diffusers"])
def test_a_layout_that_would_make_other_images_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    assert exported(run, "--format", layout) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert layout in line and not (run / "out").exists()


def test_a_unet2d_in_the_layout_of_diffusers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_unet2d()
    config = network_config(SMALL)
    write_snapshot(run / "snapshots" / "640.safetensors", network.state_dict(), config)
    assert exported(run, "--format", "diffusers") == 0
    written = json.loads((run / "out" / "config.json").read_text())
    assert {key: value for key, value in SMALL.items() if value is not None}.items() <= (SMALL | written).items()
    assert not (run / "out" / "generator.safetensors").exists()
    again = read_unet2d(run / "out")
    assert all(torch.equal(again.state_dict[name], each) for name, each in network.state_dict().items())
    assert config.items() <= again.config.items()

    class Unet(torch.nn.Module):
        """As diffusers': called with images and times."""

        def forward(self, images, times):
            return SimpleNamespace(sample=load_denoiser(run / "snapshots" / "640.safetensors").model(images, times))

    package = SimpleNamespace(UNet2DModel=SimpleNamespace(from_pretrained=lambda folder: Unet()))
    monkeypatch.setitem(sys.modules, "diffusers", package)
    card = (run / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "diffusers"
    names: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", card, flags=re.S).group(1), names)
    with torch.no_grad():
        expected = network(names["noisy"], torch.full((16,), names["sigma"]))
    assert torch.allclose(names["images"], expected, atol=1e-3 * names["sigma"] / 80)


def test_diffusers_reads_its_layout(run: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    network = small_unet2d()
    write_snapshot(run / "snapshots" / "640.safetensors", network.state_dict(), network_config(SMALL))
    assert exported(run, "--format", "diffusers") == 0
    unet = diffusers.UNet2DModel.from_pretrained(run / "out").eval()
    assert diffusers.DDPMScheduler.from_pretrained(run / "out").config.prediction_type == "epsilon"
    images, times = torch.randn(3, 1, 16, 16), torch.tensor([0.0, 439.82, 999.0])
    with torch.no_grad():
        assert torch.allclose(unet(images, times).sample, network.model(images, times), atol=2e-5)


DIT = {"img_channels": 3, "label_dim": 3}


@pytest.mark.parametrize("options", [{}, {"no_class": False, "learn_sigma": False}, {"freq_shift": 1}])
def test_a_dit_in_the_layout_of_diffusers(run: Path, options: dict[str, Any]) -> None:
    network = small_dit(law="ddpm", **DIT, **options)
    config = {**DIT_CONFIG, **DIT, **options, "preconditioning": "ddpm"}
    write_snapshot(run / "snapshots" / "640.safetensors", network.state_dict(), config)
    assert exported(run, "--format", "diffusers") == 0
    found = read_denoiser_folder(run / "out")
    again = build_denoiser(found.config).eval()
    again.load_state_dict(found.state_dict, strict=True)
    card = (run / "out" / "README.md").read_text()
    assert "DiTTransformer2DModel" in card and "class_labels=torch.full((16,), 2)" in card
    sigma = torch.tensor([float(re.search(r"sigma, time = ([\d.]+)", card).group(1))])  # type: ignore[union-attr]
    x, classes = torch.randn(4, 3, 16, 16) * sigma, torch.eye(4)[:, :3]  # the last one has no class
    with torch.no_grad():
        apart = (again(x, sigma, classes) - network(x, sigma, classes)).abs().max()
        elsewhere = (again(x, sigma / 9, classes) - network(x, sigma / 9, classes)).abs().max()
    assert apart <= 2e-5 * sigma
    assert (elsewhere <= 2e-5 * sigma / 9) == ("freq_shift" in options)


def test_a_dit_without_classes_or_of_another_law_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for law, classes in (("ddpm", 0), ("flow", 3)):
        network = small_dit(law=law, label_dim=classes)
        config = {**DIT_CONFIG, "label_dim": classes, "preconditioning": law}
        write_snapshot(run / "snapshots" / "640.safetensors", network.state_dict(), config)
        assert exported(run, "--format", "diffusers") == 1
        assert "--format: got diffusers" in capsys.readouterr().err and not (run / "out").exists()


def test_diffusers_runs_an_exported_dit(run: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    network = small_dit(law="ddpm", **DIT)
    config = {**DIT_CONFIG, **DIT, "preconditioning": "ddpm"}
    write_snapshot(run / "snapshots" / "640.safetensors", network.state_dict(), config)
    assert exported(run, "--format", "diffusers") == 0
    names: dict[str, Any] = {}
    card = (run / "out" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, flags=re.S).group(1).replace('"."', repr(str(run / "out")))  # type: ignore[union-attr]
    exec(code, names)
    assert isinstance(names["network"], diffusers.DiTTransformer2DModel)
    classes = torch.eye(3)[[2] * 16]
    with torch.no_grad():
        expected = network(names["noisy"], torch.full((16,), names["sigma"]), classes)
    assert (names["images"] - expected).abs().max() <= 2e-5 * names["sigma"]


def test_the_defaults_of_a_network_are_in_the_layout_of_diffusers(run: Path) -> None:
    left_out = ("norm_eps", "downsample_padding", "flip_sin_to_cos", "freq_shift", "attention_head_dim")
    config = {key: value for key, value in network_config(SMALL).items() if key not in left_out}
    write_snapshot(run / "snapshots" / "640.safetensors", small_unet2d().state_dict(), config)
    assert exported(run, "--format", "diffusers") == 0
    assert network_config(SMALL).items() <= read_unet2d(run / "out").config.items()


def test_a_selected_snapshot_is_exported_with_its_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = run.parents[1] / "selections" / "d2o@best-fid.frechet-one_step-0-31.safetensors"
    chosen.parent.mkdir()
    chosen.write_bytes((run / "snapshots" / "640.safetensors").read_bytes())
    chosen.with_suffix(".json").write_text(json.dumps({"snapshot": "d2o@640"}))
    table = str(table_of(run, "d2o@640"))
    assert main(["export", str(chosen), str(run / "out"), "--licence", "mit", "--table", table]) == 0
    card = (run / "out" / "README.md").read_text()
    assert "| d2o@640 | one_step | 1 | 1.25 |" in card and "trained on 640 images" in card


def test_numbers_of_another_snapshot_are_not_claimed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(run, "--table", str(table_of(run, "d2o@320"))) == 1
    assert "table.json: got rows of d2o@320, expected one of d2o@640" in capsys.readouterr().err
    assert not (run / "out").exists()


def test_what_needs_many_steps_is_not_exported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load((run / "run.yaml").read_text())
    (run / "run.yaml").write_text(yaml.safe_dump(document | {"objective": {"name": "edm"}}))
    assert exported(run) == 1
    assert "got objective edm" in capsys.readouterr().err
