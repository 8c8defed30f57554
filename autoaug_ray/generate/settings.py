"""The keys of a study about generated images: what is made (`generate:`), and how (`workers:`)."""

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from pydantic import Field, field_validator, model_validator

from autoaug_ray.errors import UserError
from autoaug_ray.settings import Settings

ImageKind = Literal["identity", "fixed", "local", "transfer", "own"]
"""identity: the real image. fixed: edited by one prompt per class. local, transfer: edited by the
caption of another image of the class, or of a neighbouring class (AutoGenDA, section 3.2). own: one
that somebody made elsewhere for the class (`generate.folder`), of no particular image."""
EDITS: tuple[ImageKind, ...] = ("fixed", "local", "transfer")
"""The kinds that are made here."""
Drawn = Mapping[ImageKind, Collection[int]]
"""Which edits a training may draw: for each kind, the classes (by number) whose images have any."""
OF_EMBEDDED = ("strength", "guidance", "calls", "per_source", "per_class")
"""Keys whose defaults suit the embedded model, and no other."""
OF_FOLDER = ("folder", "device_hours", "seconds_per_image")
"""Keys about images that were made elsewhere; all others say how images are made."""
Solver = Literal["dpm++", "pndm", "own"]
"""How an edit is solved for. dpm++, pndm: Stable Diffusion, by our own loop (see img2img). own: any
image-to-image pipeline of diffusers, by its own scheduler in its own way."""
Precision = Literal["fp64", "fp32", "bf16", "fp16"]


def of_all_classes(kinds: Iterable[ImageKind], classes: int) -> Drawn:
    """Edits of these kinds for every one of so many classes."""
    return {kind: range(classes) for kind in kinds}


class Tokens(Settings):
    """Textual inversion: one learned word per class.

    DAFusion's recipe is 1,000 steps of batch 4 for each class alone, with mirror images.
    """

    steps: int = Field(1000, ge=1, le=1_000_000)
    """Steps of each class if `per_class`, else of all classes together."""
    per_class: bool = False
    """Whether each class learns alone, and is learned and charged only where it is needed."""
    flip: bool = False
    """Whether images are mirrored with probability 1/2."""
    batch_size: int = Field(4, ge=1, le=4096)
    lr: float = Field(2e-3, gt=0, le=10)
    """The default is DAFusion's 5e-4 with --scale_lr at batch 4."""
    vectors: int = Field(1, ge=1, le=32)
    initializer: str = "the"
    """A word of the model's vocabulary that learned words start as. It names no class."""
    seed: int = 0


class Generation(Settings):
    """All that the content of generated images depends on, besides the images that are edited.

    With `folder` they are not made here, and nothing else is said but what making them took.
    """

    folder: str | None = Field(None, min_length=1)
    """A folder of one's own generated images, CLASS/IMAGE, for methods that mix the kind `own`; a
    relative path starts where the command is called, as that of dataset.root."""
    device_hours: float | None = Field(None, ge=0, allow_inf_nan=False)
    """What making all images of the folder took, in device-hours of the kind of device that trains;
    None, without seconds_per_image: it is in no cost, as the report says."""
    seconds_per_image: float | None = Field(None, ge=0, allow_inf_nan=False)
    """The same in device-seconds for each image."""
    model: str = "embedded"
    """Hub id or folder: a Stable Diffusion, such as CompVis/stable-diffusion-v1-4; with solver own
    whatever `AutoPipelineForImage2Image` loads and takes a strength (SDXL, SD-Turbo, SD3, FLUX)."""
    captioner: str = "embedded"
    """BLIP, BLIP-2 or another image-text-to-text model, such as Salesforce/blip2-opt-2.7b."""
    embedder: str = "pipeline"
    """What compares class names: a sentence-transformers id or folder, such as
    sentence-transformers/all-MiniLM-L6-v2; "pipeline" is the model's own text encoder."""
    prefix: str = "a photo of a {name} which"
    fixed_prompt: str = "a photo of a {name}"
    neighbours: int = Field(3, ge=1, le=1000)
    """m of section 3.2: the number of classes whose captions may be transferred."""
    strength: float = Field(0.7, gt=0, le=1)
    """The noise level: the edit starts at timestep round(1000 * strength) - 1; for pndm and own,
    the share of the schedule's steps that is run."""
    guidance: float = Field(4.0, ge=0, le=50)
    """Up to 1, prompts are not compared with the empty one: a call takes half of the time."""
    calls: int = Field(10, ge=1, le=1000)
    """UNet calls per image, whatever the strength; for pndm and own, steps of the whole schedule.
    """
    solver: Solver = "dpm++"
    per_source: int = Field(1, ge=1, le=1000)
    per_class: int = Field(30, ge=1, le=100_000)
    """`per_source` edits of each kind per image, and more where a class would get fewer than
    `per_class`."""
    size: int | None = Field(None, ge=8, le=2048)
    """The side in pixels at which the model works; None: the side that it was trained at."""
    precision: Precision = "fp32"
    tokens: Tokens | None = None
    """How words are learned for the classes; None: prompts say the class's name."""
    seed: int = 0

    @model_validator(mode="after")
    def _made_once(self) -> "Generation":
        if self.folder is None:
            for key in ("device_hours", "seconds_per_image"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} is the cost of the images in folder, which is missing; what images "
                        "cost that are made here is measured"
                    )
            return self
        if self.device_hours is not None and self.seconds_per_image is not None:
            raise ValueError("only one of device_hours and seconds_per_image can be set")
        for key, field in type(self).model_fields.items():
            if key not in OF_FOLDER and getattr(self, key) != field.default:
                raise ValueError(
                    f"{key} says how images are made, and those of folder are made already: leave "
                    f"it out; beside folder stand {' or '.join(OF_FOLDER[1:])}"
                )
        return self

    def check(self, mixed: Mapping[str, Collection[ImageKind]]) -> None:
        """Raises UserError for methods that mix images of which there are none, and for another
        model that would be used by the embedded one's recipe.

        `mixed`: label of an entry -> the kinds of images that it mixes.
        """
        for label, used in mixed.items():
            others = sorted(set(used) - {"identity"})
            wrong = [kind for kind in others if (kind == "own") != (self.folder is not None)]
            if wrong and self.folder:
                raise UserError(
                    f"methods.{label} mixes {' and '.join(wrong)} images, but generate.folder has "
                    "images of the kind own only: write edits: [own], or probabilities: "
                    "{identity: 0.5, own: 0.5} for mix."
                )
            if wrong:
                raise UserError(
                    f"methods.{label} mixes images of the kind own, but generate.folder, which "
                    "says where they are (CLASS/IMAGE), is missing."
                )
        kinds = {kind for used in mixed.values() for kind in used}
        if self.folder is not None:
            if not kinds:
                raise UserError(
                    f"generate.folder is {self.folder!r}, but no entry mixes its images: add one, "
                    "such as {method: mix, probabilities: {identity: 0.5, own: 0.5}}."
                )
            return
        captions = ["captioner"] if kinds & {"local", "transfer"} else []
        missing = [*OF_EMBEDDED, *captions] if kinds and self.model != "embedded" else []
        for key in missing:
            if key not in self.model_fields_set:
                raise UserError(
                    f"generate.{key} is missing: its default, {getattr(self, key)!r}, is for the "
                    f"embedded model and not for {self.model}."
                )

    def for_each(self, found: int, kept: int) -> "Generation":
        """The same, with the cost of a folder of `found` images divided among those that are kept:
        the others had to be made, too."""
        seconds = self.seconds_per_image and self.seconds_per_image * found
        if self.device_hours is not None:
            seconds = 3600 * self.device_hours
        each = seconds and seconds / kept
        return self.model_copy(update={"device_hours": None, "seconds_per_image": each})

    @field_validator("prefix", "fixed_prompt")
    @classmethod
    def _names_the_class(cls, value: str) -> str:
        if value.count("{name}") != 1 or "{" in value.replace("{name}", ""):
            raise ValueError("must hold {name} once and no other braces")
        return value


class Workers(Settings):
    """The actors that make the images; nothing here changes what they make."""

    actors: int | None = Field(None, ge=1, le=10_000)
    """The number of actors; None: as many as fit on the machines that are there or, where `ray up`
    made the cluster, on all that its YAML lets come."""
    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    """What each actor holds, as `cpus`."""
    batch_size: int = Field(32, ge=1, le=4096)
    shard_size: int = Field(256, ge=1, le=100_000)
    """Images per Parquet file. An actor makes one file at a time, which a crash may lose."""
    compile: bool = False
    retries: int = Field(2, ge=0, le=100)
    """Further attempts at a shard that fails; then it is set aside, and the rest goes on."""
