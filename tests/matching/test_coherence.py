"""Groups of matches that agree, against components found pair by pair."""

import numpy as np
import pytest

from jaxdesc.matching.coherence import keep_coherent
from jaxdesc.matching.views import factors
from jaxdesc.ops.matching import decode_pose, encode_pose
from tests.reference import inputs


def grid_of_matches(scale, rotation, spacing):
    """8 x 8 matches, `spacing` px apart in image 1."""
    t = np.radians(rotation)
    xy1 = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * spacing + 100.0
    xy2 = scale * (xy1 - 100) @ np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) + 300
    return np.column_stack([xy1, xy2, np.ones(64), np.full(64, encode_pose(scale, rotation))]).astype(np.float32)


@pytest.mark.parametrize(("scale", "rotation", "spacing"), [(1, 0, 4), (2, 0, 4), (0.25, 0, 16), (1, 90, 4), (1, 180, 4)])
def test_the_filter_keeps_groups_and_drops_strays(scale, rotation, spacing):
    group = grid_of_matches(scale, rotation, spacing)
    strays = np.random.default_rng(5).uniform(0, 2000, (100, 6)).astype(np.float32)
    strays[:, 5] = group[0, 5]
    kept = keep_coherent(np.concatenate([strays[:50], group, strays[50:]]), 50)
    np.testing.assert_allclose(kept, group + np.array([0, 0, 0, 0, np.log2(64), 0], np.float32), rtol=1e-6)
    assert len(keep_coherent(group, 64)) == 0 and len(keep_coherent(group, 63)) == 64 and keep_coherent(group[:0]).shape == (0, 6)
    lost = group.copy()
    lost[:, 5] = encode_pose(scale, rotation + 180)  # now every displacement points the wrong way
    assert len(keep_coherent(lost, 10)) == 0


FILTERED = "same turned90 turned45 counter90 mirrored90 scaled half mixed"


@pytest.mark.parametrize("case", FILTERED.split())
def test_components_are_those_of_the_published_filter(case):
    """Rows with the codes of PUMP's released program, and the sizes that it gave their components.

    mirrored90: the rows of a picture turned clockwise under the code of counter-clockwise.
    """
    published = inputs.load("pump_postfilter.npz")
    rows, size = published[f"{case}_rows"], published[f"{case}_component"]
    kept = keep_coherent(rows, 0)
    np.testing.assert_allclose(kept[:, 4] - rows[:, 4], np.log2(size), atol=1e-5)
    np.testing.assert_array_equal(keep_coherent(rows, 50)[:, :4], rows[size > 50, :4])


def components(rows):
    """Sizes of the filter's components, each pair of rows looked at, each component walked."""
    scale, rotation = decode_pose(rows[:, 5])
    shrunk = [factors(s) for s in scale]

    def neighbours(i, j):
        d1, d2 = ((rows[j, k : k + 2] - rows[i, k : k + 2]) @ [1, 1j] for k in (0, 2))
        means = np.mean([shrunk[i], shrunk[j]], 0)
        back = [d2 * np.exp(-1j * np.radians(rotation[end])) for end in (i, j)]
        near = abs(d1) * means[0] <= 8 and abs(d2) * means[1] <= 8
        return near and any((d * np.conj(d1)).real >= 0 for d in back)

    sizes, left = np.zeros(len(rows), int), set(range(len(rows)))
    while left:
        component = [left.pop()]
        for i in component:
            new = {j for j in left if neighbours(i, j)}
            component += new
            left -= new
        sizes[component] = len(component)
    return sizes


def test_components_across_scales_and_rotations():
    rng = np.random.default_rng(7)
    columns = rng.uniform(0, 60, (150, 4)), np.zeros(150), rng.integers(-20, 20, 150)
    rows = np.column_stack(columns)
    sizes = components(rows)
    assert len(np.unique(sizes)) > 5
    np.testing.assert_allclose(keep_coherent(rows, 0)[:, 4], np.log2(sizes), atol=1e-9)
