"""What a study's `model:` may say."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from autoaug_ray.errors import did_you_mean
from autoaug_ray.settings import Settings

Library = Literal["torchvision", "timm", "hf"]

CLASSIFIER_NAMES = (
    "cnn", "badgan", "resnet8", "resnet20", "resnet32", "resnet56", "resnet18", "resnet50",
    "wrn-10", "wrn-28-10",
)  # fmt: skip
"""The keys of models.CLASSIFIERS, which builds them, in its order."""


def _own_weights(data: dict[str, Any]) -> str | None:
    return "pretrained" if data["name"].startswith(("timm:", "hf:")) else None


class Classifier(Settings):
    """What a study's `model:` may say."""

    name: str = "cnn"
    """cnn, badgan, resnet8, resnet20, resnet32, resnet56, resnet18, resnet50, wrn-10, wrn-28-10;
    torchvision:NAME or timm:NAME for any of theirs, or hf:NAME for any image classifier of
    transformers, by hub id or folder. A name of timm or hf is looked up where the network is built:
    a study is also read where nobody trains, as by a report."""
    width: int = Field(16, ge=1, le=4096)
    """Channels of the first block of `cnn`, of resnet8 to resnet56, whose paper has 16, and of
    wrn-10, whose paper has 16k (32 is WRN-10-2); the others have the widths of their papers."""
    weights: str | None = Field(default_factory=_own_weights)
    """Initial weights of all layers but the last. None: random, the default but for timm:NAME and
    hf:NAME, which are names of trained models. Torchvision has `imagenet`, its best of resnet50 or
    torchvision:NAME; timm and hf have `pretrained`, those of NAME, and take a hub id or a folder.
    All take the path of a state dict of that network. Downloads are kept by the libraries."""
    freeze_backbone: bool = False
    """Only the last layer learns. Batch norm still follows the batches, as in DAFusion's code."""
    head_only: bool = False
    """Only the last layer learns, and all of the network is as in evaluation: batch norm has the
    statistics of the weights, and nothing is dropped. The usual linear probe."""
    crop: int | None = Field(None, ge=8, le=2048)
    """The classifier sees the middle of the augmented images, a square of this side in pixels: a
    method's own `crop` by up to the margin is then the usual random crop of larger images, without
    a border. Smaller images stay as they are; None: the whole image."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        library, _, rest = name.partition(":")
        if name in CLASSIFIER_NAMES or (library in ("timm", "hf") and rest):
            return name
        if library == "torchvision":
            from torchvision import models  # takes seconds, so no other name waits for it

            names = models.list_models(module=models)
            if rest in names:
                return name
            meant = did_you_mean(name, [f"torchvision:{n}" for n in names])
        else:
            meant = _meant(name)
        known = ", ".join(CLASSIFIER_NAMES)
        raise ValueError(
            f"unknown classifier{meant}; known: {known}, torchvision:NAME, timm:NAME, hf:NAME"
        )

    @model_validator(mode="after")
    def _weights(self) -> "Classifier":
        if self.weights is not None:
            if self.library is None:
                raise ValueError(
                    "weights can be set for name: resnet50, torchvision:NAME, timm:NAME and "
                    f"hf:NAME, not for {self.name}"
                )
            words = ("pretrained", "imagenet")
            own, other = words[:: -1 if self.library == "torchvision" else 1]
            if self.weights == other:
                raise ValueError(f"weights of {self.name} are called {own}, not {other}")
        if self.freeze_backbone and self.head_only:
            raise ValueError("freeze_backbone and head_only are two ways to train the last layer")
        if self.frozen and self.weights is None:
            which = "head_only" if self.head_only else "freeze_backbone"
            raise ValueError(f"{which} needs weights: random features would be frozen")
        return self

    @property
    def frozen(self) -> bool:
        """Whether the last layer alone learns."""
        return self.freeze_backbone or self.head_only

    @property
    def library(self) -> Library | None:
        """Whose network it is, if `weights` can be set for it."""
        prefix, colon, _ = self.name.partition(":")
        if self.name == "resnet50":
            return "torchvision"
        return prefix if colon else None  # type: ignore[return-value]

    @property
    def in_library(self) -> str:
        """Its name there."""
        return self.name.partition(":")[2] or self.name


def _meant(name: str) -> str:
    """` (did you mean X?)` for a name without its library's, or one that is close to one of ours.

    The libraries' names are read from their files: to import them takes seconds.
    """
    if "/" in name:
        return f" (did you mean hf:{name}?)"
    function, dot, _ = name.partition(".")  # a tag is timm's
    for library in ("timm",) if dot else ("torchvision", "timm"):
        spec = find_spec(library)
        for folder in (spec and spec.submodule_search_locations) or ():
            for file in Path(folder, "models").glob("*.py"):
                if f"\ndef {function}(" in file.read_text():
                    return f" (did you mean {library}:{name}?)"
    return did_you_mean(name, CLASSIFIER_NAMES)
