"""Networks of torchvision, timm and transformers by name: their weights, and what images they want.

`timm:NAME` and `hf:NAME` are names of trained models. What a study calls `weights: pretrained` are
their own; the layer that gives the logits is always a new one.
"""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models as torchvision_models

from autoaug_ray.errors import UserError, did_you_mean
from autoaug_ray.models.loading import ERRORS, loading
from autoaug_ray.settings.classifier import Classifier

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MODES = {
    "nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic",
    0: "nearest-exact", 2: "bilinear", 3: "bicubic",
}  # fmt: skip
"""What timm and Pillow call an interpolation -> what torch does; bicubic for all that it lacks."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files of a folder of transformers that hold what its image processor does."""
PATHS, SUFFIXES = (".", "/", "~"), (".pt", ".pth", ".bin", ".safetensors")
"""What only a path begins with, and what only a file of weights ends with."""
UNUSABLE = (
    *ERRORS, RuntimeError, ImportError, EOFError, SafetensorError,
)  # fmt: skip
"""What is raised for networks that cannot be built and for files that hold no weights."""


class Wanted(NamedTuple):
    """What images a network wants; None: as they are."""

    size: tuple[int, int] | None = None
    """Height and width in pixels."""
    mode: str = "bilinear"
    """How torch.nn.functional.interpolate scales to it."""
    mean: tuple[float, ...] | None = None
    """The mean of each channel in [0, 1] over the images that its weights were trained on."""
    std: tuple[float, ...] | None = None
    """The standard deviation of each, likewise."""


class Logits(nn.Module):
    """The logits (B, classes) in what a network of transformers gives."""

    def forward(self, output: Any) -> Tensor:
        logits: Tensor = output.logits
        return logits


def library_network(classifier: Classifier, classes: int) -> nn.Module:
    """The network of a library, with random weights. Raises UserError for one that is not known."""
    name = classifier.in_library
    built: nn.Module
    with loading("model.name", classifier.name, UNUSABLE):
        if classifier.library == "timm":
            built = _timm(classifier).create_model(name, num_classes=classes)
        elif classifier.library == "hf":
            from transformers import AutoConfig, AutoModelForImageClassification

            config = AutoConfig.from_pretrained(_place(name), trust_remote_code=False)
            config.num_labels = classes
            if config.model_type == "timm_wrapper":
                raise ValueError("it is timm's: write timm:NAME")
            built = AutoModelForImageClassification.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        else:
            built = torchvision_models.get_model(name, num_classes=classes)
    return built


def wanted_by(classifier: Classifier, network: nn.Module) -> Wanted:
    """The images that a library's network wants, from its own configuration.

    Size and interpolation are those of the name; mean and standard deviation, those of the images
    that its weights have seen, are for trained networks only. Of torchvision's, which take any size
    or say what they lack, and of transformers' without an image processor in their folder, only
    what is known. Raises UserError for a configuration that cannot be had or followed.
    """
    if classifier.library == "timm":
        found = _timm(classifier).data.resolve_data_config(model=network)
        size, mode = tuple(found["input_size"][-2:]), MODES.get(found["interpolation"], "bicubic")
        wants = Wanted(size, mode, tuple(found["mean"]), tuple(found["std"]))
    elif classifier.library == "hf":
        wants = _wanted_by_processor(classifier, network)
    else:
        wants = Wanted(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return wants if classifier.weights else wants._replace(mean=None, std=None)


def _wanted_by_processor(classifier: Classifier, network: Any) -> Wanted:
    place = _place(classifier.in_library)
    folder = Path(place)
    if folder.is_dir() and not any((folder / name).is_file() for name in PROCESSORS):
        size = getattr(network.config, "image_size", None)
        return Wanted((size, size) if isinstance(size, int) else size and tuple(size))
    from transformers import AutoImageProcessor

    with loading("model.name", f"the image processor of {classifier.name}", UNUSABLE):
        processor = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    if getattr(processor, "do_flip_channel_order", False):
        raise UserError(
            f"model.name: {classifier.name} takes blue before red, and images here are RGB; timm "
            "may have the same network for RGB."
        )
    crops = getattr(processor, "do_center_crop", False)
    side = dict(processor.crop_size if crops else processor.size)
    height = side.get("height", side.get("shortest_edge"))
    width = side.get("width", side.get("shortest_edge"))
    if not height or not width:
        raise UserError(
            f"model.name: the image processor of {classifier.name} names no height and width of "
            f"its images, but {side}."
        )
    mode = MODES.get(int(processor.resample or 0), "bicubic")
    if not processor.do_normalize:
        return Wanted((height, width), mode, (0.0,) * 3, (1.0,) * 3)
    mean, std = processor.image_mean, processor.image_std
    return Wanted((height, width), mode, tuple(mean), tuple(std))


def last_layer(network: nn.Module) -> tuple[str, nn.Module]:
    """(name, layer) of the layer that gives the logits."""
    kinds = (nn.Linear, nn.Conv2d)
    return [(k, m) for k, m in network.named_modules() if isinstance(m, kinds)][-1]


def start_from(network: nn.Module, classifier: Classifier) -> None:
    """Load `classifier.weights` into all layers but the last.

    Raises UserError for weights that cannot be loaded or do not fit.
    """
    last = last_layer(network)[0]
    what = f"{classifier.weights} for {classifier.name}"
    with loading("model.weights", what, UNUSABLE), torch.random.fork_rng(devices=[]):
        state = _state(network, classifier)
    state = {k: v for k, v in state.items() if not k.startswith(f"{last}.")}
    expected = {k: v for k, v in network.state_dict().items() if not k.startswith(f"{last}.")}
    wrong = sorted(
        k for k in expected.keys() | state.keys()
        if k not in expected or k not in state or expected[k].shape != state[k].shape
    )  # fmt: skip
    if wrong:
        raise UserError(
            f"model.weights: {classifier.weights} is no state dict of {classifier.name}: "
            f"{len(wrong)} of its entries are missing, unknown or of another shape, the first "
            f"{wrong[0]!r}."
        )
    network.load_state_dict(state, strict=False)


def _state(network: Any, classifier: Classifier) -> dict[str, Tensor]:
    """The state dict that `classifier.weights` names, in which the last layer is any."""
    weights, name, library = classifier.weights, classifier.in_library, classifier.library
    assert weights is not None
    path = Path(weights).expanduser()
    state: dict[str, Tensor] | None = None
    if library == "torchvision" and weights == "imagenet":
        best = next(iter(torchvision_models.get_model_weights(name))).DEFAULT
        state = best.get_state_dict(progress=False, check_hash=True, weights_only=True)
    elif path.is_file():
        state = _read(path)
    elif library == "torchvision" or (
        not path.is_dir() and (weights.startswith(PATHS) or path.suffix in SUFFIXES)
    ):
        own = "imagenet" if library == "torchvision" else "pretrained, a hub id, a folder"
        raise UserError(
            f"model.weights: {weights} does not exist; it must be {own} or the path of a state "
            "dict."
        )
    if library == "hf":
        place = name if weights == "pretrained" else weights
        return _renamed(network, None if state else _place(place), state)
    if state is None:
        where = f"local-dir:{path}" if path.is_dir() else f"hf-hub:{weights}"
        of = name if weights == "pretrained" else where
        state = _timm(classifier).create_model(of, pretrained=True).state_dict()
    return state


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's sentence advises to run what the file holds
        raise ValueError("it holds more than tensors, or none") from None
    return state


def _renamed(network: Any, place: str | None, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The weights of a place or a state dict under the names of a network of transformers.

    Files may hold them under others, which the library knows. It makes up what is missing and
    reports it; here that is an error, but for the last layer.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        trained, info = type(network).from_pretrained(
            place, state_dict=state, config=network.config, dtype=torch.float32,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    finally:
        logging.set_verbosity(verbosity)
    found: dict[str, Tensor] = trained.state_dict()
    lacking = info["missing_keys"] | {k for k, *_ in info["mismatched_keys"]}
    return {k: v for k, v in found.items() if k not in lacking}


def _place(name: str) -> str:
    """A folder's path, or a hub id as it is. Raises UserError for a folder that is not there."""
    path = Path(name).expanduser()
    if name.startswith(PATHS) and not path.is_dir():
        raise UserError(f"model.name: there is no folder {name}.")
    return str(path)


def _timm(classifier: Classifier) -> Any:
    """The package. Raises UserError if it is not installed or does not know the name."""
    try:
        import timm
    except ImportError:
        raise UserError(
            f"model.name: {classifier.name} needs the package timm; "
            "pip install 'autoaug_ray[timm]'."
        ) from None
    name = classifier.in_library
    if not timm.is_model(name):
        known = [f"timm:{n}" for n in timm.list_models()]
        raise UserError(
            f"model.name: timm has no {name}{did_you_mean(classifier.name, known)}; "
            "timm.list_models() lists what it has."
        )
    return timm
