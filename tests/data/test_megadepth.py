"""MegaDepth's two layouts, made small from a world whose cameras are known."""

import numpy as np
import pytest

from jaxdesc.data.builders import megadepth
from jaxdesc.types import UserError
from tests.data.test_posed import HEIGHT, WIDTH, World


def write_aligned(folder, world, pairs="0.jpg 1.jpg\n2.jpg 1.jpg\n"):
    """The release of CAPS: principal points in COLMAP's convention."""
    world.names = [f"{i}.jpg" for i in range(len(world.poses))]
    world.write_images(folder / "images")
    lines = ["# name w h fx fy cx cy R t"]
    for name, (R, t) in zip(world.names, world.poses, strict=True):
        fx, fy, (cx, cy) = world.K[0, 0], world.K[1, 1], world.K[:2, 2] + 0.5
        lines.append(" ".join(map(str, [name, WIDTH, HEIGHT, fx, fy, cx, cy, *R.ravel(), *t])))
    (folder / "img_cam.txt").write_text("\n".join(lines) + "\n")
    (folder / "pairs.txt").write_text(pairs)
    return folder


def opened(root, tmp_path):
    return megadepth.open_posed(str(root), 512, str(tmp_path / "cache"))


def stored_pairs(found):
    return [[found.images[int(pair[i])]["name"].decode() for i in ("index1", "index2")] for pair in (*found.validation, *found.train)]


def test_release_of_caps(tmp_path):
    world = World(3)
    write_aligned(tmp_path / "md/0000/dense0/aligned", world)
    write_aligned(tmp_path / "md/0000/dense1/aligned", World(3, 1), "0.jpg 2.jpg\n")
    found = opened(tmp_path / "md", tmp_path)
    names = [[name.removeprefix("0000/") for name in pair] for pair in stored_pairs(found)]
    expected = [[f"dense{d}/aligned/images/{i}.jpg" for i in pair] for d, pair in ((0, (0, 1)), (0, (2, 1)), (1, (0, 2)))]
    assert sorted(names) == sorted(expected)
    by_name = {image["name"].decode(): view for image, view in zip(found.images, found.views, strict=True)}
    np.testing.assert_allclose(by_name["0000/dense0/aligned/images/0.jpg"]["K"], world.K, atol=1e-4)
    pair = next(p for p, n in zip((*found.validation, *found.train), names, strict=True) if n == expected[1])
    R = world.poses[1][0] @ world.poses[2][0].T
    t = world.poses[1][1] - R @ world.poses[2][1]
    np.testing.assert_allclose(pair["R_1to2"], R, atol=1e-6)
    np.testing.assert_allclose(pair["t_1to2"], t / np.linalg.norm(t), atol=1e-6)
    assert not len(pair["known_1to2"])


def test_undistorted_reconstructions_with_missing_images(tmp_path):
    for i, scene in enumerate(("0001", "0002/dense0")):
        world = World(3, i)
        world.names = [f"{n}.jpg" for n in range(3)]
        world.write_images(tmp_path / "md" / scene / ("images", "imgs")[i])
        world.write_text(tmp_path / "md" / scene / ("sparse", "sparse-txt")[i])
    (tmp_path / "md/0001/images/1.jpg").unlink()
    found = opened(tmp_path / "md", tmp_path)
    expected = [["0001/images/0.jpg", "0001/images/2.jpg"]] + [[f"0002/dense0/imgs/{i}.jpg" for i in pair] for pair in ((0, 1), (0, 2), (1, 2))]
    assert sorted(stored_pairs(found)) == expected and all(len(pair["known_1to2"]) == 40 for pair in found.train)


def test_what_is_not_megadepth(tmp_path):
    with pytest.raises(UserError, match="names no folder: write it as kind:FOLDER"):
        megadepth.open_posed("", 96, str(tmp_path))
    (tmp_path / "md/0000").mkdir(parents=True)
    with pytest.raises(UserError, match="is not MegaDepth: it has neither"):
        opened(tmp_path / "md", tmp_path)
    folder = write_aligned(tmp_path / "md/0000/dense0/aligned", World(2), "0.jpg 1.jpg\n")
    (folder / "pairs.txt").unlink()
    with pytest.raises(UserError, match=r"has no pairs\.txt"):
        opened(tmp_path / "md", tmp_path)
    (folder / "pairs.txt").write_text("0.jpg 1.jpg\n")
    for name in ("0.jpg", "1.jpg"):
        (folder / "images" / name).unlink()
    with pytest.raises(UserError, match=r"None of the 2 images that .*img_cam\.txt lists is in"):
        opened(tmp_path / "md", tmp_path)
