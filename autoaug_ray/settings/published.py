"""What a study's `published:` may say: the table of a paper, to stand beside what was measured."""

from typing import Literal

from pydantic import Field, model_validator

from autoaug_ray.settings import Settings


class PublishedRow(Settings):
    """What a paper reports of one system. Never part of a run: no training depends on it."""

    accuracy: float = Field(ge=1, le=100)
    """Per cent. A number below 1 is refused: it would be a share of 1."""
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

    @model_validator(mode="after")
    def _some(self) -> "Published":
        if not (self.entries or self.quoted or self.notes):
            raise ValueError("needs entries, quoted or notes; without any, leave it out or empty")
        return self

    @property
    def figures(self) -> bool:
        """Whether any figure is given; notes alone may say what is known of a table that is not
        available."""
        return bool(self.entries or self.quoted)
