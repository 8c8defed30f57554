"""A method is a line here, a file beside it, and a study. The common tests cover a new line.

This file imports no method, and so no torch: a study with a typing error is told so at once.
"""

import json
from importlib import import_module
from inspect import isabstract
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator, SerializeAsAny

from autoaug_ray import own_code
from autoaug_ray.errors import UserError
from autoaug_ray.settings import Settings

if TYPE_CHECKING:
    from autoaug_ray.methods.base import Method

METHODS: dict[str, str] = {
    "none": "autoaug_ray.methods.predefined:NoAugmentation",
    "predefined": "autoaug_ray.methods.predefined:Predefined",
    "random_affine": "autoaug_ray.methods.predefined:RandomAffine",
    "validated_magnitude": "autoaug_ray.methods.predefined:ValidatedMagnitude",
    "randaugment": "autoaug_ray.methods.discrete:RandAugment",
    "trivialaugment": "autoaug_ray.methods.discrete:TrivialAugment",
    "autoaugment": "autoaug_ray.methods.discrete:AutoAugment",
    "pba": "autoaug_ray.methods.discrete:PopulationBased",
    "entaugment": "autoaug_ray.methods.entaugment:EntAugment",
    "augmix": "autoaug_ray.methods.augmix:AugMix",
    "mixup": "autoaug_ray.methods.mixing:Mixup",
    "cutmix": "autoaug_ray.methods.mixing:CutMix",
    "mixup_cutmix": "autoaug_ray.methods.mixing:MixupCutMix",
    "timm_recipe": "autoaug_ray.methods.mixing:TimmRecipe",
    "fast_autoaugment": "autoaug_ray.methods.fast_autoaugment:FastAutoAugment",
    "dada": "autoaug_ray.methods.dada:Dada",
    "stn": "autoaug_ray.methods.stn:STN",
    "saflex": "autoaug_ray.methods.saflex:Saflex",
    "bilevel": "autoaug_ray.methods.bilevel:Bilevel",
    "learned_ops": "autoaug_ray.methods.learned_ops:LearnedOps",
    "replay": "autoaug_ray.methods.replay:Replay",
    "mix": "autoaug_ray.methods.generative:Mix",
    "autogenda": "autoaug_ray.methods.generative:AutoGenDA",
}
"""The name of a method in a study -> the module and the class."""

OF_THE_STAGE = {
    "random_erasing": "erase: {}",
    "random_resized_crop": "resized_crop: [0.08, 1.0]",
    "cutout": "cutout: 16",
    "flip": "flip: horizontal",
    "crop": "crop: 4",
}
"""What is no method, but a setting of any that augments -> that setting, as one may write it."""


def method_class(name: str) -> "type[Method]":
    """The class of a method that settings name: one of METHODS, or a user's own (`own_code`).

    Raises KeyError for an unknown name, and UserError for own code that is not there or no method.
    """
    if own_code.is_own(name):
        return _own_class(name)
    module, class_name = METHODS[name].split(":")
    out: type[Method] = getattr(import_module(module), class_name)
    return out


def _own_class(name: str) -> "type[Method]":
    from autoaug_ray.methods.base import Method

    out = own_code.load(name)
    if not (isinstance(out, type) and issubclass(out, Method)):
        raise UserError(f"{name} is no method: it must be a subclass of methods.base.Method.")
    if isabstract(out):
        raise UserError(f"{name} lacks {', '.join(sorted(out.__abstractmethods__))}.")
    return out


def _by_name(value: Any) -> Any:
    """The method that a dict of hyperparameters describes; its `name` says of which class."""
    if not isinstance(value, dict):
        return value
    # Through JSON, whose lists become tuples also in strict mode.
    return method_class(value["name"]).model_validate_json(json.dumps(value))


if TYPE_CHECKING:
    AnyMethod: TypeAlias = Method
else:
    AnyMethod = Annotated[SerializeAsAny[Settings], BeforeValidator(_by_name)]
"""The type of a field that holds some method."""
