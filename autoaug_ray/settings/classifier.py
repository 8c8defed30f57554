"""What a study's `model:` may say."""

from pydantic import Field, field_validator, model_validator

from autoaug_ray.settings import Settings

CLASSIFIER_NAMES = (
    "cnn", "badgan", "resnet8", "resnet20", "resnet32", "resnet56", "resnet18", "resnet50",
    "wrn-10", "wrn-28-10",
)  # fmt: skip
"""The keys of models.CLASSIFIERS, which builds them, in its order."""


class Classifier(Settings):
    """What a study's `model:` may say."""

    name: str = "cnn"
    """cnn, badgan, resnet8, resnet20, resnet32, resnet56, resnet18, resnet50, wrn-10, wrn-28-10,
    or torchvision:NAME for any of torchvision's."""
    width: int = Field(16, ge=1, le=4096)
    """Channels of the first block of `cnn`, of resnet8 to resnet56, whose paper has 16, and of
    wrn-10, whose paper has 16k (32 is WRN-10-2); the others have the widths of their papers."""
    weights: str | None = None
    """Initial weights of all layers but the last: `imagenet` for torchvision's best of resnet50 or
    torchvision:NAME, which torch downloads once, or the path of a state dict of that network."""
    freeze_backbone: bool = False
    """Only the last layer learns. Batch norm still follows the batches, as in DAFusion's code."""
    crop: int | None = Field(None, ge=8, le=2048)
    """The classifier sees the middle of the augmented images, a square of this side in pixels: a
    method's own `crop` by up to the margin is then the usual random crop of larger images, without
    a border. Smaller images stay as they are; None: the whole image."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        prefix, _, rest = name.partition(":")
        if name in CLASSIFIER_NAMES:
            return name
        if prefix == "torchvision":
            from torchvision import models  # takes seconds, so no other name waits for it

            if rest in models.list_models(module=models):
                return name
        known = ", ".join(CLASSIFIER_NAMES)
        raise ValueError(f"unknown classifier; known: {known}, torchvision:NAME")

    @model_validator(mode="after")
    def _weights(self) -> "Classifier":
        if self.weights is not None and self.torchvision_name is None:
            raise ValueError(
                f"weights can be set for name: resnet50 and torchvision:NAME, not for {self.name}"
            )
        if self.freeze_backbone and self.weights is None:
            raise ValueError("freeze_backbone needs weights: random features would be frozen")
        return self

    @property
    def torchvision_name(self) -> str | None:
        """torchvision's name of the network, if `weights` can be set for it; else None."""
        if self.name == "resnet50":
            return self.name
        return self.name.removeprefix("torchvision:") if ":" in self.name else None
