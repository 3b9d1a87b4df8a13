"""Pairs of photographs of one place: their crops overlap, are upright and of one scale."""

import dataclasses
import os
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image

from jaxdesc.config import Source
from jaxdesc.data.kinds import DataConfig, UnlabelledPairs
from jaxdesc.data.pipeline import open_data
from jaxdesc.types import RawPair
from tests.data.test_crops import CFG, STILL, drawn, photographs


def test_crops_see_the_same_part():
    """Two copies of one photograph with sparse correspondences: the crops overlap and carry no homography."""
    canvases = photographs(6)
    rng = np.random.default_rng(0)
    points = rng.uniform([0, 0], [88, 80], (6, 20, 2)).astype(np.float32)
    raw = RawPair(
        canvas1=canvases,
        canvas2=canvases,
        xy12_px=jnp.array(np.tile(points, 2)),
        log2_scale_1to2=jnp.zeros((6, 20)),
        turns_1to2=jnp.zeros((6, 20), jnp.int32),
        valid=jnp.arange(20)[None] < jnp.array([20, 15, 10, 4, 1, 0])[:, None],
    )
    cfg = dataclasses.replace(CFG, rotation_deg=0.0, aspect=1.0)
    pair = drawn(UnlabelledPairs(), jax.random.key(0), raw, jnp.arange(6), cfg)
    assert pair.H_1to2 is None
    chex.assert_tree_all_finite((pair.image1, pair.image2))
    assert (
        float(pair.image1.min()) > 0 and float(pair.image1.mean()) > 0.3
    )  # windows stay inside the photograph


SCENE = np.asarray(Image.open(Path(skimage.data.__file__).parent / "astronaut.png"))[
    80:180, 160:280
]
VIEWS = {  # image 2 of image 1 (100 rows, 120 columns), where a place (x, y) lies in it, code
    "clockwise": (lambda a: np.rot90(a, -1), lambda x, y: (99 - y, x), 2),
    "counter": (lambda a: np.rot90(a), lambda x, y: (y, 119 - x), 6),
    "around": (lambda a: np.rot90(a, 2), lambda x, y: (119 - x, 99 - y), 4),
    "twice": (lambda a: a.repeat(2, 0).repeat(2, 1), lambda x, y: (2 * x + 0.5, 2 * y + 0.5), 16),
    "half_clockwise": (
        lambda a: np.rot90(a[::2, ::2], -1),
        lambda x, y: (49 - y / 2, x / 2),
        -16 + 2,
    ),
}


@pytest.mark.parametrize("coded", [True, False])
def test_crops_are_upright_and_of_one_scale(tmp_path, coded):
    """Image 2 turned clockwise as seen (np.rot90(k=-1)) has code 2: its crop is turned back, and
    its window is as large as it has to be. Without codes the correspondences say the same."""
    os.mkdir(tmp_path / "corres")
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    xy1 = np.random.default_rng(0).uniform([30, 30], [90, 70], (40, 2))
    for name, (change, place, code) in VIEWS.items():
        Image.fromarray(np.ascontiguousarray(change(SCENE))).save(tmp_path / f"{name}.png")
        rows = np.array([[x, y, *place(x, y), 1.0, code] for x, y in xy1])
        np.save(tmp_path / "corres" / f"a_{name}.npy", rows if coded else rows[:, :4])
    (tmp_path / "pairs.txt").write_text("".join(f"a.png {name}.png\n" for name in VIEWS))
    pairs = UnlabelledPairs(sources=(Source("pairs", str(tmp_path)),), per_batch=5)
    data = DataConfig(unlabelled=pairs, canvas_px=240, cache=str(tmp_path / "cache"))
    raw, slots = next(open_data(data, 0).batches(0))["unlabelled"]
    for swap in (0.0, 1.0):
        cfg = dataclasses.replace(STILL, min_side_px=100, max_side_px=100, swap_probability=swap)
        pair = drawn(pairs, jax.random.key(0), raw, slots, cfg)
        for one, two in zip(np.asarray(pair.image1), np.asarray(pair.image2), strict=True):
            assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.9
