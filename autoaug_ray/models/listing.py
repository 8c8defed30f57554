"""Which classifiers there are: ours, torchvision's and, where it is installed, timm's."""

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import NamedTuple

from torchvision import models as torchvision_models

from autoaug_ray.settings.classifier import CLASSIFIER_NAMES


class Known(NamedTuple):
    """A classifier, as a study names it."""

    name: str
    weights: str | None = None
    """What `weights` calls the trained ones; None: there are none."""
    parameters: int | None = None
    """As its library states it, with the last layer of those weights."""
    top1: float | None = None
    """Accuracy on ImageNet of those weights, in per cent, as torchvision states it."""


def known(pattern: str | None = None) -> list[Known]:
    """The classifiers whose name has `pattern` in it or fits it, as in `torchvision:resnet*`.

    timm's, which are many and take seconds to import, are looked for with a pattern only. A name of
    transformers is that of a hub, which is not asked.
    """
    found = [*_ours(), *_of_torchvision()]
    if pattern is None:
        return found
    whole = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    return [one for one in (*found, *_of_timm()) if fnmatch(one.name, whole)]


def _ours() -> Iterator[Known]:
    for name in CLASSIFIER_NAMES:
        yield _torchvision_known(name, name) if name == "resnet50" else Known(name)


def _of_torchvision() -> Iterator[Known]:
    for name in torchvision_models.list_models(module=torchvision_models):
        yield _torchvision_known(f"torchvision:{name}", name)


def _torchvision_known(name: str, in_library: str) -> Known:
    about = torchvision_models.get_model_weights(in_library).DEFAULT.meta
    top1 = about["_metrics"]["ImageNet-1K"]["acc@1"]
    return Known(name, "imagenet", about["num_params"], top1)


def _of_timm() -> Iterator[Known]:
    try:
        import timm
    except ImportError:  # an extra
        return
    for name in timm.list_pretrained():
        yield Known(f"timm:{name}", "pretrained")
