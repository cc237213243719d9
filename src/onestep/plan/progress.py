"""How far each run is against its config, from the records in its folders: what training it would do, in words.

Reads small files only: neither weights nor the digests of inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onestep.config.identity import changes
from onestep.config.reading import run_backbones, run_document
from onestep.config.run import Run
from onestep.config.sections import Experiment
from onestep.config.starts import started_from
from onestep.files import read_json
from onestep.results import Results, State
from onestep.run_record import EARLIER, RunRecord, images_seen_of, newest_state, read_run_record


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is; counts are images seen.

    Attributes:
        published: The published run; None if there is none.
        changed: What differs in its science from the config, such as `objective.r1_gamma changed (0.1 -> 0.2)`; empty
            without a published run, or where its configuration is not known.
        finished: Of the published run of this science; 0 if it is not finished.
        work: The work folder of this science; None if there is none.
        state: Of the newest training state in it; None if there is none.
        done: Of a finished training in it; 0 if it is not finished.
    """

    published: RunRecord | None = None
    changed: tuple[str, ...] = ()
    finished: int = 0
    work: Path | None = None
    state: int | None = None
    done: int = 0

    @property
    def is_same(self) -> bool:
        """Whether the published run is recorded as one of the config's science."""
        return self.published is not None and bool(self.published.config) and not self.changed

    @property
    def seen(self) -> int:
        """Images that the run of the config has seen; 0 if it would train from the start."""
        return max(self.finished, self.done, self.state or 0)


def progress(experiment: Experiment, run: str, *, results: Results, state: State) -> Progress:
    """Return how far a run is. A record that is damaged counts as absent."""
    document, folder = run_document(experiment, run), results.run(run)
    published, finished = None, 0
    with contextlib.suppress(ValueError, OSError):
        published = read_run_record(folder)
        finished = 0 if published is None else images_seen_of(folder, spec=published.spec)
    known = published is not None and published.config
    changed = changes(published.config, document) if published is not None and known else []
    found = Progress(published=published, changed=tuple(changed), finished=0 if changed or not known else finished)
    works = []
    for each in state.run(run).glob("*"):
        with contextlib.suppress(ValueError, OSError):
            record = read_run_record(each) if not each.is_symlink() else None
            if record is not None and record.config and not changes(record.config, document):
                done = each / "done.json"
                images = read_json(done, {"images_seen": int})["images_seen"] if done.exists() else 0
                works.append(dataclasses.replace(found, work=each, state=newest_state(each), done=images))
    # Of several, with other input files, that of the published run.
    spec = None if published is None else published.spec
    return max(works, key=lambda each: (each.work is not None and each.work.name == spec, each.seen), default=found)


def without_passed(experiment: Experiment, *, results: Results, state: State) -> Experiment:
    """Return the experiment without snapshots that its runs have passed: they were requested too late."""
    runs = {}
    for name, run in experiment.runs.items():
        passed = tuple(_passed(name, run, progress(experiment, name, results=results, state=state), results=results))
        left = tuple(count for count in run.snapshots if count not in passed)
        runs[name] = dataclasses.replace(run, snapshots=left) if passed else run
    return dataclasses.replace(experiment, runs=types.MappingProxyType(runs))


def _passed(name: str, run: Run, found: Progress, *, results: Results) -> Iterator[int]:
    # Without a state, a run that is to grow is trained from the start, and makes all.
    seen = found.state if run.images > max(found.finished, found.done) else found.seen
    for count in run.snapshots:
        file = f"snapshots/{count}.safetensors"
        made = [results.run(name, file), *([] if found.work is None else [found.work / file])]
        if seen and count < run.images and count <= seen and not any(each.exists() for each in made):
            yield count


def intention(experiment: Experiment, run: str, *, results: Results, state: State) -> str | None:
    """Return what training a run would do, such as "continues digits_d2o from 40,000 to 80,000 images"; None: nothing.

    A training that only publishes again is something, too.
    """
    chosen = experiment.runs[run]
    found = progress(experiment, run, results=results, state=state)
    again_because = [*found.changed, *_changed_sources(experiment, run, results=results, state=state)]
    to = f"{chosen.images:,} images"
    kept = "" if found.published is None else f"; the published run stays in {_earlier(results, run, found)}"
    late = [] if again_because else list(_passed(run, chosen, found, results=results))
    lacks = f" (not at {', '.join(f'{count:,}' for count in late)}: passed before they were requested)" if late else ""
    if found.published is not None and not found.published.config:
        return None  # of an earlier version, with unknown configuration: Snakemake's reasons are all there is
    if not found.changed and found.finished >= chosen.images:
        if len(again_because) > len(found.changed):
            return f"trains {run} from the start if {' and '.join(again_because)}{kept}"
        missing = [n for n in chosen.snapshots if n not in late and not results.snapshot(run, n).exists()]
        return f"publishes {run} again" if missing else f"keeps {run} as it is{lacks}" if late else None
    if found.done >= chosen.images:
        return f"publishes {run} again, which is finished{kept if found.changed else ''}"
    if found.state is not None:
        begins = f"continues {run} from {found.state:,} to" if found.state < chosen.images else f"finishes {run} at"
        return f"{begins} {to}{lacks}{kept if found.changed else ''}"
    if again_because and (found.published is not None or found.work is not None):
        return f"trains {run} from the start to {to} because {' and '.join(again_because)}{kept}"
    if found.seen:
        stays = "published snapshots stay until they are replaced"
        return f"trains {run} from the start to {to} because its state at {found.seen:,} images is gone; {stays}"
    return f"trains {run} to {to}"


def _earlier(results: Results, run: str, found: Progress) -> str:
    spec = "" if found.published is None else found.published.spec
    return str(results.run(run, f"{EARLIER}/{spec}/"))


def _changed_sources(experiment: Experiment, run: str, *, results: Results, state: State) -> Iterator[str]:
    """Yield the networks that a run starts from and that are about to be trained."""
    chosen = experiment.runs[run]
    teacher = None if chosen.teacher is None else experiment.teachers[chosen.teacher].run
    sources = [
        ("its teacher", teacher),
        *(("its backbone", experiment.backbones[b].run) for b in run_backbones(chosen)),
        *started_from(chosen, experiment),
    ]
    for kind, source in sources:
        if source is not None and intention(experiment, source, results=results, state=state) is not None:
            yield f"{kind} {source} changes"
