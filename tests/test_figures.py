"""Pictures show what they are given; whether they look right is for eyes."""

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
