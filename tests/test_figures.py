"""Pictures show what they are given; whether they look right is for eyes."""

import json
from types import SimpleNamespace

import numpy as np

from jaxdesc import figures


def test_warp_shifts_and_is_black_outside():
    image = np.random.default_rng(0).integers(1, 256, (20, 30, 3), dtype=np.uint8)
    y, x = np.mgrid[:15, :40].astype(np.float32)
    warped = figures.warp(image, np.stack([x + 3, y + 2], -1))
    np.testing.assert_array_equal(warped[:15, :27], image[2:17, 3:])
    assert not warped[:, 28:].any()
    np.testing.assert_array_equal(figures.warp(image / 255.0, np.stack([x + 3, y + 2], -1)), warped)


def test_error_circles_have_kittis_colours_and_areas():
    image = np.full((200, 300, 3), 255, np.uint8)
    xy, error = np.array([[50, 60], [150, 60], [230, 60]]), np.array([2.0, 7.0, 50.0])
    picture = figures.error_circles(image, xy, error)
    scale = picture.shape[1] / 300
    areas = []
    for (x, y), e, colour in zip(xy, error, ((224, 243, 248), (253, 174, 97), (165, 0, 38)), strict=True):
        np.testing.assert_array_equal(picture[int(y * scale), int(x * scale)], colour)
        areas.append((np.abs(picture.astype(int) - colour).max(-1) < 3).sum() / scale**2)
        assert 0.6 * 30 * e < areas[-1] < 1.05 * 30 * e, "up to the black edge"
    bounds = figures.KITTI[np.searchsorted(figures.KITTI_PX, [0, 0.1875, 0.19, 3, 3.1, 48, 48.1])].tolist()
    assert bounds == [[49, 54, 149]] * 2 + [[69, 117, 180], [224, 243, 248], [254, 224, 144], [215, 48, 39], [165, 0, 38]]


def test_peaks():
    responses = np.zeros((9, 11))
    responses[2, 3], responses[2, 4], responses[7, 8], responses[0, 0], responses[8, 0] = 5, 4.5, 3, 4, 1
    assert figures.peaks(responses, 3).tolist() == [[2, 3], [0, 0], [7, 8]]
    assert figures.peaks(np.zeros((3, 4)), 3).shape == (0, 2)


def test_heat_maps_and_curves_are_drawn():
    rng = np.random.default_rng(0)
    image1, image2 = rng.uniform(0, 1, (48, 64, 3)), rng.uniform(0, 1, (40, 50, 3))
    levels = [SimpleNamespace(centre_xy=(20, 30), side_px=4 << i, step_px=1 << i, responses=rng.uniform(0, 1, (-(-40 >> i), -(-50 >> i)))) for i in range(3)]
    picture = figures.heat_maps(image1, image2, levels)
    red, lime, blue = ((picture == colour).all(-1) for colour in ([255, 0, 0], [0, 255, 0], [0, 0, 255]))
    assert all(mask[:, 300:600].any() for mask in (red, lime, blue)) and red[:, :300].any() and not (lime | blue)[:, :300].any()
    curve = figures.mma_curve(
        {"ours": (np.array([900, 100]), np.array([0.4, 0.8])), "SIFT": (np.array([100, 500]), np.array([0.7, 0.5]))}, {"default": (300, 0.6)}
    )
    assert curve.dtype == np.uint8 and len(np.unique(curve.reshape(-1, 3), axis=0)) > 20


def test_lines_are_green_where_good():
    image = np.zeros((60, 80, 3), np.uint8)
    picture = figures.side_by_side(image, image, np.array([[10, 10.0]]), np.array([[60, 50.0]]), np.array([True])).astype(int)
    assert (picture[..., 1] > picture[..., 0] + 50).any() and not (picture[:, :600, 0] > picture[:, :600, 1] + 50).any()


def test_distributions_lie_where_their_grids_do():
    """The grids' corners are the centres of the image's, or of the window's, corner pixels."""
    gray, n = np.full((60, 80, 3), 128, np.uint8), 2
    coarse, fine = np.zeros((n, 4, 6)), np.zeros((n, 3, 5))
    coarse[:, 3, 5] = fine[:, 0, 0] = 1
    found = SimpleNamespace(coarse=coarse, fine=fine, window_px=np.array([[20, 10, 40, 20], [30, 30, 50, 40.0]]))
    picture = figures.distributions(gray, gray, np.array([[10, 10], [70, 50.0]]), np.array([[12, 10], [60, 50.0]]), found).astype(int)
    panels = picture.reshape(picture.shape[0], 4, -1, 3).swapaxes(0, 1)
    red = [(p[..., 0] > p[..., 1] + 60) & (p[..., 0] > p[..., 2] + 60) for p in panels]
    half = picture.shape[0] // 2
    for row in (0, 1):
        share = [mask[row * half : (row + 1) * half] for mask in red]
        x, y = (np.nonzero(share[0])[axis].mean() / share[0].shape[axis] for axis in (1, 0))
        assert abs(x - (10, 70)[row] / 80) < 0.1 and abs(y - (10, 50)[row] / 60) < 0.2
        x, y = (np.nonzero(share[2])[axis].mean() / share[2].shape[axis] for axis in (1, 0))
        assert x > 0.85 and y > 0.75, "the last cell of the coarse map"
        x = np.nonzero(share[3])[1]
        assert abs(x.min() / share[3].shape[1] - ((20, 30)[row] - 2.5) / 80) < 0.06 and x.max() / share[3].shape[1] < ((40, 50)[row] + 4) / 80, "the window"
    without = figures.distributions(gray, gray, np.array([[10, 10.0]]), None, found).astype(int)
    truth = without[:, without.shape[1] // 4 : without.shape[1] // 2]
    assert not (truth[..., 0] > truth[..., 1] + 60).any()


def test_dots_of_one_colour_belong_together():
    image = np.full((60, 80, 3), 255, np.uint8)
    xy1 = np.stack(np.meshgrid(np.arange(0, 80, 4.0), np.arange(0, 60, 4.0)), -1).reshape(-1, 2)
    picked = figures.on_grid(xy1, (60, 80), 25)
    np.testing.assert_array_equal(xy1[picked], [[12, 12], [36, 12], [64, 12], [12, 36], [36, 36], [64, 36]])
    assert figures.on_grid(xy1[:1], (60, 80), 25).size == 0, "nothing within half a step"
    assert figures.on_grid(np.zeros((0, 2)), (60, 80), 25).size == 0
    picture = figures.dense_correspondence(image, image, xy1, xy1[:, :] * [-1, 1] + [79, 0], 25).astype(int)
    panels = picture.reshape(picture.shape[0], 4, -1, 3)
    coloured = [np.abs(panels[:, i] - panels[:, i].mean(-1, keepdims=True)).max(-1) > 60 for i in range(4)]
    assert not coloured[0].any() and not coloured[1].any()
    blue = [(panels[:, i, :, 2] > 180) & (panels[:, i, :, 0] < 80) for i in (2, 3)]  # of the left in image 1
    left, right = (np.nonzero(mask)[1].mean() / mask.shape[1] for mask in blue)
    assert left < 0.3 and right > 0.7


def test_curves_of_any_runs_scores(tmp_path):
    def widths(train, validation):
        rows = [{"step": s, "split": "train", "loss": 1 / s, "grad_norm": 9.0, **train} for s in (1, 2)]
        rows += [{"step": s, "split": "validation", **validation} for s in (0, 2)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return figures.training_curve(tmp_path / "metrics.jsonl").shape[1]

    assert widths({"L_AP": 0.5}, {"mma@3px": 0.5, "matches": 90.0}) == 1000
    assert widths({"E_fine": 0.5, "pck@5px": 0.1}, {"pck@5px": 0.5, "epipolar_px": 30.0}) == 1500, "pixels have axes of their own"


def test_alignment_shows_source_target_and_the_warped_source():
    colours = [np.full((h, w, 3), c, np.uint8) for (h, w), c in (((24, 40), (200, 0, 0)), ((33, 20), (0, 200, 0)), ((33, 20), (0, 0, 200)))]
    picture = figures.alignment(*colours, np.zeros((0, 2)), np.zeros((0, 2)))
    lines = figures.side_by_side(*colours[:2], np.zeros((0, 2)), np.zeros((0, 2)))
    height = picture.shape[0] - lines.shape[0] - 8
    np.testing.assert_array_equal(picture[-lines.shape[0] :], lines)
    widths = np.array([40 / 24, 20 / 33, 20 / 33]) * height
    row = picture[height // 2]
    for colour, start, width in zip(colours, np.cumsum([0, *widths[:2]]), widths, strict=True):
        np.testing.assert_array_equal(row[int(start + width / 2)], colour[0, 0])


def test_a_sheet_of_pairs_is_as_wide_as_it_may_be():
    pairs = [(np.full((8, 10, 3), i / 10), np.full((8, 10, 3), 1 - i / 10)) for i in range(5)]
    sheet = figures.pair_sheet(pairs, width_px=60)  # two pairs of 20 px, and 6 between
    assert sheet.shape == (3 * 8 + 2 * 6, 46, 3) and sheet.dtype == np.uint8
    for i, (first, second) in enumerate(pairs):
        top, left = 14 * (i // 2), 26 * (i % 2)
        assert (sheet[top : top + 8, left : left + 10] == int(255 * first[0, 0, 0] + 0.5)).all()
        assert (sheet[top : top + 8, left + 10 : left + 20] == int(255 * second[0, 0, 0] + 0.5)).all()
    assert (sheet[28:, 26:] == 255).all() and (sheet[8:14] == 255).all()
    assert figures.pair_sheet(pairs[:1], width_px=5).shape == (8, 20, 3)
