"""Masks of objects: pictures of one number a pixel."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxdesc.errors import UserError


class ObjectMask(NamedTuple):
    """A picture of one number a pixel, as large as the image."""

    path: Path
    label: int | None  # the pixels of this number are of the object; None: all but those of 0

    def read(self, image_hw: tuple[int, int]) -> np.ndarray:
        """(H, W) bool.

        Args:
          image_hw: of the upright image.
        Raises:
          UserError: naming the file: it cannot be read, has several numbers a pixel,
            another size than the image, or shows nothing of the object.
        """
        try:
            with Image.open(self.path) as picture:
                pixels = np.asarray(picture)
        except FileNotFoundError as e:
            raise UserError(f"There is no mask {self.path}.") from e
        except Exception as e:  # broken files make Pillow raise nearly anything
            raise UserError(
                f"The mask {self.path} cannot be read: it is no picture, or damaged."
            ) from e
        if pixels.ndim != 2:
            raise UserError(
                f"The mask {self.path} has {pixels.shape[2]} channels: save it as a gray or "
                "palette PNG, one number a pixel."
            )
        if pixels.shape != tuple(image_hw):
            (h, w), (rows, columns) = image_hw, pixels.shape
            raise UserError(
                f"The mask {self.path} is {columns}x{rows} px, but its image is {w}x{h} px: they "
                "must be of one size."
            )
        mask = pixels != 0 if self.label is None else pixels == self.label
        if not mask.any():
            what = (
                "all its pixels are 0"
                if self.label is None
                else f"no pixel has the number {self.label} of the object's class"
            )
            raise UserError(
                f"The mask {self.path} is empty: {what}; mend it or take its pairs off the list."
            )
        return mask


VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)


def voc_label(category: str, where: str) -> int:
    """What the pixels of a class are in PASCAL VOC's SegmentationClass pictures, 1 to
    20, from its name or that number.
    """
    numbers = {name: i for i, name in enumerate(VOC_CLASSES, 1)} | {
        str(i): i for i in range(1, len(VOC_CLASSES) + 1)
    }
    if category not in numbers:
        raise UserError(
            f"{where}: the class {category!r} is none of PASCAL VOC's: a name such as aeroplane, "
            f"or a number from 1 to {len(VOC_CLASSES)}, is expected."
        )
    return numbers[category]
