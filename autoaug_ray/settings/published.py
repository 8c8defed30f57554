"""What a study's `published:` may say: the table of a paper, to stand beside what was measured."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from autoaug_ray.errors import did_you_mean
from autoaug_ray.settings import Settings


class PublishedRow(Settings):
    """What a paper reports of one system. Never part of a run: no training depends on it."""

    accuracy: float = Field(ge=1, le=100)
    """Per cent. A number below 1 is refused: it would be a share of 1."""
    top5: float | None = Field(None, ge=1, le=100)
    """Top-5 accuracy, per cent."""
    sd: float | None = Field(None, ge=0)
    """Standard deviation over the seeds, in points."""
    seeds: int | None = Field(None, ge=1)
    """How many seeds `accuracy` is the mean of."""
    cost: float | None = Field(None, gt=0)
    """In trainings of what the study calls its reference."""
    cost_is: Literal["exactly", "about", "more than", "less than"] = "exactly"
    note: str | None = None
    source: str | None = None
    """Where this figure stands, if not in the source of the whole table."""

    @model_validator(mode="after")
    def _whole(self) -> "PublishedRow":
        if self.seeds == 1 and self.sd is not None:
            raise ValueError("sd is over seeds, of which there must be at least 2, got 1")
        if self.cost is None and self.cost_is != "exactly":
            raise ValueError(f"cost_is: {self.cost_is} needs a cost")
        return self


class Claim(Settings):
    """A sentence of a paper that our rows can bear out or contradict; `report.claims` judges it."""

    says: str
    """The claim in words, as the report prints it."""
    kind: Literal["best", "cheaper", "gain", "tail", "rises"]
    """best: `label` is more accurate than each of `over`; cheaper: it costs less. gain: it is above
    the one in `over` by `points`. tail: its gain over that one is larger in the rarest third of the
    classes than in the most frequent. rises: its learned probability of the kind `share` rises with
    the number in which the cases differ (imbalance factor, shots)."""
    label: str
    over: tuple[str, ...] = ()
    points: tuple[float, float] | None = None
    """Lowest and highest gain, in points of accuracy."""
    share: str | None = None
    cases: str | None = None
    """Only the cases whose names hold this text, as in f=0.01."""
    at_least: int | None = Field(None, ge=1)
    """In how many cases (rises: datasets) it is to hold; without it, in all."""

    @model_validator(mode="after")
    def _whole(self) -> "Claim":
        others = {"gain": 1, "tail": 1, "rises": 0}.get(self.kind, len(self.over) or 2)
        if len(self.over) != others:
            wanted = {0: "no label", 1: "one label"}.get(others, "labels of others")
            raise ValueError(f"kind: {self.kind} takes {wanted} in over, got {list(self.over)}")
        for name, kind in (("points", "gain"), ("share", "rises")):
            if (getattr(self, name) is not None) != (self.kind == kind):
                raise ValueError(f"{name} belongs to kind: {kind}, and kind is {self.kind}")
        if self.points is not None and self.points[0] > self.points[1]:
            raise ValueError(f"points must be [lowest, highest], got {list(self.points)}")
        return self


class Published(Settings):
    """A paper's table, to be printed beside what was measured."""

    source: str
    measure: Literal["micro", "macro"] = "micro"
    """How its accuracies were averaged. micro: all test images count the same; macro: all classes
    do."""
    notes: tuple[str, ...] = ()
    """What a reader of the comparison must know: where the paper contradicts itself, say."""
    entries: dict[str, PublishedRow] = {}
    """Label of the study -> what the paper reports of that method."""
    quoted: dict[str, PublishedRow] = {}
    """Any name -> what the paper reports of a system that is not run here."""
    claims: tuple[Claim, ...] = ()
    """What the paper says of its figures, to be held against ours."""

    @model_validator(mode="after")
    def _some(self) -> "Published":
        if not (self.entries or self.quoted or self.notes or self.claims):
            raise ValueError(
                "needs entries, quoted, claims or notes; without any, leave it out or empty"
            )
        return self

    @property
    def figures(self) -> bool:
        """Whether any figure is given; notes alone may say what is known of a table that is not
        available."""
        return bool(self.entries or self.quoted)


def check_labels(labels: Sequence[str], ranked: Sequence[str], published: Published | None) -> None:
    """Raise ValueError where `ranked` or `published` names an entry that is no label of methods."""

    def known(label: str, where: str, hint: str = "") -> None:
        if label not in labels:
            raise ValueError(
                f"{where}: no label of methods{did_you_mean(label, labels)}; known: "
                f"{', '.join(labels)}{hint}."
            )

    for label in ranked:
        known(label, f"ranked.{label}")
    if ranked and len(set(ranked)) < max(3, len(ranked)):
        raise ValueError(f"ranked must be at least 3 different labels, got {list(ranked)}.")
    if published is None:
        return
    for label in published.entries:
        known(
            label, f"published.entries.{label}",
            " (what is not run here stands in published.quoted)",
        )  # fmt: skip
    for i, claim in enumerate(published.claims):
        for label in (claim.label, *claim.over):
            known(label, f"published.claims.{i}: {label}")
    for label in published.quoted:
        if label in labels:
            raise ValueError(
                f"published.quoted.{label}: a label of methods, whose figures stand in "
                "published.entries."
            )
