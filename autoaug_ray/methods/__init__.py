"""A method is a line here, a file beside it, and a study. The common tests cover a new line."""

from typing import Annotated

from pydantic import Field

from autoaug_ray.methods.base import Method, Task, as_float
from autoaug_ray.methods.bilevel import Bilevel
from autoaug_ray.methods.dada import Dada
from autoaug_ray.methods.discrete import AutoAugment, PopulationBased, RandAugment, TrivialAugment
from autoaug_ray.methods.fast_autoaugment import FastAutoAugment
from autoaug_ray.methods.generative import AutoGenDA, Mix
from autoaug_ray.methods.predefined import (
    NoAugmentation,
    Predefined,
    RandomAffine,
    ValidatedMagnitude,
)
from autoaug_ray.methods.replay import Replay
from autoaug_ray.methods.stn import STN

AnyMethod = Annotated[
    NoAugmentation
    | Predefined
    | RandomAffine
    | ValidatedMagnitude
    | RandAugment
    | TrivialAugment
    | AutoAugment
    | PopulationBased
    | FastAutoAugment
    | Dada
    | STN
    | Bilevel
    | Replay
    | Mix
    | AutoGenDA,
    Field(discriminator="name"),
]

METHODS: dict[str, type[Method]] = {
    "none": NoAugmentation,
    "predefined": Predefined,
    "random_affine": RandomAffine,
    "validated_magnitude": ValidatedMagnitude,
    "randaugment": RandAugment,
    "trivialaugment": TrivialAugment,
    "autoaugment": AutoAugment,
    "pba": PopulationBased,
    "fast_autoaugment": FastAutoAugment,
    "dada": Dada,
    "stn": STN,
    "bilevel": Bilevel,
    "replay": Replay,
    "mix": Mix,
    "autogenda": AutoGenDA,
}

__all__ = ["METHODS", "AnyMethod", "Task", "Method", "as_float"]
