"""Whether what entries train with that others found is there, and fits: said before any work."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from autoaug_ray import data, policy
from autoaug_ray.config import Entry, Study
from autoaug_ray.data import Splits
from autoaug_ray.errors import UserError
from autoaug_ray.methods import sources
from autoaug_ray.methods.base import Method, Task
from autoaug_ray.methods.sources import Source
from autoaug_ray.report.elsewhere import open_source
from autoaug_ray.report.runs import read_runs
from autoaug_ray.store.folder import Folder

Case = tuple[str, str | None]
"""Names of a study and of its case."""


def check(cases: Sequence[Study], folders: Sequence[Folder], to_come: Mapping[Case, Study]) -> None:
    """Raise UserError, in one sentence, if an entry cannot train with what it names elsewhere.

    `to_come` are the cases that will run beside these or before them; a source among them need not
    have finished. Any other study must have, with the seeds of this one.
    """
    for study, folder in zip(cases, folders, strict=True):
        for entry in study.entries:
            follows = entry.first_method.follows
            source = None if follows is None else sources.parse(follows)
            if source is None or source.study is None:
                continue  # its own study was checked as it was read
            try:
                _check(study, folder, entry, source, to_come)
            except (UserError, ValueError) as error:
                sentence = str(error).rstrip(".")
                raise UserError(f"methods.{entry.label}: {sentence}.") from None


def _check(
    study: Study, folder: Folder, entry: Entry, source: Source, to_come: Mapping[Case, Study]
) -> None:
    if (source.study, source.case) == (study.name, study.case):
        raise ValueError(f"of: {source} stands in this very study; name it {source.label}")
    there, place = to_come.get((str(source.study), source.case)), None
    if there is None:
        root = source.root(folder.root, study.case)
        there, place = open_source(source, root)
    elif there.eliminate is not None:
        raise ValueError(
            f"of: {source} may get fewer seeds, as its study eliminates entries; run it first"
        )
    labels = [e.label for e in there.entries]
    sources.check_label(source.label, labels, f"no label of {source.study}")
    sources.check_source(entry.first_method, there.entry(source.label).first_method)
    if lacking := [seed for seed in study.seeds if seed not in there.seeds]:
        raise ValueError(
            f"of: {source} has no seed {', '.join(map(str, lacking))}, only "
            f"{', '.join(map(str, there.seeds))}; each seed trains with what its own found, so "
            "give both studies the same seeds"
        )
    if place is not None:
        _check_finished(study, there, place, source)
    here, splits = entry.first_method, data.load(study.dataset, val_fraction=None, device="cpu")
    if here.kinds:
        _check_classes(splits, there, source)
    with tempfile.TemporaryDirectory() as made:
        policies = place or _untrained(there, source, Path(made), study.seeds)
        for seed in study.seeds:
            file = policies.policy(source.label, seed) / "policy.pt"
            method: Method = entry.method(next(entry.extremes()) | here.inherit(file))
            method.init(_task(splits), seed, torch.device("cpu"))


def _check_finished(study: Study, there: Study, folder: Folder, source: Source) -> None:
    finals = read_runs(there, folder).finals[source.label]
    for seed in study.seeds:
        if seed not in finals:
            raise ValueError(
                f"of: {source} has not finished seed {seed}; run {source.study} first, to its end"
            )
        if not (folder.policy(source.label, seed) / "policy.pt").is_file():
            raise ValueError(f"of: {source} has left no policy.pt of seed {seed}")


def _check_classes(splits: Splits, there: Study, source: Source) -> None:
    """What is found for every class needs the same classes in the same order."""
    try:
        theirs = data.load(there.dataset, val_fraction=None, device="cpu").classes
    except UserError as error:
        raise UserError(f"of: the classes of {source} cannot be compared: {error}") from None
    if theirs != splits.classes:
        number = f"{len(theirs)} classes there, {len(splits.classes)} here"
        names = "as many, but with other names or in another order"
        raise ValueError(
            f"of: {source} found something for every class, and its classes are not those of this "
            f"study ({names if len(theirs) == len(splits.classes) else number})"
        )


def _untrained(there: Study, source: Source, root: Path, seeds: Sequence[int]) -> Folder:
    """Policies such as the source will leave, with nothing learned in them."""
    entry, folder = there.entry(source.label), Folder(root)
    splits = data.load(there.dataset, val_fraction=None, device="cpu")
    task, choices = _task(splits), next(entry.extremes())
    for seed in seeds:
        method: Method = entry.method(choices)
        state = method.init(task, seed, torch.device("cpu"))
        found = method.found_hyperparameters(state) if method.searches_in_own_run else {}
        run = there.run(entry, "final", seed=seed, choices=choices | found)
        kept = policy.tensors(state.state_dict())
        policy.export(folder.policy(source.label, seed), run, task, kept, [(0.0, kept)], {})
    return folder


def _task(splits: Splits) -> Task:
    counts = torch.bincount(splits.train.labels, minlength=len(splits.classes)).tolist()
    return Task(*splits.train.shape, tuple(counts))
