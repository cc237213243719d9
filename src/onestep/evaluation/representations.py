"""Measurement of one block of images in several feature networks, each with features of real and of held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep.evaluation.measurement import (
    Block,
    Reference,
    call_metric,
    check_files,
    check_subject,
    features_of,
    precision_of,
    read_reference,
)
from onestep.files import sealed, write_json
from onestep.metrics import Metric
from onestep.metrics._features import device_record


def write_representations(
    metric: Metric,
    *,
    name: str,
    options: Mapping[str, Any],
    generated: Sequence[Path],
    real: Sequence[Path],
    held_out: Sequence[Path],
    output: Path,
    block: Block | None = None,
) -> None:
    """Measure one block of images by a metric of several feature networks, and record what was compared.

    The files are those of `onestep extract`: of the measured images, of the dataset's and of held-out images, one for
    each network, in one order.

    Raises:
        ValueError: The numbers of files differ, or a file is damaged, of other weights, precision or images than the
            files beside it.
    """
    block = block or Block()
    if not len(generated) == len(real) == len(held_out) > 0:
        found = f"{len(generated)} generated, {len(real)} real and {len(held_out)} held-out"
        raise ValueError(f"measure: got {found} files, expected one of each for each feature network")
    check_files(*generated, *real, *held_out)
    abouts: dict[str, Mapping[str, Any]] = {}
    available: dict[str, dict[str, np.ndarray]] = {"generated": {}, "real": {}, "held_out": {}}
    same, device, arithmetic = _Same(), dict[str, str](), dict[str, Any]()
    for own, other, apart in zip(generated, real, held_out, strict=True):
        extracted = block.features(own)
        about = extracted.about
        check_subject(about.get("subject", {}), path=own)
        network = about.get("features") or own.stem
        if network in abouts:
            raise ValueError(f"{own}: got features by {network} twice, expected each network once")
        rows = features_of(extracted, path=own)
        references = [_reference(path, about=about, width=rows.shape[1], block=block) for path in (other, apart)]
        same.expect("images", about["pixels_sha256"], path=own)
        for role, path, reference in zip(("real", "held_out"), (other, apart), references, strict=True):
            same.expect(role, reference.facts, path=path)
            available[role][network] = np.asarray(reference.real)
        available["generated"][network], abouts[network] = rows, about
        arithmetic |= {f"features_{network}": about.get("arithmetic"), f"reference_{network}": references[0].arithmetic}
        device |= device_record(rows, references[0].real)
    first, facts = next(iter(abouts.values())), same.found["real"]
    try:
        values = call_metric(metric, name=name, available=available)
    except ValueError as error:
        raise ValueError(f"{generated[0]}: {error}") from error
    known = {"images": first.get("sampled"), **arithmetic}
    write_json(
        output,
        sealed(
            {
                **first["subject"],
                "images": first["images"],
                "metric": name,
                "values": values,
                "features": ", ".join(abouts),
                "feature_weights_sha256": {network: about["weights_sha256"] for network, about in abouts.items()},
                "precision": ", ".join(dict.fromkeys(precision_of(about) for about in abouts.values())),
                "reference": {**facts, "held_out": dict(same.found["held_out"])},
                "options": dict(options),
                "better": dict(metric.values),
                "feature_network": {network: about.get("network") for network, about in abouts.items()},
                "pixels_sha256": first["pixels_sha256"],
                "arithmetic": {key: dict(record) for key, record in known.items() if record},
                **device,
            }
        ),
    )


class _Same:
    """Facts that the files of all networks have in common."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def expect(self, key: str, value: Any, *, path: Path) -> None:
        """Raise ValueError if a fact differs from that of the first network."""
        if self.found.setdefault(key, value) != value:
            raise ValueError(f"{path}: got other images than those of the networks before. Fix: extract all again")


def _reference(path: Path, *, about: Mapping[str, Any], width: int, block: Block) -> Reference:
    return read_reference(
        path,
        width=width,
        weights_sha256=about["weights_sha256"],
        precision=precision_of(about),
        takes_statistics=False,
        block=block,
    )
