"""search_spaces/*.yaml -> Study -> Runs. Every error is one sentence that names its key.

A study's `methods:` maps labels to the hyperparameters of a method, any of which may be a range:

    grid: [a, b, ...]       every value (all combinations of all grids)
    choice: [a, b, ...]     one of them at random
    uniform, loguniform, randint: [low, high]   (randint includes low and excludes high)

A method without ranges has nothing to search: it goes straight to its final trainings.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, ValidationError

from autoaug_ray import own_code
from autoaug_ray.errors import UserError, did_you_mean
from autoaug_ray.generate.settings import Generation, Workers
from autoaug_ray.methods import METHODS, OF_THE_STAGE, AnyMethod, method_class, sources
from autoaug_ray.settings import Settings
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.dataset import Dataset
from autoaug_ray.settings.published import Published, check_labels
from autoaug_ray.settings.ranges import RANGE_KINDS, Range, Search, range_of
from autoaug_ray.settings.resources import Resources
from autoaug_ray.settings.training import Training
from autoaug_ray.settings.tree import apply, assign, brief, check_plain, plain, read_yaml

INNER = {"entries", "bank_plans", "case", "code"}
"""Fields of a study that its YAML does not hold."""
EARLY = (3, 5, 8, 12, 18, 27, 41, 61, 91)
"""Numbers of seeds after which a study that eliminates entries is looked at; each is about 1.5
times the one before."""
MOST_RUNS = 100_000
"""Most seeds, and most trainings in a search; what is more was not meant."""
S = TypeVar("S", bound=Settings)


FileName = Annotated[str, Field(pattern=r"^[^./\\\x00][^/\\\x00]*$")]
"""What names a file or a folder: it must not lead to another one, whoever wrote it."""


class Entry(Settings):
    """One row of the final table: a method, its hyperparameters, and what is searched."""

    label: FileName
    hyperparameters: dict[str, Any]
    ranges: dict[str, Range] = {}
    search: Search = Search()
    resources: Resources | None = None
    control_of: str | None = None
    """The learned entry that this one is the control of."""

    def method(self, choices: Mapping[str, Any]) -> AnyMethod:
        """The method with one value chosen for each range."""
        settings = {**self.hyperparameters, **choices}
        return _validate(method_class(settings["name"]), settings, f"methods.{self.label}")

    @property
    def first_method(self) -> AnyMethod:
        """The method with its first choices, to be asked what does not depend on them."""
        return self.method(next(self.extremes()))

    def grid(self) -> list[dict[str, Any]]:
        """All combinations of the grids; one empty combination if no range is a grid."""
        grids = {k: r.values for k, r in self.ranges.items() if r.kind == "grid"}
        return [
            dict(zip(grids, combination, strict=True))
            for combination in itertools.product(*grids.values())
        ]

    def extremes(self) -> Iterator[dict[str, Any]]:
        """Choices that between them hold every listed value and both ends of every range."""
        ends = {
            k: (r.values[0], r.values[1] - 1) if r.kind == "randint" else r.values
            for k, r in self.ranges.items()
        }
        for i in range(max(map(len, ends.values()), default=1)):
            yield {k: v[min(i, len(v) - 1)] for k, v in ends.items()}


class Run(Settings):
    """One training, frozen and checked: all that its result may depend on."""

    label: FileName
    phase: Literal["search", "final"]
    seed: int
    index: int = 0
    """Number of the trial within its entry's search; 0 for a final run."""
    dataset: Dataset
    model: Classifier
    train: Training
    val_fraction: float | None
    """None in a search run whose result is not compared: it trains on the whole pool."""
    method: AnyMethod
    bank_plan: str | None = None
    """Key of the plan (models, prompts, sources) of the generated images that the method mixes."""

    @property
    def key(self) -> str:
        """16 hex digits of a hash over everything above: the run's name on disk.

        Where a file lies that the method reads is left out; its content is in.
        """
        text = self.model_dump_json(exclude={"method": set(self.method.places)})
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Study(Settings):
    """All that a YAML file, or one case of it, asks for: entries, compared on one dataset."""

    name: FileName
    dataset: Dataset
    model: Classifier = Classifier()
    train: Training = Training()
    val_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the pool that chooses between search trials; it trains the final ones."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the final trainings. Search trials use the first."""
    eliminate: float | None = Field(None, gt=0, le=0.5)
    """An entry gets no more seeds once its chance of still becoming the answer is below this; None:
    every entry gets all of them (see `report.elimination`)."""
    resources: Resources = Resources()
    generate: Generation = Generation()
    workers: Workers = Workers()
    """Workers that make the generated images, if some method mixes any."""
    bank_plans: dict[str, str] = {}
    """`pool_name` -> key of the pool's bank plan; filled in when the bank is filled."""
    case: FileName | None = None
    """Name of this case, in a study with several."""
    reference: str = "none"
    """The label whose training is the unit of relative cost."""
    ranked: tuple[str, ...] = ()
    """Labels of the entries that are ranked across the cases; without any, all are."""
    published: Published | None = None
    entries: tuple[Entry, ...]
    code: dict[str, str] = {}
    """Methods and dataset of the user's own: name in the settings -> file or module."""

    def model_post_init(self, context: Any) -> None:
        for name, where in self.code.items():
            own_code.locate(name, where)

    @classmethod
    def from_yaml(
        cls,
        path: str | Path,
        *,
        changes: Mapping[str, Any] | Sequence[str] = (),
        seeds: int | None = None,
        case: str | None = None,
    ) -> "Study":
        """The study of a YAML file; of one with cases, the one that `case` names.

        `changes`: {"train.epochs": 5}, or as of --set, ["train.epochs=5"]. Raises UserError.
        """
        return _named_case(load(Path(path).expanduser(), changes=changes, seeds=seeds), case)

    @classmethod
    def from_dict(
        cls,
        tree: Mapping[str, Any],
        *,
        name: str = "study",
        case: str | None = None,
    ) -> "Study":
        """The study, or one case, of what a YAML would hold; tuples and paths may stand in it.

        `name` is that of the folder of its results. Raises UserError.
        """
        return _named_case(cases_of(plain(tree, name), name=name), case)

    def run(
        self,
        entry: Entry,
        phase: Literal["search", "final"],
        *,
        seed: int,
        choices: Mapping[str, Any],
        index: int = 0,
        whole_pool: bool = False,
    ) -> Run:
        """One run of an entry. `whole_pool`: a search run that sets no validation images apart."""
        method = entry.method(choices).pinned()
        val_fraction = None if whole_pool else self.val_fraction
        pool = self.pool_name(seed, val_fraction if phase == "search" else None)
        return Run(
            label=entry.label,
            phase=phase,
            seed=seed,
            index=index,
            dataset=self.dataset,
            model=self.model,
            train=method.training(phase, self.train),
            val_fraction=val_fraction,
            method=method,
            bank_plan=self.bank_plans.get(pool) if method.kinds else None,
        )

    def pool_name(self, seed: int, val_fraction: float | None) -> str:
        """Name of the images that a run trains on; seeds may share a pool."""
        drawn = (self.dataset.imbalance or self.dataset.shots) and self.dataset.redraw
        part = "whole" if val_fraction is None else "without val"
        return f"seed {seed}, {part}" if drawn else part

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of seeds after which entries may be eliminated, none of them close to that of all
        seeds, which is the last one."""
        n = len(self.seeds)
        return (*(k for k in EARLY if self.eliminate is not None and 1.5 * k <= n), n)

    def entry(self, label: str) -> Entry:
        return next(e for e in self.entries if e.label == label)

    def resources_of(self, label: str) -> Resources:
        return self.entry(label).resources or self.resources


def load(
    path: Path, *, changes: Sequence[str] | Mapping[str, Any] = (), seeds: int | None = None
) -> list[Study]:
    """Read a study and change what `dotted.key=value`, or a mapping from dotted keys to values,
    says; one per case. Raises UserError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
    tree = read_yaml(text, f"{path} is not valid YAML")
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping with dataset: and methods: in it.")
    return cases_of(tree, name=path.stem, folder=path.parent, changes=changes, seeds=seeds)


def cases_of(
    tree: dict[str, Any],
    *,
    name: str,
    folder: Path = Path(),
    changes: Sequence[str] | Mapping[str, Any] = (),
    seeds: int | None = None,
) -> list[Study]:
    """The studies of a tree, which stands in `folder`: one, or one per case. Raises UserError.

    The tree is changed by what `load` is told to change.
    """
    if isinstance(changes, Mapping):
        changes = [f"{key}={json.dumps(plain(value, key))}" for key, value in changes.items()]
    for change in changes:
        apply(tree, change)
    if seeds is not None:
        tree["seeds"] = seeds
    check_plain(tree)
    cases = tree.pop("cases", None)
    if cases is None:
        return [study(tree, name=name, folder=folder)]
    if not isinstance(cases, dict) or not cases:
        raise UserError("cases must map at least one name to what it changes in the study.")
    return [_case(tree, name, folder, case, body, changes) for case, body in cases.items()]


def _named_case(studies: list[Study], case: str | None) -> Study:
    known = [one.case for one in studies]
    if case in known:
        return studies[known.index(case)]
    name = studies[0].name
    if known == [None]:
        raise UserError(f"case: {name} has no cases, got {case!r}.")
    raise UserError(
        f"case must be one of {name}'s, got {case!r}: {', '.join(map(str, known))}; load_studies "
        "reads all of them."
    )


def _case(
    tree: dict[str, Any], study_name: str, folder: Path, name: Any, body: Any, last: Sequence[str]
) -> Study:
    """The study as a case of it changes it: `dotted.key: value`. --set has the last word."""
    where = f"cases.{name}"
    if not isinstance(name, str) or not re.fullmatch(r"[\w=.+-][\w=.+ -]*", name):
        raise UserError(f"{where}: a case's name is made of letters, digits and = . + - _.")
    if not isinstance(body, dict):
        raise UserError(f"{where} must map dotted keys to values, got {body!r}.")
    tree = json.loads(json.dumps(tree))
    for key, value in body.items():
        assign(tree, str(key), value, where)
    for change in last:
        apply(tree, change)
    return study(tree, name=study_name, case=name, folder=folder)


def study(
    tree: Mapping[str, Any], *, name: str, case: str | None = None, folder: Path = Path()
) -> Study:
    """A study from the tree of its YAML, which stands in `folder`. Raises UserError."""
    check_plain(dict(tree))
    tree = dict(tree)
    for key in INNER & set(tree):
        raise UserError(f"{key}: unknown key.")
    methods = tree.pop("methods", None)
    if not isinstance(methods, dict) or not methods:
        raise UserError("methods must map at least one label to its hyperparameters.")
    if isinstance(tree.get("model"), str):
        tree["model"] = {"name": tree["model"]}
    count = tree.get("seeds", 3)
    if type(count) is int:
        if not 1 <= count <= MOST_RUNS:
            raise UserError(
                f"seeds must be between 1 and {MOST_RUNS}, or a list of whole numbers, got {count}."
            )
        tree["seeds"] = list(range(count))
    # All that can be checked before the files of methods are imported, which takes seconds.
    named = [_named(label, body) for label, body in methods.items()]
    dataset = tree.get("dataset")
    if isinstance(dataset, dict) and own_code.is_own(dataset.get("name")):
        tree["dataset"] = dataset | {"name": _own(dataset["name"], folder, "dataset.name")}
    checked: Study = _validate(Study, {"name": name} | tree | {"case": case, "entries": []}, "")
    entries = [entry for parts in named for entry in _entries(*parts, folder)]
    code = own_code.where_is([checked.dataset.name, *(e.hyperparameters["name"] for e in entries)])
    checked = checked.model_copy(update={"entries": tuple(entries), "code": code})
    labels = [e.label for e in entries]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UserError(f"methods.{min(twice)}: two entries have this label.")
    if checked.reference not in labels:
        raise UserError(
            f"reference is {checked.reference!r}, which is no label of methods; "
            f"known: {', '.join(labels)}."
        )
    if checked.train.lr_decay < 1 and checked.model.frozen:
        raise UserError(
            f"train.lr_decay: {checked.train.lr_decay} is for several layers, but with "
            f"{'head_only' if checked.model.head_only else 'freeze_backbone'} one alone learns."
        )
    for entry in entries:
        _check_entry(entry, checked)
    checked.generate.check(
        {e.label: {k for c in e.extremes() for k in e.method(c).kinds} for e in entries}
    )
    try:
        check_labels(labels, checked.ranked, checked.published)
    except ValueError as error:
        raise UserError(str(error)) from None
    if len(set(checked.seeds)) < len(checked.seeds) or not checked.seeds:
        raise UserError(f"seeds must be different whole numbers, got {list(checked.seeds)}.")
    if checked.eliminate is not None and len(checked.looks) < 2:
        raise UserError(f"eliminate: it takes seeds: 5 or more, got {len(checked.seeds)}.")
    return checked


def _check_entry(entry: Entry, checked: Study) -> None:
    """Raise UserError for an entry that does not suit the rest of the study."""
    for choices in entry.extremes():
        method = entry.method(choices)
        try:
            method.check(checked.train)
            others = [e.label for e in checked.entries if e.label != entry.label]
            sources.check(method, others, lambda label: checked.entry(label).first_method)
        except ValueError as error:
            raise UserError(f"methods.{entry.label}.{error}.") from None


def _named(label: Any, body: Any) -> tuple[str, str, dict[str, Any]]:
    """(label, name of the method, what else the label maps to). Raises UserError."""
    where = f"methods.{label}"
    if not isinstance(label, str) or not re.fullmatch(r"[\w+:-][\w+:() -]*", label):
        raise UserError(
            f"{where}: a label is made of letters, digits, spaces, and any of _ + : - ( ), "
            f"got {label!r}."
        )
    if body is None:
        body = {}
    if not isinstance(body, dict):
        raise UserError(f"{where} must map hyperparameters to values, got {body!r}.")
    body = dict(body)
    name = body.pop("method", None) or label
    if not isinstance(name, str):
        raise UserError(f"{where}.method must be the name of a method, got {brief(name)}.")
    if "name" in body:
        raise UserError(f"{where}.name: unknown key (did you mean method?).")
    is_own = name != label and own_code.is_own(name)
    if not is_own and name not in METHODS:
        if setting := OF_THE_STAGE.get(str(name).lower()):
            raise UserError(
                f"{where}.method: {name} is no method but a setting of those that augment, as in "
                f"{{method: predefined, {setting}}}."
            )
        raise UserError(
            f"{where}.method: unknown method {name!r}{did_you_mean(str(name), METHODS)}; "
            f"known: {', '.join(METHODS)}, and path/to/file.py:Class of your own."
        )
    return label, name, body


def _entries(label: str, name: str, body: dict[str, Any], folder: Path) -> Iterator[Entry]:
    """The entry of a label, and those of its controls."""
    where = f"methods.{label}"
    if name not in METHODS:
        name = _own(name, folder, f"{where}.method")
    own: dict[str, Any] = {k: body.pop(k) for k in ("search", "resources") if k in body}
    try:
        learns = "learn" in method_class(name).model_fields
    except UserError as error:
        raise UserError(f"{where}.method: {error}") from None
    controls = body.pop("controls", None)
    if not isinstance(controls, list | None):
        raise UserError(f"{where}.controls must be a list such as [off], got {brief(controls)}.")
    if controls and not learns:
        raise UserError(f"{where}.controls: {name} learns nothing that could be switched off.")
    ranges = {
        k: range_of(v, f"{where}.{k}")
        for k, v in body.items()
        if isinstance(v, dict) and set(v) & set(RANGE_KINDS)
    }
    fixed = {k: v for k, v in body.items() if k not in ranges}
    tree: dict[str, Any] = {"label": label, "hyperparameters": {"name": name, **fixed}, **own}
    entry: Entry = _validate(Entry, {**tree, "ranges": _dump(ranges)}, where)
    trials = math.prod(len(r.values) for r in ranges.values() if r.kind == "grid")
    if trials * entry.search.samples > MOST_RUNS:
        raise UserError(f"{where}: its search would be more than {MOST_RUNS} trainings.")
    yield entry
    if controls is None:
        by_default = learns and "learn" not in body and entry.first_method.learns
        controls = ["off"] if by_default else []
    for learn in controls:
        hyperparameters = {**entry.hyperparameters, "learn": learn}
        own = {"label": f"{label} learn:{learn}", "hyperparameters": hyperparameters}
        yield Entry.model_validate(dict(entry) | own | {"control_of": label})


def _own(reference: str, folder: Path, where: str) -> str:
    """The name in settings of code that a study refers to."""
    try:
        return own_code.find(reference, folder)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _dump(ranges: Mapping[str, Range]) -> dict[str, Any]:
    return {k: r.model_dump() for k, r in ranges.items()}


def _validate(model: type[S], tree: Mapping[str, Any], where: str) -> S:
    """Strict validation of what YAML said; the first error as one sentence.

    Through JSON, whose lists become tuples also in strict mode.
    """
    try:
        return model.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise UserError(_sentence(error, model, where)) from None


def _sentence(error: ValidationError, root: type[Settings], where: str) -> str:
    errors = error.errors()
    # A misspelt key is told before the one that is missing because of it.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    # A method within a method: pydantic puts its name into the path, the YAML does not.
    tags = () if root is Study else METHODS
    loc = [str(p) for p in first["loc"] if p not in tags]
    path = ".".join([p for p in (where, *loc) if p])
    kind, value = first["type"], first.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(root, first["loc"])
        return (
            f"{path}: unknown key{did_you_mean(loc[-1], known)}; known: {', '.join(sorted(known))}."
        )
    if kind == "missing":
        return f"{path} is missing."
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    got = "" if isinstance(value, dict) else f", got {brief(value)}"
    return f"{path}: {message}{got}."


def _known_keys(root: type[Settings], loc: tuple[int | str, ...]) -> Iterable[str]:
    """The keys of the settings object in which an unknown one was found."""
    model: Any = root
    for part in loc[:-1]:
        if root is not Study and part in METHODS:
            model = method_class(str(part))
            continue
        field = model.model_fields.get(part)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        model = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, Settings)), model
        )
    known = set(model.model_fields)
    if model is Study:
        return known - INNER | {"methods", "cases"}
    if model is root and root is not Entry:
        return known - {"name"} | {"method", "search", "resources", "controls"}
    return known
