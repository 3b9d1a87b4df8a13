"""Keypoint pairs: what is read, held out and left out."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from jaxdesc.config import Source
from jaxdesc.data.builders import semantic as builder
from jaxdesc.data.kinds import DataConfig, KeypointPairs
from jaxdesc.data.pipeline import open_data
from jaxdesc.datasets.semantic import with_masks
from jaxdesc.types import UserError

WILLOW = Path(__file__).parents[2] / "../shared/data/willow"


def image(path, wh, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", wh, (value, 100, 7)).save(path)


def names(dataset):
    """The red value of both images of every pair: the images' own numbers."""
    return [(int(p["image1"][0, 0, 0]), int(p["image2"][0, 0, 0])) for p in every(dataset)]


def every(dataset):
    return [dataset[i] for i in range(len(dataset))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 6 and one of 3 images of 80 x 50 px; image n has the red value n and the keypoints (n, 1), (2 n, 5), (3, n)."""
    root = tmp_path_factory.mktemp("keypoints")
    for number, name in enumerate([f"{c}/{i}" for c, n in (("a", 6), ("b", 6), ("c", 3)) for i in range(n)], start=1):
        image(root / f"{name}.png", (80, 50), number)
        (root / f"{name}.txt").write_text(f"{number} 1\n{2 * number} 5\n3 {number}\n")
    (root / "a" / "0.txt").write_text("1 1\n81.6 5\n3 1\n")  # outside by more than annotations that count from 1 may be
    (root / "b" / "0.txt").write_text("-9 1\n-9 5\n3 99\n")  # all of them
    return root


@pytest.fixture(scope="module")
def opened(folder, tmp_path_factory):
    return builder.open_annotated("keypoints", str(folder), 64, str(tmp_path_factory.mktemp("cache")))


def test_folder_of_keypoints(opened):
    train, validation = names(opened.train), names(opened.validation)
    seen, held_out = ({n for pair in pairs for n in pair} for pairs in (train, validation))
    assert not seen & held_out and {13, 14, 15} <= seen and held_out == {1, 3}
    assert (len(train), len(validation)) == (12 + 12 + 6, 2), (
        "4, 4 and 3 images that train; of b one of the two that are held out, image 7, has no keypoint left"
    )
    for pairs in (opened.train, opened.validation):
        for p, (a, b) in zip(every(pairs), names(pairs), strict=True):
            assert p["image1"].shape == (40, 64, 3) and not p["warped"] and not p["flip"]
            for xy, n in ((p["xy1_px"], a), (p["xy2_px"], b)):
                expected = np.array([[n, 1], [2 * n, 5], [3, n]])[[0, 2] if 1 in (a, b) else slice(None)]
                np.testing.assert_allclose(xy, (expected + 0.5) * 0.8 - 0.5, atol=1e-4)


def test_what_was_left_out_is_told(opened):
    first, *more = opened.report
    assert "keypoint pairs of 15 photographs" in first and "held out" in first
    assert any("of a held-out photograph with another" in line and "without common keypoints" in line for line in more)
    assert any("keypoints lie outside their images and are left out" in line for line in more)


@pytest.fixture(scope="module")
def pascal(tmp_path_factory):
    """NC-Net's lists: that for training without coordinates and with flips; keypoints in MATLAB files, NaN where one lacks; pair 1-3 has none in common."""
    root = tmp_path_factory.mktemp("pascal")
    kps = {1: [[1, 2], [30, 4], [np.nan, np.nan]], 2: [[5, 6], [7, 8], [9, 10]], 3: [[np.nan] * 2, [np.nan] * 2, [20, 30]]}
    for n, points in kps.items():
        image(root / "JPEGImages" / f"{n}.png", (60, 40), n)
        (root / "Annotations" / "bus").mkdir(parents=True, exist_ok=True)
        savemat(root / "Annotations" / "bus" / f"{n}.mat", {"kps": np.array(points, float), "bbox": np.array([[1, 2, 30, 20]])})
    rows = "x/JPEGImages/1.png,x/JPEGImages/2.png,6,0\nx/JPEGImages/1.png,x/JPEGImages/2.png,6,1\nx/JPEGImages/1.png,x/JPEGImages/3.png,6,0\n"
    (root / "train_pairs.csv").write_text("source_image,target_image,class,flip\n" + rows)
    (root / "val_pairs.csv").write_text("source_image,target_image,class,XA,YA,XB,YB\nJPEGImages/2.png,JPEGImages/3.png,6,9;-1,10;-1,20;-1,30;-1\n")
    return root


def test_pf_pascal_lists(pascal, tmp_path):
    found = builder.open_annotated("pf-pascal", str(pascal), 64, str(tmp_path))
    assert names(found.train) == [(1, 2), (1, 2)] and names(found.validation) == [(2, 3)]
    assert [p["flip"] for p in every(found.train)] == [False, True] and not found.validation[0]["flip"]
    np.testing.assert_array_equal(found.train[1]["xy1_px"], [[1, 2], [30, 4]])
    np.testing.assert_array_equal(found.train[1]["xy2_px"], [[5, 6], [7, 8]])
    np.testing.assert_array_equal(found.validation[0]["xy2_px"], [[20, 30]])
    assert any("1 without common keypoints" in line for line in found.report)
    (pascal / "Annotations" / "bus" / "2.mat").rename(pascal / "2.hidden")
    with pytest.raises(UserError, match=r"train_pairs\.csv, line 2: the list has no columns XA, .* Annotations/<class>/2\.mat"):
        builder.open_annotated("pf-pascal", str(pascal), 64, str(tmp_path))
    (pascal / "2.hidden").rename(pascal / "Annotations" / "bus" / "2.mat")


def test_mistakes_are_sentences(folder, tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        builder.open_annotated("keypoints", str(tmp_path / "none"), 64, str(tmp_path))
    with pytest.raises(UserError, match="outlines"):
        builder.OPEN["caltech"]("x", 64, "")
    data = DataConfig(keypoints=KeypointPairs(sources=(Source("willows", "x"),)))
    with pytest.raises(UserError, match=r"config\.data\.keypoints\.sources names a source of kind 'willows'; it may be embedded, photos, keypoints"):
        open_data(data, 0)
    for n in (1, 2):
        image(tmp_path / "k" / "c" / f"{n}.png", (60, 40), n)
        (tmp_path / "k" / "c" / f"{n}.txt").write_text("99 99\n")
    with pytest.raises(UserError, match=r"None of the 2 train pairs of k_keypoints can be used: 2 without common keypoints"):
        builder.open_annotated("keypoints", str(tmp_path / "k"), 64, str(tmp_path / "cache"))


# ---- masks


def mask(path, pixels, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).convert(mode).save(path)


BOX = np.zeros((50, 80), np.uint8)
BOX[10:30, 20:40] = 7  # of photographs of 80 x 50 px; once they are shrunk to 64 x 40, rows 8 to 23, columns 16 to 31


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Images 1 to 5 of one category, with masks; the first two have keypoints too."""
    root = tmp_path_factory.mktemp("masked")
    for n in range(1, 6):
        image(root / "images" / "cat" / f"{n}.png", (80, 50), n)
        mask(root / "masks" / "cat" / f"{n}.png", np.roll(BOX, n, 1))
    for n in (1, 2):
        (root / "images" / "cat" / f"{n}.txt").write_text(f"{n} 1\n4 5\n")
    listed = "\n".join(f"cat/{a}.png cat/{b}.png" for a in range(1, 6) for b in range(1, 6))  # half of them are the same the other way round
    (root / "pairs.txt").write_text(listed)
    return root


@pytest.fixture(scope="module")
def masked_set(masked, tmp_path_factory):
    return builder.open_annotated("masks", str(masked), 64, str(tmp_path_factory.mktemp("cache")))


def test_folder_with_masks(masked_set):
    found = every(masked_set.train) + every(masked_set.validation)
    pairs = names(masked_set.train) + names(masked_set.validation)
    held_out = {n for pair in names(masked_set.validation) for n in pair}
    assert len(held_out) == 2 and sorted(pairs) == sorted(
        (a, b) for a in range(1, 6) for b in range(1, 6) if a != b and ({a, b} <= held_out or not {a, b} & held_out)
    )
    for p, ends in zip(found, pairs, strict=True):
        for i, n in enumerate(ends, 1):
            assert p[f"mask{i}"].dtype == bool and p[f"mask{i}"].shape == (40, 64)
            slow = np.roll(BOX, n, 1) > 0
            for y, x in ((7, 20), (8, 20), (23, 20), (24, 20), (12, 14), (12, 22), (12, 30), (12, 38)):
                over = slow[int(y * 1.25 + 0.625), int(x * 1.25 + 0.625)]  # the pixel that the middle of the small one lies on
                assert p[f"mask{i}"][y, x] == over
        assert len(p["xy1_px"]) == len(p["xy2_px"]) == (2 if set(ends) == {1, 2} else 0), "keypoints are not needed"
    assert masked_set.masked and any(f"{len(found)} of the {len(found)} pairs have masks" in line for line in masked_set.report)


def test_pf_pascal_with_voc_masks(pascal, tmp_path):
    """Masks are of the pair's class, 6 being bus; pairs with masks need no keypoints in common, and no annotations at all."""
    root = tmp_path / "pascal"
    shutil.copytree(pascal, root)
    classes = np.zeros((40, 60), np.uint8)
    classes[:20, :30], classes[20:] = 6, 15
    for n in (1, 2, 3):
        mask(root / "VOC2012" / "SegmentationClass" / f"{n}.png", classes, "P")
    found = builder.open_annotated("pf-pascal", str(root), 64, str(tmp_path / "cache"))
    assert names(found.train) == [(1, 2), (1, 2), (1, 3)] and found.masked
    np.testing.assert_array_equal(found.train[0]["mask1"], classes == 6)
    shutil.rmtree(root / "Annotations")
    bare = builder.open_annotated("pf-pascal", str(root), 64, str(tmp_path / "cache"))
    assert names(bare.train) == names(found.train) and bare.train[0]["xy1_px"].shape == (0, 2)
    listed = (root / "train_pairs.csv").read_text()
    (root / "train_pairs.csv").write_text(listed.replace(",6,", ",22,"))
    with pytest.raises(UserError, match=r"train_pairs\.csv, line 2: the class '22' is none of PASCAL VOC's"):
        builder.open_annotated("pf-pascal", str(root), 64, str(tmp_path / "cache"))
    (root / "train_pairs.csv").write_text(listed.replace(",6,", ",bicycle,"))
    with pytest.raises(UserError, match=r"The mask .*1\.png is empty: no pixel has the number 2 of the object's class"):
        builder.open_annotated("pf-pascal", str(root), 64, str(tmp_path / "cache"))


def test_keypoints_beside_masks_must_agree(masked, tmp_path):
    root = tmp_path / "masked"
    shutil.copytree(masked, root)
    for text in ("1 1 2 2\n", "1 x\n"):
        (root / "images" / "cat" / "2.txt").write_text(text)
        with pytest.raises(UserError, match=r"2\.txt is malformed"):
            with_masks(root)
    (root / "images" / "cat" / "2.txt").write_text("1 1\n")
    with pytest.raises(UserError, match=r"1\.txt and .*2\.txt have 2 and 1 rows"):
        with_masks(root)


@pytest.mark.skipif(not WILLOW.is_dir(), reason=f"{WILLOW} is not there")
def test_willow_on_disk(tmp_path):
    found = builder.open_annotated("keypoints", str(WILLOW), 320, str(tmp_path))
    assert len(found.train) == 7 * 7 * 6 and len(found.validation) == 7 * 3 * 2
    assert found.train[0]["xy1_px"].shape == (10, 2)
