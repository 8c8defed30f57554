"""The commands from Python, as in a notebook: `run` a study, `compare` methods on a folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from autoaug_ray.config import Study
from autoaug_ray.errors import UserError
from autoaug_ray.methods import METHODS, method_class
from autoaug_ray.settings.tree import read_yaml

if TYPE_CHECKING:
    from autoaug_ray.methods.stage import Flip
    from autoaug_ray.report.results import StudyResults


AnyPath: TypeAlias = str | os.PathLike[str]


@overload
def run(
    study: Study,
    *,
    out: AnyPath | None = None,
    bank: AnyPath | None = None,
    resume: bool = False,
    wandb: str | None = None,
) -> "StudyResults": ...
@overload
def run(
    study: Sequence[Study],
    *,
    out: AnyPath | None = None,
    bank: AnyPath | None = None,
    resume: bool = False,
    wandb: str | None = None,
) -> "dict[str, StudyResults]": ...
def run(
    study: Study | Sequence[Study],
    *,
    out: AnyPath | None = None,
    bank: AnyPath | None = None,
    resume: bool = False,
    wandb: str | None = None,
) -> "StudyResults | dict[str, StudyResults]":
    """Run a study, or cases of one (`load_studies`), write the pages, and return what they say.

    It is the command `autoaug-ray run`, with its options and what it prints. A Ray that runs in
    this process is used and left running; else one is started and ended. Of cases, none of which is
    left out, the results are a dict by their names. Runs that failed are `results.failures`. Raises
    UserError for what is wrong with a study or the place, StorageError if the place cannot be used
    any more.
    """
    from autoaug_ray.commands.run import OUT, run_studies
    from autoaug_ray.report.results import collect_cases, studies_in
    from autoaug_ray.report.wandb import MODES
    from autoaug_ray.schedule import cluster
    from autoaug_ray.store.places import place

    cases = [study] if isinstance(study, Study) else list(study)
    names = [(one.name, one.case) for one in cases]
    if len({name for name, _ in names}) != 1 or len(set(names)) < len(names):
        raise UserError(f"study must be one study, or different cases of one, got {names}.")
    if wandb not in (None, *MODES):
        raise UserError(f"wandb must be one of {', '.join(MODES)}, got {wandb!r}.")
    with cluster.left_as_found():
        run_studies(
            [cases], out=_text(out), bank=_text(bank), resume=resume, dry_run=False, wandb=wandb,
            named=True,
        )  # fmt: skip
    root = place(_text(out) or OUT) / cases[0].name
    folders = [root / one.case if one.case else root for one in cases]
    ran = collect_cases([found for folder in folders for found in studies_in(folder)])
    return ran[0] if isinstance(study, Study) else {one.name: one for one in ran}


def _text(path: AnyPath | None) -> str | None:
    return None if path is None else os.fspath(path)


def compare(
    folder: AnyPath,
    methods: Sequence[str] | Mapping[str, Any] | None = None,
    *,
    seeds: int | None = None,
    epochs: int | None = None,
    flip: "Flip" = "horizontal",
    resume: bool = False,
    **options: Any,
) -> "StudyResults":
    """Run the study that `autoaug-ray init` proposes for a folder of images.

    The proposal is written to runs/NAME.yaml, after the folder's name; with `resume` the one that
    is there is used. `methods`: names, with the settings that are proposed, or as in a study,
    labels with settings; without it, those that are proposed. `none`, the unit of cost, is always
    among them. `seeds` and `epochs` take the place of the proposed ones, `flip` says how images may
    be mirrored, and `options` are those of `run`. Raises UserError, as `run` does.
    """
    from autoaug_ray.commands.init import propose_study
    from autoaug_ray.commands.run import OUT

    images = Path(folder).expanduser()
    path = Path(OUT, f"{images.resolve().name}.yaml")
    if not (resume and path.exists()):
        path.parent.mkdir(exist_ok=True)
        propose_study(images, path, flip)
    tree = read_yaml(path.read_text(), f"{path} is not valid YAML")
    if methods is not None:
        tree["methods"] = {"none": None} | _chosen(methods, tree["methods"])
    if seeds is not None:
        tree["seeds"] = seeds
    if epochs is not None:
        tree["train"]["epochs"] = epochs
    return run(Study.from_dict(tree, name=path.stem), resume=resume, **options)


def _chosen(
    methods: Sequence[str] | Mapping[str, Any], proposed: Mapping[str, Any]
) -> dict[str, Any]:
    """label -> settings; of a name alone, those that are proposed or, as all of these have them,
    flip and sampler. A name that is unknown is left for the study to refuse."""
    if isinstance(methods, Mapping):
        return dict(methods)
    known = [item for settings in proposed.values() for item in (settings or {}).items()]
    shared = {"flip": "none"} | {
        k: v for k, v in known if k == "sampler" or (k == "flip" and v != "learned")
    }

    def settings(name: str) -> dict[str, Any]:
        fields = method_class(name).model_fields if name in METHODS else {}
        found = {k: v for k, v in shared.items() if k in fields}
        if "then" in fields:  # it stands on top of a policy, of which the flip is
            policy = fields["then"].get_default()
            flipped = {"name": policy.name, "flip": shared["flip"]}
            found["then"] = policy.model_dump(mode="json", exclude_defaults=True) | flipped
        return found

    return {name: proposed[name] if name in proposed else settings(name) for name in methods}
