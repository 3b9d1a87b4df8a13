"""One query's maps are those of the whole pyramid."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.methods.pump.heatmaps import query_maps
from jaxdesc.methods.pump.pyramid import aggregate, levels, rectify
from jaxdesc.types import UserError


def descriptors(rng, *shape):
    found = rng.normal(size=(*shape, 5)).astype(np.float32)
    return jnp.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True))


def pooled(x):
    """3x3, stride 2, padding 1, slowly."""
    h, w = x.shape[2:]
    out = np.zeros((*x.shape[:2], -(-h // 2), -(-w // 2)), np.float32)
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            out[:, :, i, j] = x[:, :, max(0, 2 * i - 1) : 2 * i + 2, max(0, 2 * j - 1) : 2 * j + 2].max((2, 3))
    return out


@pytest.mark.parametrize("xy", [(3.4, 45)])
def test_query_maps_are_rows_of_the_whole_pyramid(xy):
    rng = np.random.default_rng(0)
    desc1, desc2 = descriptors(rng, 46, 67), descriptors(rng, 41, 52)
    whole = rectify(jnp.einsum("yxd,hwd->yxhw", desc1[2::4, 2::4], desc2))
    found = query_maps(desc1, desc2, xy, limit=3)
    assert len(found) == 4 and [level.side_px for level in found] == [4, 8, 16, 32] and [level.step_px for level in found] == [1, 2, 4, 8]
    for number, (level, step) in enumerate(zip(found, [None, *levels(whole.shape, smallest=6, limit=3)], strict=True)):
        if step:
            whole = rectify(aggregate(jnp.asarray(pooled(np.asarray(whole))), step))
        x, y = level.centre_xy
        offset = 2 if number == 0 else 0
        np.testing.assert_allclose(level.responses, whole[(y - offset) // 4, (x - offset) // 4], atol=1e-6)
        assert abs(x - xy[0]) <= 3.5 and abs(y - xy[1]) <= 3.5


def test_a_query_finds_itself_at_every_level():
    desc = descriptors(np.random.default_rng(1), 46, 67)
    for level in query_maps(desc, desc, (33, 21), limit=3):
        y, x = np.unravel_index(level.responses.argmax(), level.responses.shape)
        assert abs(level.step_px * x - level.centre_xy[0]) <= level.step_px and abs(level.step_px * y - level.centre_xy[1]) <= level.step_px


def test_query_outside_is_refused():
    desc = descriptors(np.random.default_rng(1), 30, 40)
    with pytest.raises(UserError, match=r"\(40, 3\) lies outside the image of 40x30 px"):
        query_maps(desc, desc, (40, 3))
