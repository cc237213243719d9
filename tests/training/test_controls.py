"""Numbers that are steered while a run trains: here the probability of an augmentation, as published for ADA."""

from __future__ import annotations

import pytest
import torch
import yaml

from onestep.checkpoints.training_state import read_training_state
from onestep.config.run import run_of
from onestep.distributed import Ranks
from onestep.objectives import Control, Loss, Phase
from onestep.objectives.d2o import D2O
from onestep.objectives.edm import Edm
from onestep.training.adaptive import AdaptiveParameters
from onestep.training.log import Settled, Window
from onestep.training.loop import record_of, take_step
from onestep.training.resume import Resume
from onestep.training.run import assemble
from onestep.training.step import PhaseReport, set_training_mode

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
D2O_OPTIONS = {"loss": "non_saturating", "sigma": 80.0, "rows_per_rank": 4.0, "r1_gamma": 0.1, "r1_every": 16}
ADA = {
    "name": "stylegan2_ada",
    "probability": 0.0,
    "operations": {"xflip": 1.0, "brightness": 1.0},
    "target": 0.6,
    "interval": 4,
    "ramp_images": 500_000,
}


def ada(**changes):
    return AdaptiveParameters(D2O(**D2O_OPTIONS, augment=ADA | changes).phases())


def observe(controls, *signs, images=256, phase="discriminator"):
    for sign in signs:
        observed = {"signs_real": torch.tensor(sign)}
        nothing = torch.zeros(())
        report = PhaseReport(name=phase, loss=nothing, observed=observed, replaced=nothing, entries=1)
        controls.observe([report], images=images, ranks=ALONE)
    return dict(controls.values())


def test_the_probability_rises_where_the_discriminator_is_overconfident_and_falls_where_it_is_not():
    controls, step = ada(probability=0.2), 4 * 256 / 500_000
    assert observe(controls, 0.9, 0.9, 0.9) == {"augment_probability": 0.2}
    assert observe(controls, 0.9) == {"augment_probability": pytest.approx(0.2 + step, rel=1e-12)}
    observe(controls, -0.1, 0.9, 0.9, 0.5)  # 0.55 on average
    assert observe(controls) == {"augment_probability": pytest.approx(0.2, rel=1e-12)}
    # What came before the last change counts no more.
    assert observe(controls, 0.61, 0.61, 0.61, 0.61)["augment_probability"] > 0.2


def test_the_probability_never_falls_below_zero():
    assert observe(ada(probability=0.001), *[-1.0] * 4) == {"augment_probability": 0.0}


def test_other_phases_do_not_steer_it():
    assert observe(ada(), *[1.0] * 9, phase="generator") == {"augment_probability": 0.0}


@pytest.mark.parametrize(
    "augment", [None, {**ADA, "target": None}, {"name": "edm", "probability": 0.1, "operations": {}}]
)
def test_what_has_no_target_steers_nothing(augment):
    phases = D2O(**D2O_OPTIONS, augment=augment).phases()
    assert not AdaptiveParameters(phases).values() and not AdaptiveParameters(phases).state()


def test_a_state_of_another_control_is_refused():
    with pytest.raises(ValueError, match="augment_probability"):
        ada().restore({})


def test_two_controls_of_one_name_are_refused():
    control = Control(name="a", start=0.0, observes="b", every=1, rule=lambda value, *, mean, images: mean)
    phases = [Phase(name=n, trains="x", loss=lambda p, b: Loss(value=b), controls=(control,)) for n in ("one", "two")]
    with pytest.raises(ValueError, match="controls: .*'a', 'a'"):
        AdaptiveParameters(phases)


@pytest.mark.parametrize(("wrong", "message"), [({"target": 1.5}, "target 1.5"), ({"interval": 0}, "interval 0")])
def test_what_cannot_steer_is_refused(wrong, message):
    with pytest.raises(ValueError, match=f"augment: {message}"):
        D2O(**D2O_OPTIONS, augment=ADA | wrong)


def test_a_denoiser_has_nothing_that_could_steer():
    with pytest.raises(ValueError, match="augment.target: "):
        Edm(p_mean=-1.2, p_std=1.2, sigma_data=0.5, augment=ADA)


def assembled(bench, **augment):
    """Return the tiny D2O run with the demo's networks, augmented as `augment` says on top of ADA."""
    document = yaml.safe_load(bench.document("digits_d2o", batch=8, images=80, snapshots=[80]).read_text())
    document["objective"]["augment"] = ADA | augment
    training = assemble(run_of(document), files=bench.files(document), ranks=ALONE)
    set_training_mode(training.networks, phases=training.phases)
    return training


def steps(training, which):
    return [take_step(training, images_seen=step * training.run.batch, ranks=ALONE) for step in which]


def test_a_resumed_run_steers_on_bitwise(bench, tmp_path):
    """The state falls between two changes, so that the sum of what was observed matters."""
    straight, cut, resumed = (assembled(bench, interval=3, ramp_images=100, target=0.0) for _ in range(3))
    for training, which in ((straight, range(10)), (cut, range(5))):
        Resume(training, folder=tmp_path / "none", ranks=ALONE, code="").restore()
        steps(training, which)
    assert cut.controls.state()["augment_probability"]["steps"] == 2
    Resume(cut, folder=tmp_path, ranks=ALONE, code="").save(images_seen=40, log=Settled(0, ""), window=Window())
    assert read_training_state(tmp_path).values["controls"] == cut.controls.state()
    assert Resume(resumed, folder=tmp_path, ranks=ALONE, code="").restore() == 40
    assert resumed.controls.state() == cut.controls.state()
    steps(resumed, range(5, 10))
    assert resumed.controls.state() == straight.controls.state()
    assert straight.controls.values()["augment_probability"] > 0
    for role, network in straight.networks.items():
        other = resumed.networks[role].state_dict()
        assert all(torch.equal(value, other[name]) for name, value in network.state_dict().items())


def test_the_probability_stands_in_the_log(bench):
    training = assembled(bench, interval=1, ramp_images=8, target=-1.0)
    window = Window()
    for reports in steps(training, range(2)):
        window.add(reports)
    record = record_of(training, images_seen=16, window=window, rate=1.0, seconds=1.0, ranks=ALONE)
    # A tie at -1 changes nothing, all else counts as overconfident: by 8 images of 8 a step.
    assert record["controls"] == {"augment_probability": 2.0}
    assert -1 < record["observed"]["signs_real"] <= 1
