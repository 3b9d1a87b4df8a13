"""Datasets made of folders: what is kept, what is skipped and told, and that a prepared dataset is never stale or half done."""

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import skimage.data
from PIL import Image

from jaxdesc.data import align
from jaxdesc.data.builders import base, embedded, pairs, photos, sfm120k
from jaxdesc.images import read_rgb
from jaxdesc.types import UserError

ASTRONAUT = os.path.join(os.path.dirname(skimage.data.__file__), "astronaut.png")


def make_photos(folder, count, size=(40, 50), start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        color = np.random.default_rng(i).integers(0, 256, (1, 1, 3), dtype=np.uint8)
        Image.fromarray(np.broadcast_to(color, (*size, 3)).copy()).save(folder / f"photo {i:03} é.png")
    return folder


def all_names(photo_set):
    return [[os.fsdecode(e["name"]) for e in split] for split in (photo_set.train, photo_set.validation)]


def open_photos(folder, tmp_path, side=64):
    return photos.open_photos(str(folder), side, str(tmp_path / "cache"))


def test_photos_are_split_by_name(tmp_path):
    folder = make_photos(tmp_path / "a", 41)
    make_photos(folder / "sub", 1, (100, 200), start=50)
    opened = open_photos(folder, tmp_path)
    train, validation = all_names(opened)
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*.png")]
    assert sorted(train + validation) == sorted(names)
    assert validation == sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:2]
    assert "40 photographs, 2 held out" in opened.report[0] and len(opened.report) == 1
    large = next(e for split in (opened.train, opened.validation) for e in split if e["name"].startswith(b"sub/"))
    assert large["image"].shape == (32, 64, 3) and large["original_hw"].tolist() == [100, 200]
    example = opened.train[3]
    np.testing.assert_array_equal(example["image"], read_rgb(folder / os.fsdecode(example["name"]), 64))
    # The same names elsewhere are held out again.
    assert all_names(open_photos(shutil.copytree(folder, tmp_path / "b"), tmp_path)) == [train, validation]


def test_one_photo_serves_for_both(tmp_path):
    train, validation = all_names(open_photos(make_photos(tmp_path / "a", 1), tmp_path))
    assert train == validation == ["photo 000 é.png"]


def test_unreadable_are_skipped_counted_and_told_again(tmp_path):
    folder = make_photos(tmp_path / "a", 38)
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(folder / "icon.png")
    for _ in range(2):  # when prepared, and when opened
        opened = open_photos(folder, tmp_path)
        assert len(opened.train) + len(opened.validation) == 38
        assert opened.report[1].startswith("  2 skipped: ")
        assert "empty.jpg (the file is empty)" in opened.report[1] and "icon.png (8x8 px is smaller than 32 px" in opened.report[1]


def test_more_than_five_percent_stop(tmp_path):
    folder = make_photos(tmp_path / "a", 37)
    for i in range(2):
        (folder / f"bad{i}.jpg").write_text("no picture")
    os.symlink("nowhere.png", folder / "dangling.png")
    for _ in range(2):
        with pytest.raises(UserError, match="3 of 40 images of a cannot be used") as error:
            open_photos(folder, tmp_path)
        assert "bad0.jpg (it is not an image in a known format)" in str(error.value) and "dangling.png (there is no such file)" in str(error.value)


def test_long_lists_of_skipped_are_cut():
    text = base.told([(f"{i}.jpg", "why") for i in range(14)])
    assert "9.jpg (why)" in text and "10.jpg" not in text and text.endswith(" and 4 more")


def test_changed_folder_is_prepared_anew_and_unchanged_is_not(tmp_path, monkeypatch):
    reads = []
    encode = base.encode_for_dataset
    monkeypatch.setattr(base, "encode_for_dataset", lambda path, side: reads.append(path) or encode(path, side))

    def reads_of_opening(side=64):
        reads.clear()
        open_photos(folder, tmp_path, side)
        return len(reads)

    folder = make_photos(tmp_path / "a", 3)
    assert reads_of_opening() == 3
    assert reads_of_opening() == 0
    assert reads_of_opening(48) == 3
    os.utime(folder / "photo 001 é.png", ns=(1, 1))
    assert reads_of_opening() == 3
    make_photos(folder, 1, start=7)
    assert reads_of_opening() == 4
    assert reads_of_opening() == 0


def test_killed_preparation_leaves_nothing_complete(tmp_path):
    folder = make_photos(tmp_path / "a", 30)
    program = f"""
        import os, signal
        from jaxdesc.data.builders import base, photos
        encode = base.encode_for_dataset
        def encode_or_die(path, side):
            if "012" in str(path):
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(path, side)
        base.encode_for_dataset = encode_or_die
        photos.open_photos({str(folder)!r}, 64, {str(tmp_path / "cache")!r})
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True).returncode == -9
    assert list(tmp_path.glob("cache/*/photos/incomplete.*"))
    opened = open_photos(folder, tmp_path)
    assert len(opened.train) + len(opened.validation) == 30
    assert not list(tmp_path.glob("cache/*/photos/incomplete.*"))


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    folder = make_photos(tmp_path / "a", 2)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be written to .*file.*Not a directory.*config\.data\.cache"):
        photos.open_photos(str(folder), 64, str(tmp_path / "file"))

    def full(self):
        raise RuntimeError("Failed to finalize writing: write() failed: No space left on device; writing x; at byte 9")

    monkeypatch.setattr(photos.Photos, "download_and_prepare", full)
    with pytest.raises(UserError, match=r"\(No space left on device\)"):
        open_photos(folder, tmp_path)


def test_cache_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDESC_CACHE", str(tmp_path / "there"))
    photos.open_photos(str(make_photos(tmp_path / "a", 2)), 64, "")
    assert list((tmp_path / "there").glob("a-*/photos/1.0.0/dataset_info.json"))


def test_no_tensorflow_and_one_tidy_bar(tmp_path):
    folder = make_photos(tmp_path / "my photos", 3)
    program = f"""
        import sys
        from jaxdesc.data.builders import photos
        opened = photos.open_photos({str(folder)!r}, 64, {str(tmp_path / "cache")!r})
        opened.train[0]
        assert "tensorflow" not in sys.modules and "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "preparing my_photos: 3/3" in done.stderr
    assert all("preparing my_photos: " in line for line in done.stderr.strip().replace("\r", "\n").splitlines() if line.strip())


def test_embedded(tmp_path):
    opened = embedded.open_photos("", 128, str(tmp_path))
    train, validation = all_names(opened)
    assert sorted(train) == sorted(embedded.TRAIN) and validation == list(embedded.VALIDATION) and not set(train) & set(validation)
    with pytest.raises(UserError, match="photos:here"):
        embedded.open_photos("here", 128, str(tmp_path))
    pair_set = embedded.open_pairs("", 512, str(tmp_path))
    assert len(pair_set.pairs) == 1 and len(pair_set.images) == 2
    xy12 = pair_set.pairs[0]["xy12_px"]
    assert len(xy12) >= 100 and np.median(np.abs(xy12[:, 1] - xy12[:, 3])) < 0.5 and (xy12[:, 0] - xy12[:, 2]).min() > 0  # rectified stereo


def crop_pair(folder, shift=(37, 21)):
    """Two crops of one photograph, image 2 `shift` px further right and down, and an image of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = np.asarray(Image.open(ASTRONAUT))[:300, :340]
    Image.fromarray(picture[:260, :290]).save(folder / "a.png")
    Image.fromarray(picture[shift[1] : shift[1] + 255, shift[0] : shift[0] + 280]).save(folder / "b.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 210, 3), dtype=np.uint8)).save(folder / "noise.png")
    return folder


def open_pairs(folder, tmp_path, side=512):
    return pairs.open_pairs(str(folder), side, str(tmp_path / "cache"))


def test_pairs_are_aligned_and_dropped(tmp_path):
    folder = crop_pair(tmp_path / "scene")
    (folder / "pairs.txt").write_text("# a comment\n\na.png b.png\n  b.png\ta.png \na.png a.png\na.png noise.png\n")
    for _ in range(2):
        opened = open_pairs(folder, tmp_path)
        assert len(opened.pairs) == 1 and len(opened.images) == 3
        assert "1 pairs of 3 photographs" in opened.report[0]
        for words in ("1 listed twice", "1 of an image with itself", "1 without common points"):
            assert words in opened.report[1]
    pair = opened.pairs[0]
    assert [opened.images[pair[i]]["name"] for i in ("index1", "index2")] == [b"a.png", b"b.png"]
    shift = pair["xy12_px"][:, :2] - pair["xy12_px"][:, 2:]
    assert pair["xy12_px"].dtype == np.float32 and len(shift) > 50
    assert (np.abs(shift - (37, 21)).max(axis=1) < 3).mean() > 0.97


def test_alignment_is_repeatable_and_in_stored_pixels(tmp_path):
    folder = crop_pair(tmp_path / "scene")
    (folder / "pairs.txt").write_text("a.png b.png\n")
    half = open_pairs(folder, tmp_path, 145)  # a.png is 290 px wide
    xy12 = half.pairs[0]["xy12_px"]
    assert half.images[0]["image"].shape == (130, 145, 3)
    scale2 = 145 / 280
    np.testing.assert_allclose(np.median((xy12[:, :2] + 0.5) * 2 - (xy12[:, 2:] + 0.5) / scale2, axis=0), (37, 21), atol=0.5)
    again = pairs.open_pairs(str(folder), 145, str(tmp_path / "other cache"))
    np.testing.assert_array_equal(again.pairs[0]["xy12_px"], xy12)


def test_given_correspondences_are_scaled(tmp_path):
    folder = crop_pair(tmp_path / "scene" / "images").parent
    (folder / "pairs.txt").write_text("a.png noise.png\n")
    (folder / "corres").mkdir()
    rows = np.random.default_rng(1).uniform(0, 199, (30, 6))
    rows[:, 5] = np.arange(-15, 15)
    rows[4, 2] = 5000.0  # outside image 2
    np.save(folder / "corres" / "a_noise.npy", rows)
    opened = open_pairs(folder, tmp_path, 145)
    got = opened.pairs[0]["xy12_px"]
    sx1, sy1, sx2, sy2 = 145 / 290, 130 / 260, 145 / 210, 138 / 200
    by_hand = [[(x1 + 0.5) * sx1 - 0.5, (y1 + 0.5) * sy1 - 0.5, (x2 + 0.5) * sx2 - 0.5, (y2 + 0.5) * sy2 - 0.5] for x1, y1, x2, y2, *_ in np.delete(rows, 4, 0)]
    np.testing.assert_allclose(got, by_hand, rtol=1e-5)
    # code = 8 s + r: image 2 is 2^(s / 2) times as large, r eighths of a turn clockwise;
    # the stored images are shrunk by different factors
    octaves = np.repeat([-1.0, -0.5, 0.0, 0.5], 8)[1:-1] + np.log2(sx2 / sx1)
    np.testing.assert_allclose(opened.pairs[0]["log2_scale_1to2"], np.delete(octaves, 4), atol=0.01)
    turns = np.tile([0, 0, 1, 2, 2, 2, 3, 0], 4)[1:-1]
    np.testing.assert_array_equal(opened.pairs[0]["turns_1to2"], np.delete(turns, 4))
    rows[7, 5] = 0.5
    np.save(folder / "corres" / "a_noise.npy", rows)
    with pytest.raises(
        UserError, match=r"a_noise\.npy holds in column 6 what is no code of scale and rotation"
    ):
        open_pairs(folder, tmp_path, 145)
    np.save(folder / "corres" / "a_noise.npy", rows[:, :3])
    with pytest.raises(UserError, match=r"a_noise\.npy holds float64 of shape \(30, 3\)"):
        open_pairs(folder, tmp_path, 145)


def test_pairs_prepared_by_an_earlier_version_are_prepared_anew(tmp_path, monkeypatch):
    """Their images are not."""
    reads = []
    encode = base.encode_for_dataset
    monkeypatch.setattr(
        base, "encode_for_dataset", lambda path, side: reads.append(path) or encode(path, side)
    )
    folder = crop_pair(tmp_path / "scene")
    (folder / "pairs.txt").write_text("a.png b.png\n")
    open_pairs(folder, tmp_path)
    (prepared,) = (tmp_path / "cache").glob("scene-*/pairs/*")
    assert prepared.name == "1.1.0" and len(reads) == 2
    prepared.rename(prepared.with_name("1.0.0"))
    assert "turns_1to2" in open_pairs(folder, tmp_path).pairs[0]
    assert prepared.is_dir() and len(reads) == 2


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_neighbours_say_scale_and_turn(turns):
    """Points of image 1 that are turned clockwise (x to y) and scaled, up to a pixel of noise
    and two wrong ones; one place is matched twice."""
    rng = np.random.default_rng(turns)
    xy1 = rng.uniform(0, 500, (60, 2))
    angle = np.radians(90 * turns + 25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    xy2 = 0.6 * xy1 @ turn.T + [300, 400] + rng.normal(0, 0.5, (60, 2))
    xy2[[3, 30]] = rng.uniform(0, 500, (2, 2))
    xy1[8], xy2[8] = xy1[9], xy2[9]
    log2_scale, found = align.local_similarity(np.concatenate([xy1, xy2], 1).astype(np.float32))
    right = np.delete(np.arange(60), [3, 30])
    np.testing.assert_allclose(log2_scale[right], np.log2(0.6), atol=0.15)
    assert (found[right] == turns).mean() > 0.95
    assert [len(values) for values in align.local_similarity(np.zeros((0, 4), np.float32))] == [
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.png b.png\n\na.png\n", "line 3: two image names are expected, 1 are there.*must not hold blanks"),
        ("a.png my b.png\n", "line 1: two image names are expected, 3 are there.*must not hold blanks"),
        ("a.png b.png\na.png c.png\n", "line 2: there is no image 'c.png' in .*scene"),
        ("# nothing\na.png a.png\n", "holds no pair"),
        ("a.png noise.png\n", "None of the 1 pairs of scene can be used: 1 without common points"),
    ],
)
def test_wrong_lists_are_refused(tmp_path, text, words):
    folder = crop_pair(tmp_path / "scene")
    (folder / "pairs.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        open_pairs(folder, tmp_path)


def test_missing_folder_or_list(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There is no folder"):
        open_pairs(tmp_path / "missing", tmp_path)
    with pytest.raises(UserError, match=r"has no pairs\.txt"):
        open_pairs(tmp_path / "empty", tmp_path)
    with pytest.raises(UserError, match=r"it has no list_pairs\.txt"):
        sfm120k.open_pairs(str(tmp_path / "empty"), 512, str(tmp_path))


def test_a_folder_of_scenes_is_the_set_of_all(tmp_path):
    for name in ("one", "two"):
        crop_pair(tmp_path / "scenes" / name / "images")
        (tmp_path / "scenes" / name / "pairs.txt").write_text("a.png b.png\n")
    opened = open_pairs(tmp_path / "scenes", tmp_path)
    names = [[opened.images[pair[i]]["name"] for i in ("index1", "index2")] for pair in opened.pairs]
    assert names == [[f"{name}/images/{image}.png".encode() for image in "ab"] for name in ("one", "two")]


def test_pairs_of_a_skipped_image_are_dropped(tmp_path):
    folder = crop_pair(tmp_path / "scene")
    lines = ["a.png b.png", "a.png bad.png"]
    (folder / "bad.png").write_bytes(b"")
    for i in range(18):
        Image.new("RGB", (32, 40)).save(folder / f"{i}.png")
        lines.append(f"a.png {i}.png")
    (folder / "pairs.txt").write_text("\n".join(lines))
    opened = open_pairs(folder, tmp_path)
    assert len(opened.pairs) == 1 and "1 skipped: bad.png (the file is empty)" in opened.report[1]
    assert "1 with a skipped image" in opened.report[2] and "18 without common points" in opened.report[2]
    assert opened.images[opened.pairs[0]["index2"]]["name"] == b"b.png"


def test_sfm120k(tmp_path):
    folder = crop_pair(tmp_path / "sfm" / "ims").parent
    (folder / "ims/ef/cd/ab").mkdir(parents=True)
    (folder / "ims/b.png").rename(folder / "ims/ef/cd/ab/012abcdef")
    (folder / "list_pairs.txt").write_text("a.png 012abcdef\n")
    (folder / "corres").mkdir()
    np.save(folder / "corres/a_012abcdef.npy", np.random.default_rng(0).uniform(0, 200, (50, 4)).astype(np.float32))
    opened = sfm120k.open_pairs(str(folder), 512, str(tmp_path / "cache"))
    assert len(opened.pairs[0]["xy12_px"]) == 50 and opened.images[1]["name"] == b"ims/ef/cd/ab/012abcdef"


def test_mutual_matches_against_loops():
    """Nearest both ways, by Euclidean distance of RootSIFT, and clearly nearer than the second-best in image 2."""
    rng = np.random.default_rng(0)
    one = rng.integers(0, 200, (23, 128), dtype=np.uint8)
    one[17:] = np.clip(one[:6] + rng.normal(0, 20, (6, 128)), 0, 255)  # two of image 1 look like one of image 2
    two = np.concatenate([one[rng.permutation(15)], one[:2], rng.integers(0, 200, (8, 128))])  # and the other way round, twice
    two = np.clip(two + rng.normal(0, 40, two.shape), 0, 255).astype(np.uint8)
    root1, root2 = ([np.sqrt(d / d.sum()) for d in descriptors.astype(float)] for descriptors in (one, two))
    distance = np.array([[np.linalg.norm(a - b) for b in root2] for a in root1])
    expected, one_way = [], 0
    for i in range(23):
        j, second = np.argsort(distance[i])[:2]
        if distance[i, j] < 0.8 * distance[i, second]:
            one_way += 1
            if np.argmin(distance[:, j]) == i:
                expected.append((i, j))
    assert list(zip(*(index.tolist() for index in align._mutual_matches(one, two)), strict=True)) == expected
    assert 3 < len(expected) < one_way


def test_align_needs_enough_features():
    flat = align.features(np.full((64, 80, 3), 128, np.uint8))
    picture = align.features(np.asarray(Image.open(ASTRONAUT)))
    for one, two in ((flat, flat), (flat, picture), (picture, flat)):
        assert align.align(one, two).shape == (0, 4)
