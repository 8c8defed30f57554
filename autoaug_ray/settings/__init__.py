"""The one base of everything that a YAML can say: typed, frozen, strict."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Unknown keys, wrong types and values out of range are errors; an instance never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
