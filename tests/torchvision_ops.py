"""AutoAugment's ops by torchvision, an oracle for `image_ops.apply_ops`."""

import math

from torch import Tensor
from torchvision.transforms.v2 import functional as F


def torchvision_op(image: Tensor, name: str, m: float, mode: str = "nearest") -> Tensor:
    """torchvision's `_apply_op` for one uint8 image, with the v2 functions; m as in apply_ops."""
    tangent = math.degrees(math.atan(m))
    still = dict(angle=0.0, translate=[0, 0], scale=1.0, shear=[0.0, 0.0], interpolation=mode)
    return {
        "Identity": lambda: image,
        "ShearX": lambda: F.affine(image, **still | dict(shear=[tangent, 0.0]), center=[0, 0]),
        "ShearY": lambda: F.affine(image, **still | dict(shear=[0.0, tangent]), center=[0, 0]),
        "TranslateX": lambda: F.affine(image, **still | dict(translate=[int(m), 0])),
        "TranslateY": lambda: F.affine(image, **still | dict(translate=[0, int(m)])),
        "Rotate": lambda: F.rotate(image, m, interpolation=mode),
        "Brightness": lambda: F.adjust_brightness(image, 1 + m),
        "Color": lambda: F.adjust_saturation(image, 1 + m),
        "Contrast": lambda: F.adjust_contrast(image, 1 + m),
        "Sharpness": lambda: F.adjust_sharpness(image, 1 + m),
        "Posterize": lambda: F.posterize(image, int(m)),
        "Solarize": lambda: F.solarize(image, m * 255),
        "AutoContrast": lambda: F.autocontrast(image),
        "Equalize": lambda: F.equalize(image),
        "Invert": lambda: F.invert(image),
    }[name]()
