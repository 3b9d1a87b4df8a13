"""Batches of several kinds, and the held-out pairs that runs are validated on."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxdesc.config import DrawConfig
from jaxdesc.data.draw import draw_batch, held_out_batch
from jaxdesc.data.kind import Opened
from jaxdesc.data.kinds import (
    CropConfig,
    DataConfig,
    HomographyPairs,
    KeypointPairs,
    PosedPairs,
    UnlabelledPairs,
)
from jaxdesc.data.kinds.keypoints import RawKeypointPair
from jaxdesc.data.kinds.posed import RawPosedPair
from jaxdesc.data.pipeline import Data
from jaxdesc.data.warps import WarpConfig
from jaxdesc.types import Canvas, UserError

COUNT = 3
WILD = CropConfig(
    **{"crop_px": 32, "rotation_deg": 0.0, "noise": 200.0, "flip_probability": 1.0},
    **{"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5},
    **{"shade": 1.0, "gamma": 3.0, "blur_px": 4.0, "motion_px": 9.0, "jpeg_quality": 5},
)
CONFIG = DataConfig(
    homography=HomographyPairs(tilt=0.0),
    unlabelled=UnlabelledPairs(),
    posed=PosedPairs(hw=(32, 32), queries=4, prune=False),
    keypoints=KeypointPairs(image_px=32, warp=WarpConfig(angle_deg=0.0, bend=0.0)),
)


def rows():
    """Photographs whose red grows to the right and whose green is the same all over."""
    n, grown = COUNT, np.broadcast_to(np.linspace(20, 200, 64), (64, 64)).astype(np.uint8)
    photo = np.stack([grown, np.full_like(grown, 102), np.zeros_like(grown)], -1)
    canvas = Canvas(np.stack([photo] * n), np.full((n, 2), 64, np.int32))
    K, points = np.stack([np.diag([60.0, 60.0, 1.0])] * n), np.full((n, 4, 2), 30.0, np.float32)
    yes = np.ones((n, 4), bool)
    turn, along = np.stack([np.eye(3)] * n), np.tile([1.0, 0.0, 0.0], (n, 1))
    cameras = (K, K, turn, along, np.ones(n), np.full(n, 9.0))
    warped = np.array([True, False, False])
    return {
        "homography": canvas,
        "posed": RawPosedPair(canvas, canvas, *cameras, points, yes, points, yes),
        "keypoints": RawKeypointPair(
            canvas, canvas, points, points, yes, np.zeros(n, bool), warped
        ),
    }


def data(asked=None, **changes):
    """Data whose held-out pairs are `rows`; `asked` is told how many of each kind."""

    def opened(name, raw):
        def held_out(count):
            if asked is not None:
                asked[name] = count
            return raw

        return Opened(None, held_out)

    found = {name: opened(name, raw) for name, raw in (rows() | changes).items()}
    return Data(CONFIG, {**found, "unlabelled": Opened(None, None)}, [])


def test_held_out_pairs_keep_their_colours_and_are_not_mirrored():
    """Drawn as a training with every change of colours, noise and mirroring would validate."""
    asked = {}
    batch = held_out_batch(data(asked), WILD, COUNT)
    assert batch.keys() == asked.keys() == {"homography", "posed", "keypoints"}  # can be scored
    assert set(asked.values()) == {COUNT}
    for kind, pairs in batch.items():
        assert np.asarray(pairs.slot).tolist() == [0, 1, 2]
        for image in (*np.asarray(pairs.image1), *np.asarray(pairs.image2)):
            seen = image[4:-4, 4:-4]  # beyond its edges a warped copy is black
            np.testing.assert_allclose(seen[..., 1], 0.4, atol=0.005, err_msg=kind)
            assert (np.diff(seen[..., 0], axis=1) > 0).mean() > 0.9, kind


def test_undistorted_leaves_the_geometry_and_nothing_else():
    still = {"noise": 0.0, "flip_probability": 0.0}
    assert WILD.undistorted() == CropConfig(crop_px=32, rotation_deg=0.0, **still)
    plain = DrawConfig(flip_probability=0.4, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)
    assert plain.undistorted() == DrawConfig(flip_probability=0.0)


def test_a_training_draw_changes_them_all():
    slots = np.arange(COUNT, dtype=np.int32)
    raw = {name: (each, slots) for name, each in rows().items()}
    batch = jax.jit(lambda raw: draw_batch(jax.random.key(0), raw, CONFIG, WILD))(raw)
    for kind, pairs in batch.items():
        off = np.abs(np.asarray(pairs.image2)[:, 4:-4, 4:-4, 1] - 0.4)
        assert off.max() > 0.05, kind


def test_truth_that_no_pair_knows_is_left_out():
    views, objects = rows()["posed"], rows()["keypoints"]
    nothing = np.zeros((COUNT, 4), bool)
    nobody = {"warped": np.zeros(COUNT, bool), "valid": nothing}
    unknown = data(posed=views.replace(known=nothing), keypoints=objects.replace(**nobody))
    batch = held_out_batch(unknown, WILD, COUNT)
    assert batch["posed"].xy2_px is batch["posed"].known is batch["keypoints"].xy2_px is None
    some = views.replace(known=np.eye(COUNT, 4, dtype=bool))
    assert held_out_batch(data(posed=some), WILD, COUNT)["posed"].known.any()


def test_pruning_that_leaves_nothing_is_said():
    pruned = replace(CONFIG, posed=replace(CONFIG.posed, prune=True))
    near = rows()["posed"].replace(spread=np.full(COUNT, 1e-6))
    with pytest.raises(UserError, match=r"^config\.data\.posed\.prune_depth: pruning leaves no"):
        held_out_batch(data(posed=near)._replace(config=pruned), WILD, COUNT)
