"""Inputs that the arrays beside this file were made from: what published programs gave on them.

The programs released with PUMP and CAPS ran as black boxes, in float32 on a CPU. Arrays
are NCHW, as theirs. Each file holds facts alone, no code and no weights:

caps_maps.npz    names, shapes of the released network's tensors (JSON), and its maps of
                 `caps_image`: <case>_coarse = coarse[:, ::16], <case>_fine =
                 fine[:, ::16, ::3, ::3]
caps_losses.npz  three pairs of 50 points in images of 480 x 640 (h, w): pixels, deviations
                 (normalised), F -> total, E_coarse, E_fine, Y_coarse, Y_fine with
                 weights normalised over the batch, over_batch (5,), and for each pair as a
                 batch of its own, over_pair (3, 5)
"""

import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
PAIRS = {  # H, W, D, seed of image 1, seed of image 2, shift (columns, rows), noise
    "a": (88, 120, 32, 31, 32, (4, -6), 0.05),
    "b": (96, 132, 32, 33, 34, (9, 5), 0.1),
    "c": (132, 72, 16, 35, 36, (-3, 2), 0.05),
    "d": (64, 64, 32, 37, 38, (0, 0), 0.2),
    "e": (97, 133, 32, 39, 40, (4, -6), 0.05),
    "f": (131, 70, 32, 42, 43, (-5, 3), 0.05),
}
CAPS_IMAGES = {"a": (96, 128, 51), "b": (112, 144, 52), "c": (97, 131, 53)}  # H, W, seed


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of a file of this folder."""
    with np.load(FOLDER / name) as stored:
        return dict(stored)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def smooth(seed: int, d: int, h: int, w: int, up: int = 4) -> np.ndarray:
    x = normal(seed, 1, d, -(-h // up), -(-w // up)).repeat(up, 2).repeat(up, 3)
    for axis in (2, 3):
        for _ in range(2):
            x = (np.roll(x, 1, axis) + x + np.roll(x, -1, axis)) / 3
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return x[:, :, :h, :w]


def pair(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of two images: (1, D, H, W) float32 each, of unit length."""
    h, w, d, seed1, seed2, shift, noise = PAIRS[case]
    d1 = smooth(seed1, d, h, w)
    d2 = np.roll(d1, shift, (3, 2)) + noise * normal(seed2, *d1.shape)
    return d1, (d2 / np.linalg.norm(d2, axis=1, keepdims=True)).astype(np.float32)


def caps_state(names: np.ndarray) -> dict[str, np.ndarray]:
    """Random tensors, by torch's names, of the JSON text of names and shapes."""
    return {name: tensor(name, tuple(shape)) for name, shape in json.loads(str(names)).items()}


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    n = normal(zlib.crc32(f"reference:{name}".encode()), *shape)
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(n)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if len(shape) == 1:
        return 1 + 0.1 * n if name.endswith("weight") else 0.1 * n
    return n / np.sqrt(np.prod(shape[1:]))


def caps_image(case: str) -> np.ndarray:
    """(1, 3, H, W) float32, normalised with ImageNet's mean and deviation already."""
    h, w, seed = CAPS_IMAGES[case]
    return normal(seed, 1, 3, h, w)
