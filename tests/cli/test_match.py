"""jaxdesc match as a user meets it."""

import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdesc import figures
from jaxdesc.methods.caps import infer
from jaxdesc.predict import predictor
from jaxdesc.predict.predictor import Matches, Predictor
from jaxdesc.store import matches as files
from jaxdesc.store import weights
from jaxdesc.store.features import read_hdf5
from jaxdesc.store.flow import read_flo
from tests.cli import call
from tests.predict.test_predictor import TINY, noise


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    tiny = predictor.untrained("pump", **TINY)
    weights.save(path, "pump", tiny.config, jax.device_get(tiny.variables))
    return str(path)


@pytest.fixture(scope="module")
def caps_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "caps.safetensors"
    tiny = predictor.untrained("caps", backbone="resnet10", width=4, decoder_features=(8, 8), coarse_dim=6, fine_dim=6)
    weights.save(path, "caps", tiny.config, jax.device_get(tiny.variables))
    return str(path)


@pytest.fixture
def verb(monkeypatch, capsys, weight_file):
    def run(*arguments, status=None, verb="match", weights=weight_file):
        """Runs the verb; returns (stdout, stderr). A failure is one sentence."""
        out, err = call(monkeypatch, capsys, verb, *arguments, "--weights", weights, status=status)
        if status == 2:
            sentence = err.split("\n")[-2]  # after the progress bar, if it had come so far
            assert sentence.startswith("jaxdesc: ") and err.endswith(".\n") and "Traceback" not in err, err
        return out, err

    return run


@pytest.fixture
def quick(monkeypatch):
    """Matching without a network: the pixels (8 i, 4 j) of image 1, each moved by (2, 2); counts its calls."""
    calls = []

    def match_with(self, image1, image2, options, max_side=None, say=print, progress=None):
        calls.append((image1.shape, image2.shape, options, max_side))
        y, x = np.mgrid[4 : image1.shape[0] - 4 : 4, 4 : image1.shape[1] - 4 : 8]
        xy = np.stack([x, y], -1).reshape(-1, 2).astype(np.float32)
        return Matches(xy, xy + 2, np.linspace(2, 1, len(xy)).astype(np.float32), np.zeros(len(xy), np.int32))

    monkeypatch.setattr(Predictor, "match_with", match_with)
    return calls


@pytest.fixture
def folder(tmp_path):
    """Three images, one of them nested, and two files that are none."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.jpg", "sub/c.png")):
        Image.fromarray(noise(48, 64 + 8 * i, i)).save(root / name)
    (root / "note.txt").write_text("no image")
    return root


# ---- two images


def test_pair_end_to_end(verb, tmp_path):
    Image.fromarray(noise(64, 96)).save(tmp_path / "a.png")
    out = {
        flag: tmp_path / "new" / name
        for flag, name in (("--out", "m.npz"), ("--figure", "m.png"), ("--dense", "m.flo"), ("--warp", "w.png"), ("--heatmaps", "h.png"))
    }
    arguments = [tmp_path / "a.png", tmp_path / "a.png", "--max-scale", 1, "--query", 40, 20, *(part for item in out.items() for part in item)]
    told, _ = verb(*arguments)
    rows = files.read_corres(out["--out"])
    assert rows.shape[1] == 6 and told.startswith(f"{len(rows)} matches of ") and len(rows) > 200
    np.testing.assert_array_equal(rows[:, :2], rows[:, 2:4])
    flow, valid = read_flo(out["--dense"])
    assert flow.shape == (64, 96, 2) and valid.all() and np.abs(flow).max() < 1e-4
    warped = np.asarray(Image.open(out["--warp"]))
    np.testing.assert_allclose(warped.astype(int), noise(64, 96), atol=1)
    assert all(np.asarray(Image.open(out[flag])).ndim == 3 for flag in ("--figure", "--heatmaps"))
    _, err = verb(*arguments, status=2)
    assert "m.npz exists already" in err
    before = out["--out"].stat().st_mtime_ns
    verb(*arguments, "--overwrite")
    assert out["--out"].stat().st_mtime_ns > before


def test_random_matches_are_drawn(verb, caps_file, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "side_by_side", lambda a, b, xy1, xy2, most: drawn.append((xy1, xy2, most)) or np.full((4, 5, 3), 7, np.uint8))
    Image.fromarray(noise(64, 128)).save(tmp_path / "a.png")
    Image.fromarray(noise(96, 64)).save(tmp_path / "b.png")
    common = [tmp_path / "a.png", tmp_path / "b.png", "--one-way", "--max-side", 64, "--figure", tmp_path / "m.png", "--overwrite"]
    verb(*common, weights=caps_file)
    verb(*common, "--random", 50, weights=caps_file)
    (all1, all2, _), (some1, some2, most) = drawn
    assert len(all1) == 8 * 16 and len(some1) == most == 50
    place = {tuple(xy): i for i, xy in enumerate(all1.tolist())}
    rows = [place[tuple(xy)] for xy in some1.tolist()]
    assert len(set(rows)) == 50 and max(rows) > 100 and rows != sorted(rows), "of all ranks"
    np.testing.assert_array_equal(all2[rows], some2)


def test_figures_of_caps(verb, caps_file, tmp_path, monkeypatch):
    """What --heatmaps and --colours hand to the pictures: places in pixels of the shrunk images, and all nearest neighbours with --one-way."""
    drawn = {}

    def keep(name):
        def draw(image1, image2, xy1, xy2, *more):
            drawn[name] = image1.shape[:2], image2.shape[:2], xy1, xy2, *more
            return np.full((4, 5, 3), 7, np.uint8)

        return draw

    for name in ("distributions", "dense_correspondence"):
        monkeypatch.setattr(figures, name, keep(name))
    Image.fromarray(noise(64, 128)).save(tmp_path / "a.png")
    Image.fromarray(noise(96, 64)).save(tmp_path / "b.png")
    pair = [tmp_path / "a.png", tmp_path / "b.png", "--max-side", 64]
    points = ["--query", 0, 0, "--query", 127, 20.5, "--truth", 10, 10, "--truth", 31.5, 47.5]
    asked = ["--heatmaps", tmp_path / "h.png", *points, "--colours", tmp_path / "c.png", "--grid", 12]
    told, _ = verb(*pair, *asked, weights=caps_file)
    size1, size2, xy1, xy2, found = drawn["distributions"]
    assert (size1, size2) == ((32, 64), (64, 43))
    np.testing.assert_allclose(xy1, [[0, 0], [63, 10]])  # the corner pixel's centre would lie outside
    np.testing.assert_allclose(xy2, (np.array([[10.5, 10.5], [32, 48]]) * [43 / 64, 64 / 96]) - 0.5)
    assert found.coarse.shape == (2, 4, 3) and found.fine.shape == (2, 2, 2)
    size1, size2, mutual, _, step = drawn["dense_correspondence"]
    assert (size1, size2, step) == ((64, 128), (96, 64), 12) and told.startswith(f"{len(mutual)} matches of ")
    verb(*pair, "--one-way", "--colours", tmp_path / "c.png", "--overwrite", weights=caps_file)
    assert len(mutual) < len(drawn["dense_correspondence"][2]) == 8 * 16
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "b.png", "h.png", "c.png"} and np.asarray(Image.open(tmp_path / "h.png")).shape == (4, 5, 3)
    for arguments, words in (
        (["--heatmaps", tmp_path / "new.png", "--query", 128, 3], "inside image1 of 64x32 are expected"),
        (["--heatmaps", tmp_path / "new.png", *points[:6], "--truth", 1, 2], "--truth is given 1 times and --query 2 times"),
    ):
        assert words in verb(*pair, *arguments, status=2, weights=caps_file)[1]
    _, err = verb(*pair, "--heatmaps", tmp_path / "new.png", *points, status=2)
    assert "PUMP's heat maps show one query" in err and not (tmp_path / "new.png").exists()
    _, err = verb(*pair, "--one-way", status=2)
    assert "pump does not match with --one-way: it has --max-scale, --max-rot" in err


def test_points_of_caps(verb, caps_file, tmp_path):
    """What `query` finds for the points of the file, in its order and in pixels of the images as they are."""
    Image.fromarray(noise(64, 128)).save(tmp_path / "a.png")
    a, xy = tmp_path / "a.png", np.array([[100.0, 60], [0, 0], [127, 63], [33.5, 20.25]])
    (tmp_path / "p.txt").write_text("100 60\n0 0\n\n127 63\n33.5 20.25\n")
    found = {}
    for search in ("local", "global"):
        told, _ = verb(a, a, "--points", tmp_path / "p.txt", "--search", search, "--out", tmp_path / f"{search}.npz", weights=caps_file)
        found[search] = files.read_corres(tmp_path / f"{search}.npz")
        assert told.startswith("4 matches of ")
        np.testing.assert_allclose(found[search][:, :2], xy)
        image, caps = noise(64, 128), predictor.load(caps_file)
        options = infer.MatchOptions(search=search)
        expected = caps.method.points(caps.variables, image, image, xy, options)
        np.testing.assert_allclose(found[search][:, 2:4], expected.xy2_px, atol=1e-4)
    assert np.abs(found["local"] - found["global"]).max() > 1
    verb(a, a, "--points", tmp_path / "p.txt", "--max-side", 64, "--out", tmp_path / "small.npz", weights=caps_file)
    cells = (files.read_corres(tmp_path / "small.npz")[:, 2:4] + 0.5) / 2 - 0.5  # pixels of the shrunk image, whose fine map has one in every 63 / 15 by 31 / 7
    np.testing.assert_allclose(cells * [15 / 63, 7 / 31], np.rint(cells * [15 / 63, 7 / 31]), atol=1e-3)
    for text, words in (
        ("1 2 3", "two finite numbers"),
        ("one two", "could not convert"),
        ("200 3", "inside image1 of 128x64 are expected"),
        ("", "does not hold points"),
    ):
        (tmp_path / "p.txt").write_text(text)
        assert words in verb(a, a, "--points", tmp_path / "p.txt", status=2, weights=caps_file)[1]
    (tmp_path / "p.txt").write_text("1 2")
    assert "pump matches no chosen --points: caps does." in verb(a, a, "--points", tmp_path / "p.txt", status=2)[1]


def test_flow_and_warp_look_from_image_1(verb, quick, tmp_path):
    a, b = noise(48, 64, 0), noise(52, 60, 1)
    Image.fromarray(a).save(tmp_path / "a.png")
    Image.fromarray(b).save(tmp_path / "b.png")
    verb(
        tmp_path / "a.png", tmp_path / "b.png", "--dense", tmp_path / "f.flo", "--warp", tmp_path / "w.png", "--max-rot", 90, "--max-side", 50, "--memory", 0.5
    )
    np.testing.assert_allclose(read_flo(tmp_path / "f.flo")[0], 2, atol=1e-4)
    warped = np.asarray(Image.open(tmp_path / "w.png"))
    assert warped.shape == a.shape
    np.testing.assert_allclose(warped[:48, :58].astype(int), b[2:50, 2:60], atol=1)
    assert not warped[:, 59:].any()
    (_, _, options, max_side), *_ = quick
    assert (options.max_scale, options.max_rotation_deg, options.memory_bytes, max_side) == (4, 90, 2**29, 50)


def test_pair_that_does_not_match_writes_nothing(verb, monkeypatch, tmp_path):
    nothing = Matches(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    monkeypatch.setattr(Predictor, "match_with", lambda *_, **__: nothing)
    Image.fromarray(noise(48, 64)).save(tmp_path / "a.png")
    a = tmp_path / "a.png"
    _, err = verb(a, a, "--out", tmp_path / "m.npz", "--dense", tmp_path / "f.flo", status=2)
    assert "no match" in err and os.listdir(tmp_path) == ["a.png"]
    verb(a, a, "--out", tmp_path / "m.npz", "--figure", tmp_path / "m.png")
    assert files.read_corres(tmp_path / "m.npz").shape == (0, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.png", "missing.png"], "There is no image .*missing.png"),
        (["a.png", "folder"], "folder is a folder; two images or one folder"),
        (["a.png"], "is one image: name another one"),
        (["a.png", "a.png", "a.png"], "Two images or one folder are expected, 3 names"),
        (["a.png", "broken.png"], "broken.png cannot be used"),
        (["a.png", "a.png", "--out", "m.h5"], "--out .*m.h5 must end in .npz"),
        (["a.png", "a.png", "--figure", "m.txt"], "must end in .png or "),
        (["a.png", "a.png", "--random", "50"], "--random 50 needs --figure"),
        (["a.png", "a.png", "--figure", "broken.png"], "broken.png exists already"),
        (["a.png", "a.png", "--pairs", "m.txt"], "are for a folder"),
        (["a.png", "a.png", "--max-scale", "0.5"], "--max-scale = 0.5 must be at least 1"),
        (["a.png", "a.png", "--max-rot", "200"], "--max-rot = 200.0 must be at most 180"),
        (["a.png", "a.png", "--max-side", "5"], "--max-side 5 must be at least 32"),
        (["a.png", "a.png", "--memory", "0"], "--memory = 0.* must be above 0"),
        (["a.png", "a.png", "--query", "3", "4"], "--heatmaps FILE.png and --query X Y need each other"),
        (["a.png", "a.png", "--grid", "0"], "--grid 0 must be above 0"),
        (["a.png", "a.png", "--heatmaps", "m.png", "--query", "64", "4"], r"\(64, 4\) lies outside the image of 64x48 px"),
        (["nowhere", "--out", "m.h5"], "There is no folder"),
        (["empty", "--out", "m.h5"], "empty holds no image"),
        (["folder"], "A folder needs --out FILE.h5"),
        (["folder", "--out", "m.h5"], "holds one image, one.png"),
        (["folder", "--out", "m.npz"], "m.npz must end in .h5"),
        (["folder", "--out", "m.h5", "--figure", "m.png"], "for two images"),
        (["folder", "--out", "m.h5", "--pairs", "pairs.txt"], "pairs.txt, line 2: two image names are expected, 3"),
        (["folder", "--out", "m.h5", "--pairs", "pairs2.txt"], "pairs2.txt, line 1: there is no image 'two.png'"),
        (["folder", "--out", "m.h5", "--cell", "0"], "--cell 0 and --max-error 4 must be above 0"),
        (["folder", "--out", "m.h5", "--keypoints", "sift", "--max-side", "64"], "leave --max-side out"),
        (["folder", "--out", "m.h5", "--keypoints", "nowhere.h5", "--pairs", "pairs3.txt"], "nowhere.h5 must be hessian, .* or a file of keypoints"),
        (["folder", "--out", "m.h5", "--keypoints", "sift", "--max-keypoints", "0"], "--max-keypoints 0 must be at least 1"),
        (["blank", "--out", "m.h5"], "'my image.png' in .* holds a blank"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(verb, quick, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "empty", "blank"):
        (tmp_path / name).mkdir()
    for name in ("a.png", "folder/one.png", "blank/my image.png", "blank/b.png"):
        Image.fromarray(noise(48, 64)).save(name)
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "pairs.txt").write_text("one.png one.png\none.png my image.png\n")
    (tmp_path / "pairs2.txt").write_text("one.png two.png\n")
    (tmp_path / "pairs3.txt").write_text("one.png ../a.png\n")
    before = sorted(tmp_path.rglob("*"))
    _, err = verb(*arguments, status=2)
    assert re.search(words, err) and err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before and not quick


# ---- a folder


def test_folder(verb, quick, folder, tmp_path):
    out, features = tmp_path / "m.h5", tmp_path / "m_features.h5"
    told, _ = verb(folder, "--out", out)
    pairs = [("a.png", "b.jpg"), ("a.png", "sub/c.png"), ("b.jpg", "sub/c.png")]
    assert "3 pairs matched, 0 were there already" in told and str(features) in told
    assert (tmp_path / "m.h5.pairs.txt").read_text().split() == [name for pair in pairs for name in pair]
    for a, b in pairs:
        xy0, xy1, _ = files.read_dense_hdf5(out, a, b)
        np.testing.assert_array_equal(xy1, xy0 + 2)
        indices, _ = files.read_hdf5(out, a, b)
        kp0, kp1 = (read_hdf5(features, name).keypoints for name in (a, b))
        assert 3 < len(indices) <= len(xy0)
        assert (np.abs(kp1[indices[:, 1]] - kp0[indices[:, 0]] - 2) <= 4).all(), "both ends within 2 px of their keypoints"
    calls = len(quick)
    told, _ = verb(folder, "--out", out)
    assert "0 pairs matched, 3 were there already" in told and len(quick) == calls == 3


def test_folder_goes_on_and_grows(verb, quick, folder, tmp_path):
    out = tmp_path / "m.h5"
    list1, list2 = tmp_path / "1.txt", tmp_path / "2.txt"
    list1.write_text("a.png b.jpg\nb.jpg a.png\na.png a.png\n\n# note\na.png b.jpg\n")
    _, err = verb(folder, "--out", out, "--pairs", list1)
    assert "2 pairs of" in err and "listed twice" in err and "of an image with itself" in err and len(quick) == 1
    list2.write_text("sub/c.png a.png\n")
    told, _ = verb(folder, "--out", out, "--pairs", list2)
    assert "1 pairs matched, 1 were there already" in told and len(quick) == 2
    for a, b in (("a.png", "b.jpg"), ("sub/c.png", "a.png")):  # the first pair's indices belong to the new keypoints too
        indices, _ = files.read_hdf5(out, a, b)
        kp0, kp1 = (read_hdf5(tmp_path / "m_features.h5", name).keypoints for name in (a, b))
        assert len(indices) and (np.abs(kp1[indices[:, 1]] - kp0[indices[:, 0]] - 2) <= 4).all()
    _, err = verb(folder, "--out", out, "--max-scale", 2, status=2)
    assert "was made with other settings (max_scale was 4.0 and is now 2.0)" in err and len(quick) == 2
    verb(folder, "--out", out, "--max-scale", 2, "--overwrite")
    assert len(quick) == 5


def test_keypoints_of_a_folder_are_matched_by_their_descriptors(verb, quick, folder, tmp_path):
    out, features, pairs = tmp_path / "m.h5", tmp_path / "m_features.h5", tmp_path / "1.txt"
    pairs.write_text("a.png b.jpg\n")
    told, _ = verb(folder, "--out", out, "--keypoints", "--max-keypoints", 40, "--pairs", pairs)
    assert "1 pairs matched, 0 were there already" in told and not quick
    a, b = (read_hdf5(features, name) for name in ("a.png", "b.jpg"))
    assert 5 < len(a) <= 40 and a.descriptors.shape == (len(a), TINY["output_dim"]) and a.scales is not None
    indices, scores = files.read_hdf5(out, "a.png", "b.jpg")
    similarity = a.descriptors @ b.descriptors.T  # no pose makes images of noise agree
    mutual = [(i, j) for i, j in enumerate(similarity.argmax(1)) if similarity[:, j].argmax() == i]
    assert np.mean([tuple(row) in mutual for row in indices]) > 0.9 and len(indices) == pytest.approx(
        len(mutual), abs=2
    )  # descriptors are stored in half precision
    np.testing.assert_allclose(scores, similarity[tuple(indices.T)], atol=2e-3)
    told, _ = verb(folder, "--out", out, "--keypoints", "hessian", "--max-keypoints", 40)
    assert "2 pairs matched, 1 were there already" in told
    _, err = verb(folder, "--out", out, "--keypoints", "grid", "--max-keypoints", 40, status=2)
    assert "was made with other settings (keypoints was 'hessian' and is now 'grid')" in err


def test_folder_spares_files_of_others(verb, quick, folder, tmp_path):
    (tmp_path / "mine.h5").write_text("precious")
    for arguments in (("--out", tmp_path / "mine.h5"), ("--out", tmp_path / "m.h5", "--features", tmp_path / "mine.h5")):
        _, err = verb(folder, *arguments, status=2)
        assert "mine.h5 exists already" in err
    verb(folder, "--out", tmp_path / "m.h5")
    _, err = verb(folder, "--out", tmp_path / "m.h5", "--features", tmp_path / "mine.h5", status=2)
    assert "mine.h5 exists already" in err and (tmp_path / "mine.h5").read_text() == "precious"


def test_folder_names_unreadable_images(verb, quick, folder, tmp_path):
    (folder / "b.jpg").write_bytes(b"")
    told, err = verb(folder, "--out", tmp_path / "m.h5")
    assert "1 pairs matched" in told and "skipped with its pairs: b.jpg: the file is empty." in err
    assert (tmp_path / "m.h5.pairs.txt").read_text() == "a.png sub/c.png\n"
    (folder / "a.png").write_text("junk")
    _, err = verb(folder, "--out", tmp_path / "n.h5", status=2)
    assert "No pair could be matched: " in err and "the file is empty" in err and not (tmp_path / "n.h5").exists()


def test_killed_run_leaves_a_readable_file_and_goes_on(verb, folder, tmp_path, weight_file, quick):
    """The verb in a process of its own that is killed inside the second pair."""
    out = tmp_path / "m.h5"
    code = f"""
import os, signal, sys, numpy as np
from jaxdesc.__main__ import main
from jaxdesc.methods.caps import infer
from jaxdesc.predict.predictor import Matches, Predictor
calls = []
def match_with(self, image1, image2, *_):
    if calls: os.kill(os.getpid(), signal.SIGKILL)
    calls.append(1)
    xy = np.array([[5, 6], [20, 30]], np.float32)
    return Matches(xy, xy + 2, np.ones(2, np.float32), np.zeros(2, np.int32))
Predictor.match_with = match_with
sys.argv = ["jaxdesc", "match", {str(folder)!r}, "--out", {str(out)!r}, "--weights", {weight_file!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    xy0, _, _ = files.read_dense_hdf5(out, "a.png", "b.jpg")
    np.testing.assert_array_equal(xy0, [[5, 6], [20, 30]])
    told, _ = verb(folder, "--out", out)
    assert "2 pairs matched, 1 were there already" in told and len(quick) == 2
    np.testing.assert_array_equal(files.read_dense_hdf5(out, "a.png", "b.jpg")[0], xy0)
    assert json.loads((tmp_path / "m.h5.json").read_text())["max_scale"] == 4


def test_help_and_mistakes_in_a_process_of_their_own(tmp_path):
    run = [sys.executable, "-m", "jaxdesc", "match"]
    done = subprocess.run([*run, "nowhere.png", "b.png"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (2, "jaxdesc: There is no image nowhere.png.\n")
