"""What a config shows of images and networks: shapes, networks that are tried, the origin of an architecture."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from onestep import components
from onestep.config.latent_checks import codec_block, codec_sizes
from onestep.config.messages import one_line
from onestep.config.run import Run, to_document
from onestep.config.sections import Experiment
from onestep.files import read_json
from onestep.inputs import read_registry

_UNKNOWN_CHANNELS, _UNKNOWN_CLASSES = 3, 10  # for trying a network of a dataset that does not state them


class Shape(NamedTuple):
    """Resolution, channels and number of classes of a dataset or network; None if the config does not state it."""

    resolution: int | None = None  # pixels
    channels: int | None = None
    classes: int | None = None  # 0 for no labels, or an unconditional network

    def of_network(self, *, conditional: bool) -> dict[str, Any]:
        """Return the options of a network of such images, with a guess of those that are not known but the size."""
        classes = (self.classes or _UNKNOWN_CLASSES) if conditional else 0
        channels = self.channels or _UNKNOWN_CHANNELS
        return {"img_resolution": self.resolution, "img_channels": channels, "label_dim": classes}

    def differences(self, other: Shape, *, but: tuple[str, ...] = ()) -> list[tuple[str, int, int]]:
        """Return what differs as (name, own value, other value), where both are known."""
        pairs = zip(self._fields, self, other, strict=True)
        return [(key, a, b) for key, a, b in pairs if key not in but and a is not None and b is not None and a != b]


def shape_of(experiment: Experiment, dataset: str) -> Shape:
    """Return the shape of a dataset's images, of what its class and its options state."""
    block = experiment.datasets[dataset]
    whole = experiment.datasets.get(block.dataset or "")
    if whole is not None and whole.dataset is None:
        found, codec = shape_of(experiment, str(block.dataset)), codec_block(experiment, dataset)
        return found if codec is None else _of_latents(found, codec_sizes(experiment, codec))
    known = {**components.describe("data", block.name).constants, **block.options}
    if known.get("labels") == "none":
        known["classes"] = 0
    if block.classes is not None:
        known["classes"] = block.classes
    return Shape(**{key: known[key] for key in Shape._fields if type(known.get(key)) is int})


def _of_latents(pixels: Shape, sizes: tuple[int, int] | None) -> Shape:
    """Return the shape of latents; None for what only the autoencoder's file states."""
    if sizes is None:
        return Shape(classes=pixels.classes)
    factor, channels = sizes
    return Shape(None if pixels.resolution is None else pixels.resolution // factor, channels, pixels.classes)


class Tries:
    """Networks that were built for their errors and the names of their parameters, each once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, str | None]] = {}

    def network(self, block: Any, *, conditional: bool, shape: Shape) -> tuple[Any, str | None]:
        """Try a block of networks/ on images of a shape: see `of`."""
        if shape.resolution is None:
            return None, None
        return self.of("networks", block, **shape.of_network(conditional=conditional))

    def generator(self, trained: Run | None, *, shapes: Mapping[str, Shape]) -> tuple[Any, dict[str, tuple[int, ...]]]:
        """Return the network of `trained_with`, and the shapes of its parameters by their names in a denoiser.

        None and nothing where the config does not show them.
        """
        if trained is None or trained.network is None or trained.dataset not in shapes:
            return None, {}
        network, _ = self.network(trained.network, conditional=trained.conditional, shape=shapes[trained.dataset])
        parameters = network.named_parameters() if hasattr(network, "named_parameters") else ()
        return network, {f"model.{name}": tuple(each.shape) for name, each in parameters}

    def of(self, family: str, block: Any, **supplied: Any) -> tuple[Any, str | None]:
        """Return (network, error): the network is None if it cannot be built here, the error None if it is valid."""
        document = {"name": block.name, **to_document(block.options)}
        key = repr((family, document, supplied))
        if not components.builds_networks():
            return None, None
        if key not in self._known:
            try:
                with components.computing_shown():
                    components.outline(family, block.name)  # imports torch, if there is any
                    with _on_meta_device():
                        self._known[key] = components.build_outline(family, {**document, **supplied}), None
            except ValueError as error:
                self._known[key] = None, one_line(error)
            except Exception:  # of a class from outside, which needs its weights or a real device
                self._known[key] = None, None
        return self._known[key]


def _on_meta_device() -> contextlib.AbstractContextManager[Any]:
    torch = sys.modules.get("torch")
    return contextlib.nullcontext() if torch is None else torch.device("meta")


def trained_with(run: Run, experiment: Experiment) -> Run | None:
    """Return the run whose `network` is the architecture of a run's generator: itself, or one above; None if no run's.

    Above are the run of its teacher, the run of that one's teacher, and so on.
    """
    for _ in experiment.runs:  # a circle is refused elsewhere
        if run.teacher is None:
            return run
        teacher = experiment.teachers.get(run.teacher)
        above = experiment.runs.get((teacher and teacher.run) or "")
        if above is None:
            return None
        run = above
    return None


def _shape_of_folder(path: str | None) -> Shape | None:
    """Return the shape of the network in a folder of diffusers on this machine; None if there is none to be read."""
    for config in () if path is None else (Path(path, part, "config.json") for part in ("", "unet", "transformer")):
        with contextlib.suppress(OSError, ValueError):
            sizes = read_json(config, {"sample_size": int, "in_channels": int})
            classes = sizes.get("num_class_embeds", sizes.get("num_embeds_ada_norm"))
            return Shape(sizes["sample_size"], sizes["in_channels"], classes if type(classes) is int else 0)
    return None


def teacher_differences(
    run: Run, experiment: Experiment, *, shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, str, str]]:
    """Yield (key, the teacher's value and its place, the value of the run or of its dataset)."""
    teacher = experiment.teachers.get(run.teacher or "")
    if teacher is None:
        return
    trained, source = experiment.runs.get(teacher.run or ""), experiment.inputs.get(teacher.input or "")
    if trained is not None and trained.dataset in shapes:
        where, conditional, facts = f"runs.{teacher.run}", trained.conditional, shapes[trained.dataset]
    elif source is not None and source.published is not None and source.published in read_registry():
        network = read_registry()[source.published].network
        where, facts = f"inputs.{teacher.input}", Shape(**network) if network else Shape()
        conditional = bool(facts.classes) if network else run.conditional
    elif source is not None and (found := _shape_of_folder(source.file)) is not None:
        where, facts, conditional = f"inputs.{teacher.input}", found, bool(found.classes)
    else:
        return
    if teacher.without_classes:
        conditional = False
    if conditional != run.conditional:
        yield "conditional", f"{str(conditional).lower()} ({where})", str(run.conditional).lower()
    own = shapes[run.dataset]
    for key, teachers, datasets in facts.differences(own, but=() if run.conditional and conditional else ("classes",)):
        yield key, f"{teachers} ({where})", f"{datasets}, that of datasets.{run.dataset}"
