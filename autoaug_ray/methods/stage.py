"""What methods that augment share: flip and crops before a policy, cutout and erasing after it."""

import abc
from typing import Any, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from autoaug_ray.errors import UserError
from autoaug_ray.maths import image_ops, plans
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import Method, Task
from autoaug_ray.methods.erasing import Erase, Holes, Shares

Flip = Literal["none", "horizontal", "vertical"]


class Staged(Method, abc.ABC):
    """A method whose policy has before and after it what the CIFAR protocols do to every image.

    Flip, then crop; the policy; then cutout and erasing. The classes below it differ in `transform`
    alone, and draw the numbers of the stage in one order: those of the flip, the crops, their own,
    the cutout, the erasing. What is switched off draws none.
    """

    flip: Flip = "horizontal"
    """Mirror each image with probability one half."""
    crop: int = Field(0, ge=0, le=1000)
    """Pixels, +-, in x and in y, by which images are shifted, in whole pixels and independently;
    what comes into sight is black. 4 is torchvision's RandomCrop(32, padding=4)."""
    resized_crop: Shares | None = None
    """Shares of the area, from and to, of a part of the image, from 3:4 to 4:3, that is enlarged to
    the image's size. [0.08, 1.0] is torchvision's RandomResizedCrop (Szegedy et al. 2015)."""
    cutout: int = Field(0, ge=0, le=1000, multiple_of=2)
    """Side in pixels of a square whose centre is uniform over the image, and which is cut at the
    border (DeVries and Taylor 2017). It has the mean colour of the pool: there, the zeros are
    painted after normalisation. On CIFAR-10, 16 is usual."""
    erase: Erase | None = None
    """Random erasing; {} is the paper's."""

    def check_images(self, channels: int, height: int, width: int) -> None:
        side = min(height, width)
        if self.crop >= side:
            raise ValueError(f"crop must be less than the {side} pixels of a side, got {self.crop}")
        if self.cutout > side:
            raise ValueError(f"cutout must be at most {side}, the image's side, got {self.cutout}")

    @final
    def augment(
        self, state: Any, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        x = self.before(images, self.draw_flips(state, images, noise), noise, strength)
        x = self.transform(state, x, noise, strength)
        return self.after(state, x, self.draw_holes(x, noise), strength)

    @abc.abstractmethod
    def transform(
        self, state: Any, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        """The policy alone; the contract is that of `augment`."""

    @final
    def plan(self, state: Any, task: Task) -> list[plans.Stage]:
        if self.resized_crop or self.erase:
            raise UserError(
                f"{self.name} is exported without resized_crop and erase only: RandomResizedCrop "
                "before it and RandomErasing after it do that in other software."
            )
        out = []
        if self.flip != "none":
            direction = "vertical" if self.flip == "vertical" else "horizontal"
            out.append(plans.flip(direction, float(self.flip_chance(state))))
        if self.crop:
            out.append(plans.crop(self.crop))
        out += self.transform_plan(state, task)
        if self.cutout:
            out.append(plans.cutout(self.cutout, state.mean_colour.tolist()))
        return out

    def transform_plan(self, state: Any, task: Task) -> list[plans.Stage]:
        """What `transform` does; the contract is that of `plan`."""
        return super().plan(state, task)

    def flip_chance(self, state: Any) -> Tensor | float:
        """() the probability with which an image is mirrored, if it may be."""
        return 0.5

    def draw_flips(self, state: Any, images: Tensor, noise: torch.Generator) -> Tensor | None:
        """(B,) which images are mirrored; None if none may be."""
        if self.flip == "none":
            return None
        chance = self.flip_chance(state)
        return torch.rand(len(images), generator=noise, device=images.device) < chance

    def before(
        self,
        images: Tensor,
        flips: Tensor | None,
        noise: torch.Generator,
        strength: Strength | None = None,
    ) -> Tensor:
        """Images (B, C, H, W), those that `draw_flips` drew mirrored, and cropped."""
        x = images
        if flips is not None:
            dim = -2 if self.flip == "vertical" else -1
            x = torch.where(flips[:, None, None, None], x.flip(dim), x)
            if strength is not None:
                strength.flip(flips, dim)
        if self.crop:
            corners = (2, len(x))
            at = torch.randint(2 * self.crop + 1, corners, generator=noise, device=x.device)
            x = image_ops.pad_crop(x, self.crop, at[0], at[1], strength)
        if self.resized_crop is not None:
            size = (x.shape[2], x.shape[3])
            box = image_ops.draw_crops(len(x), size, self.resized_crop, noise)
            x = image_ops.resized_crop(x, box, strength)
        return x

    def draw_holes(self, images: Tensor, noise: torch.Generator) -> Holes:
        """What `after` paints over in images (B, C, H, W)."""
        centre = None
        if self.cutout:
            drawn = [
                torch.randint(side, (len(images),), generator=noise, device=images.device)
                for side in images.shape[2:]
            ]
            centre = torch.stack(drawn, dim=1)
        if self.erase is None:
            return Holes(centre)
        return Holes(centre, *self.erase.draw(images, noise))

    def after(
        self, state: Any, images: Tensor, holes: Holes, strength: Strength | None = None
    ) -> Tensor:
        """The policy's images (B, C, H, W) without the squares and boxes of `draw_holes`."""
        if not self.cutout and self.erase is None:
            return images
        x, colour = images, state.mean_colour.to(images)[:, None, None]
        if holes.centre is not None:
            row, column = holes.centre.unbind(1)
            x = image_ops.cutout(x, row, column, torch.full_like(row, self.cutout), colour)
        if holes.box is not None:
            erased = image_ops.inside(holes.box, (x.shape[2], x.shape[3]))[:, None]
            x = torch.where(erased, colour if holes.noise is None else holes.noise, x)
        if strength is not None:
            strength.color(images, x)
        return x
