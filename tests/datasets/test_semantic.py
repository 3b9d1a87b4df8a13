"""Sets of keypoints on objects of one category."""

import numpy as np
from PIL import Image

from jaxdesc.datasets import semantic
from jaxdesc.datasets.semantic import SemanticPair


def test_willow_list(tmp_path):
    numbers = np.random.default_rng(3).uniform(0, 50, (4, 10)).round(2)
    for k in (1, 2):
        (tmp_path / "WILLOW").mkdir(exist_ok=True)
        Image.new("RGB", (60, 60)).save(tmp_path / "WILLOW" / f"{k}.png")
    head = "imA,imB," + ",".join(f"{c}{k}" for c in ("XA", "YA", "XB", "YB") for k in range(10))
    (tmp_path / "test_pairs_willow.csv").write_text(
        f"{head}\nPF-dataset/WILLOW/1.png,PF-dataset/WILLOW/2.png,"
        + ",".join(map(str, numbers.ravel()))
        + "\n"
    )
    (found,) = semantic.read("pf-willow", tmp_path, None, "test")
    assert (found.source, found.target, found.category) == (
        "WILLOW/1.png",
        "WILLOW/2.png",
        "WILLOW",
    )
    np.testing.assert_array_equal(found.xy_source, numbers[:2].T)
    np.testing.assert_array_equal(found.xy_target, numbers[2:].T)


def test_split_by_images_is_clean_and_stable():
    pairs = [
        SemanticPair(f"{c}/{a}", f"{c}/{b}", c, np.zeros((1, 2)), np.zeros((1, 2)))
        for c in "xy"
        for a in range(10)
        for b in range(10)
        if a != b
    ]
    train, validation, dropped = semantic.split_by_images(pairs)
    assert (
        len(train) == 2 * 7 * 6
        and len(validation) == 2 * 3 * 2
        and dropped == {"of a held-out photograph with another": 180 - 84 - 12}
    )
    assert not {p.source for p in train} & {p.source for p in validation}
    again = semantic.split_by_images(pairs[::-1])
    assert {p.key for p in again.validation} == {p.key for p in validation}
    few = semantic.split_by_images(
        [p for p in pairs if {p.source, p.target} <= {"x/0", "x/1", "x/2"}]
    )
    assert len(few.train) == len(few.validation) == 6 and not few.dropped
