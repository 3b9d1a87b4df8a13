"""Batches are a function of (seed, position) alone, on fixed canvases, and the mixture is what the weights say."""

import dataclasses
import itertools
import os
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from jaxdesc.config import Source
from jaxdesc.data import host
from jaxdesc.data.kinds import DataConfig, HomographyPairs, UnlabelledPairs
from jaxdesc.data.pipeline import open_data
from jaxdesc.types import UserError

SHARED = Path(__file__).parents[2] / "../shared/data"


def make_photos(folder, count, tag):
    """Photographs of one colour each: red says the folder, green says which."""
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (50 + i, 40), (tag, 10 * i, 0)).save(folder / f"{i}.png")
    return str(folder)


def make_pairs(folder, count):
    """Images of one colour each, pair i = (i, i + 1), with 12 + 9 i correspondences, all different; x1 = i, y2 = 7."""
    (folder / "corres").mkdir(parents=True)
    for i in range(count + 1):
        Image.new("RGB", (60, 45 + i), (i, 0, 200)).save(folder / f"{i}.png")
    (folder / "pairs.txt").write_text("".join(f"{i}.png {i + 1}.png\n" for i in range(count)))
    for i in range(count):
        n = 12 + 9 * i
        np.save(folder / "corres" / f"{i}_{i + 1}.npy", np.stack([np.full(n, i), np.arange(n) % 40, np.arange(n) % 60, np.full(n, 7)], -1))
    return str(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    first = Source("photos", make_photos(root / "a", 9, 1), 3.0)
    second = Source("photos", make_photos(root / "b", 5, 2), 1.0)
    pairs = (Source("pairs", make_pairs(root / "pairs", 4)),)
    return DataConfig(
        homography=HomographyPairs(sources=(first, second), per_batch=6),
        unlabelled=UnlabelledPairs(sources=pairs, per_batch=4, correspondences=16),
        canvas_px=64,
        cache=str(root / "cache"),
        threads=3,
    )


def take(data, start, count, *process):
    return list(itertools.islice(data.batches(start, *process), count))


def test_kept_photographs_are_decoded_once_and_change_nothing(config, monkeypatch):
    """With room for all, for one of the smallest, and for none."""
    read = []
    original = host.Kept.__getitem__

    def counted(self, i):
        before = len(self._kept)
        found = original(self, i)
        read.append(len(self._kept) > before)
        return found

    monkeypatch.setattr(host.Kept, "__getitem__", counted)
    batches, fresh = [], []
    for keep_mb in (1, 0):
        read.clear()
        data = open_data(dataclasses.replace(config, keep_mb=keep_mb, threads=1), 0)
        batches.append(take(data, 0, 6))
        fresh.append(sum(read))
    chex.assert_trees_all_equal(*batches)
    photographs = 9 + 5 - 2 + 5  # but for those held out; of pairs
    assert 0 < fresh[0] <= photographs < len(read) and fresh[1] == 0


def test_memory_for_photographs_is_bounded():
    memory = host.Memory(100)
    assert [memory.take(n) for n in (60, 50, 40, 1)] == [True, False, True, False]


def colors(batch):
    canvas, _ = batch["homography"]
    return [tuple(int(c) for c in image[0, 0, :2]) for image in canvas.image]


def test_shapes_and_slots(config):
    batch = take(open_data(config, 0), 0, 1)[0]
    (canvas, slot), (pair, real_slot) = batch["homography"], batch["unlabelled"]
    chex.assert_shape([canvas.image, pair.canvas1.image, pair.canvas2.image], [(6, 64, 64, 3), (4, 64, 64, 3), (4, 64, 64, 3)])
    chex.assert_shape([canvas.size_hw, pair.canvas1.size_hw, pair.xy12_px, pair.valid], [(6, 2), (4, 2), (4, 16, 4), (4, 16)])
    chex.assert_type([canvas.image, canvas.size_hw, pair.xy12_px, pair.valid, slot], [np.uint8, np.int32, np.float32, bool, np.int32])
    assert slot.tolist() == [0, 1, 2, 3, 4, 5] and real_slot.tolist() == [6, 7, 8, 9]
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batch))


def test_photograph_lies_at_the_top_left(config):
    canvas, _ = take(open_data(config, 0), 0, 1)[0]["homography"]
    for image, (height, width) in zip(canvas.image, canvas.size_hw, strict=True):
        assert height == 40 and width == 50 + image[0, 0, 1] // 10
        assert (image[:height, :width] == image[0, 0]).all() and not image[height:].any() and not image[:, width:].any()


def test_correspondences_are_padded_or_drawn(config):
    seen = {}
    for batch in take(open_data(config, 0), 0, 12):
        pair, _ = batch["unlabelled"]
        for image1, image2, xy12, valid in zip(pair.canvas1.image, pair.canvas2.image, pair.xy12_px, pair.valid, strict=True):
            i = int(image1[0, 0, 0])
            assert image2[0, 0, 0] == i + 1 and valid.sum() == min(12 + 9 * i, 16)
            assert (xy12[valid][:, 0] == i).all() and (xy12[valid][:, 3] == 7).all() and not xy12[~valid].any()
            assert len({tuple(row) for row in xy12[valid]}) == valid.sum()  # none twice
            seen.setdefault(i, set()).add(tuple(xy12[:, 2]))
    assert sorted(seen) == [0, 1, 2, 3] and len(seen[0]) == 1 and len(seen[3]) > 5  # another subset at every visit


def test_batch_is_a_function_of_seed_and_position(config):
    data = open_data(config, 3)
    walked = take(data, 0, 9)
    for start in (1, 4, 8):
        chex.assert_trees_all_equal(take(data, start, 1)[0], walked[start])
    chex.assert_trees_all_equal(take(open_data(config, 3), 5, 4), walked[5:])
    assert not np.array_equal(walked[0]["homography"][0].image, walked[1]["homography"][0].image)
    assert not np.array_equal(take(open_data(config, 4), 0, 1)[0]["homography"][0].image, walked[0]["homography"][0].image)
    take(data, 10**9, 1)


def test_processes_share_the_global_batch(config):
    data = open_data(config, 0)
    whole = take(data, 2, 3)
    halves = [take(data, 2, 3, p, 2) for p in range(2)]
    for i in range(3):
        chex.assert_trees_all_equal(jax.tree.map(lambda *parts: np.concatenate(parts), halves[0][i], halves[1][i]), whole[i])
    with pytest.raises(UserError, match=r"config\.data\.homography\.per_batch = 6 is not a multiple of the 4 processes"):
        take(data, 0, 1, 0, 4)


def test_weights_and_rounds(config):
    drawn = [color for batch in take(open_data(config, 0), 0, 40) for color in colors(batch)]
    first, second = ([green for tag, green in drawn if tag == wanted] for wanted in (1, 2))
    assert len(first) == 180 and len(second) == 60  # 3 : 1, whatever the folders' sizes
    rounds = [tuple(second[i : i + 4]) for i in range(0, 60, 4)]  # 4 of the 5 photographs are for training
    assert len({tuple(sorted(r)) for r in rounds}) == 1 and len(set(rounds[0])) == 4  # each once in every round
    assert len(set(rounds)) > 5  # in another order


def test_validation_is_held_out_and_cycled(config):
    data = open_data(config, 0)
    canvas, slots = data.held_out(5)["homography"]
    assert slots.tolist() == [0, 1, 2, 3, 4] and set(data.held_out(1)) == {"homography"}
    chex.assert_shape(canvas.image, (5, 64, 64, 3))
    held_out = [tuple(int(c) for c in image[0, 0, :2]) for image in canvas.image]
    assert held_out[0][0] == 1 and held_out[1][0] == 2 and held_out[2:] == [*held_out[:2], held_out[0]]
    assert not set(held_out) & {color for batch in take(data, 0, 20) for color in colors(batch)}


def test_absent_kinds(config):
    scored = dataclasses.replace(config, homography=HomographyPairs(per_batch=0))
    unlabelled = open_data(scored, 0)
    (batch,) = take(unlabelled, 0, 1)
    assert set(batch) == {"unlabelled"} and batch["unlabelled"][1].tolist() == [0, 1, 2, 3]
    assert unlabelled.held_out(1)["homography"][0].image.any()
    assert "embedded" in unlabelled.report[0]
    homography = open_data(dataclasses.replace(config, unlabelled=None), 0)
    assert set(take(homography, 0, 1)[0]) == {"homography"}
    assert len(homography.report) == 2


def test_unknown_kind(tmp_path):
    wrong = UnlabelledPairs(sources=(Source("photo"),))
    data = DataConfig(homography=HomographyPairs(), unlabelled=wrong, cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"config\.data\.unlabelled\.sources names a source of kind 'photo'; it may be embedded, pairs, sfm120k"):
        open_data(data, 0)
    assert not (tmp_path / "cache").exists()  # told before anything is prepared


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
def test_real_photographs(tmp_path):
    images = tmp_path / "scene" / "images"
    images.mkdir(parents=True)
    source = SHARED / "scenes" / "boruszyn"
    lines = (source / "pairs.txt").read_text().splitlines()[:3]
    for name in {name for line in lines for name in line.split()}:
        os.symlink((source / "images" / name).resolve(), images / name)
    (tmp_path / "scene" / "pairs.txt").write_text("\n".join(lines))
    pairs = UnlabelledPairs(sources=(Source("pairs", str(tmp_path / "scene")),), per_batch=3)
    cfg = DataConfig(unlabelled=pairs, canvas_px=256, cache=str(tmp_path / "cache"))
    data = open_data(cfg, 0)
    pair, _ = take(data, 0, 1)[0]["unlabelled"]
    assert pair.valid.sum(axis=1).min() >= 12
    for xy, canvas in ((pair.xy12_px[..., :2], pair.canvas1), (pair.xy12_px[..., 2:], pair.canvas2)):
        assert (xy[pair.valid] >= -0.5).all() and (xy <= canvas.size_hw[:, None, ::-1] - 0.5).all() and canvas.size_hw.max() == 256
