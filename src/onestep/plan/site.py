"""Where rules run; none of it is among their params, so that an edit reruns nothing."""

from __future__ import annotations

from onestep.config.launch import Launch


class Site:
    """What a job asks for, in the words of the site.

    Args:
        launch: What the config says of the site.
        container: The image that it names.
    """

    def __init__(self, launch: Launch, *, container: str | None) -> None:
        self._launch, self._container = launch, container

    @property
    def container(self) -> str | None:
        """The image of the rules that need neither the network nor SLURM's commands."""
        return self._container

    @property
    def gres(self) -> str | None:
        """One GPU as a generic resource; None where the site wants GPUs asked for otherwise."""
        named = "gpu" if self._launch.gpu_type is None else f"gpu:{self._launch.gpu_type}"
        return f"{named}:1" if self._launch.gpus == "gres" else None

    @property
    def gpu(self) -> int | None:
        """One GPU by number; None where the site wants GPUs asked for otherwise."""
        return 1 if self._launch.gpus == "gpus" else None

    @property
    def gpu_model(self) -> str | None:
        """Its type, where it is asked for by number."""
        return self._launch.gpu_type if self.gpu is not None else None

    @property
    def threads(self) -> int:
        """Processor cores of a job that feeds a GPU or measures: as many as a process of a training."""
        return self._launch.cpus_per_process
