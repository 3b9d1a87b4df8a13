"""MMA, its curve and homography accuracy on sequences whose homographies and matches are made here."""

import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdesc.evals import homography, hpatches, plane
from jaxdesc.store.features import Features, read_hdf5, write_hdf5
from jaxdesc.store.matches import write_hdf5 as write_matches
from jaxdesc.types import UserError

DATA = Path("/work/shared/data/homography")
SIZE = (64, 48)


def random_homography(rng):
    H = np.eye(3) + rng.normal(scale=0.03, size=(3, 3))
    H[:2, 2] = rng.uniform(-3, 3, 2)
    H[2, :2] = rng.uniform(-1e-4, 1e-4, 2)
    return H


def moved(H, x, y):
    u, v, w = (H[k][0] * x + H[k][1] * y + H[k][2] for k in range(3))
    return u / w, v / w


@pytest.fixture
def sequences(tmp_path):
    """i_one in HPatches' layout, v_two in Oxford's, and one of those that are left out; features whose matches are known."""
    rng = np.random.default_rng(0)
    root, file, truth = tmp_path / "data", tmp_path / "features.h5", {}
    for name, image, matrix in (("i_one", "{}.png", "H_1_{}"), ("v_two", "img{}.ppm", "H1to{}p"), ("i_dc", "{}.png", "H_1_{}")):
        (root / name).mkdir(parents=True)
        xy1 = rng.uniform(4, 40, (30, 2)).astype(np.float32)
        descriptors = np.linalg.qr(rng.normal(size=(40, 40)))[0][:30].astype(np.float32)
        for k in range(1, 7):
            Image.new("RGB", SIZE).save(root / name / image.format(k))
            key = f"{name}/{image.format(k)}"
            if k == 1:
                write_hdf5(file, key, Features(xy1, descriptors, np.linspace(1, 0, 30).astype(np.float32), None, SIZE), storage="float32")
                continue
            H = random_homography(rng)
            np.savetxt(root / name / matrix.format(k), H, fmt="%.12g")
            count = 0 if (name, k) == ("v_two", 6) else 30 - k
            noise = rng.normal(scale=2, size=(count, 2)) * rng.choice([0, 1, 3], (count, 1))
            xy2 = np.array([moved(H, *p) for p in xy1[:count].astype(float)]).reshape(-1, 2) + noise
            # the more similar, the lower the row; each stays the nearest of its own
            mixed = descriptors[:count] * np.linspace(1, 0.6, count)[:, None] + rng.normal(scale=0.01, size=(count, 40))
            order = rng.permutation(count)
            write_hdf5(
                file, key, Features(xy2[order].astype(np.float32), mixed[order].astype(np.float32), np.ones(count, np.float32), None, SIZE), storage="float32"
            )
            truth[name, k] = [math.dist(moved(H, *a), b) for a, b in zip(xy1[:count].astype(float), xy2.astype(np.float32).astype(float), strict=True)]
    return root, file, truth


def options(root, **more):
    return homography.Options(data=root, label="made", **more)


def scored(root, file, **more):
    return {
        re.sub("@[0-9].*", "", found.protocol): found
        for found in homography.score(options(root, **more), file)
    }


def test_mma_is_d2nets(sequences):
    root, file, truth = sequences
    found = scored(root, file)["mma/d2"]
    for name, kinds in (("overall", ("i_one", "v_two")), ("i", ("i_one",)), ("v", ("v_two",))):
        expected = []
        for t in range(1, 11):
            shares = [sum(e <= t for e in errors) / len(errors) if errors else 0 for (seq, _), errors in truth.items() if seq in kinds]
            expected.append(sum(shares) / (5 * len(kinds)))
        np.testing.assert_allclose(found.curve.y[name], expected, atol=1e-6)
    assert found.values["MMA@3"] == found.curve.y["overall"][2] and found.values["v MMA@10"] == found.curve.y["v"][9] and 0.2 < found.values["MMA@1"] < 0.9
    assert found.values["matches"] == np.mean([len(e) for (seq, _), e in truth.items() if seq != "i_dc"])
    right = [sum(e <= 3 for e in errors) for (seq, _), errors in truth.items() if seq != "i_dc"]
    assert found.values["right@3"] == np.mean(right)
    assert found.dataset == "data (2 sequences)" and found.settings["pairs"] == 10 and len(found.per_item) == 10
    assert found.per_item["v_two/img1.ppm v_two/img6.ppm"] == {"MMA@1": 0, "MMA@3": 0, "MMA@5": 0, "MMA@10": 0, "matches": 0}
    assert plane.accuracy([np.array([3.0, 3.0001])], [3])[0, 0] == 0.5, "at most, not less than"


def test_a_sequence_by_itself_and_top_k(sequences):
    root, file, truth = sequences
    alone = root.parent / "alone.h5"
    for k in range(1, 7):
        write_hdf5(alone, f"{k}.png", read_hdf5(file, f"i_one/{k}.png"), storage="float32")
    found = homography.score(options(root / "i_one", top=10), alone)[0]
    assert found.protocol == "mma/d2@top10" and found.dataset == "i_one (1 sequences)" and found.settings["pairs"] == 5
    # image 1 keeps its first ten; the others, all of one score, their first ten of a permuted list
    assert 0 < found.values["matches"] < 10
    full = homography.score(options(root / "i_one"), alone)[0]
    np.testing.assert_allclose(full.values["MMA@3"], np.mean([np.mean(np.array(truth["i_one", k]) <= 3) for k in range(2, 7)]), atol=1e-6)


def test_matches_of_a_file(sequences):
    root, file, _ = sequences
    listed, few = root.parent / "matches.h5", np.array([[3, 4], [7, 1]])
    names = [name for name in ("i_one/{}.png", "v_two/img{}.ppm") for _ in range(5)]
    for name, k in zip(names, [2, 3, 4, 5, 6] * 2, strict=True):
        some = slice(0 if name.format(k) == "v_two/img6.ppm" else 2)  # which has no keypoint
        write_matches(listed, name.format(1), name.format(k), few[some], np.array([0.5, 0.75])[some], 30)
    found = scored(root, file, matches=listed)["mma/d2"]
    assert found.values["matches"] == 1.8 and found.settings["matching"] == "of matches.h5"
    f1, f2 = (read_hdf5(file, f"i_one/{k}.png") for k in (1, 2))
    (pair,) = [pair for pair in hpatches.read_pairs(root)[0] if pair.name2 == "i_one/2.png"]
    errors = np.linalg.norm(plane.project(pair.H_1to2, f1.keypoints[few[:, 0]]) - f2.keypoints[few[:, 1]], axis=1)
    assert found.per_item[pair.key]["MMA@10"] == np.mean(errors <= 10)
    write_matches(root.parent / "beyond.h5", "i_one/1.png", "i_one/2.png", np.array([[0, 99]]), np.ones(1), 30)
    with pytest.raises(UserError, match=r"i_one/1.png i_one/2.png point beyond the 28 keypoints of i_one/2.png"):
        scored(root, file, matches=root.parent / "beyond.h5")
    with pytest.raises(UserError, match="leave --top out"):
        scored(root, file, matches=listed, top=5)


def test_threshold_is_tuned_to_a_number_of_matches(sequences):
    root, file, _ = sequences
    every = scored(root, file)["mma/pump-count"]
    assert every.values["tau"] == -np.inf and every.values["matches"] == every.curve.x[-1]
    assert list(every.curve.x) == sorted(every.curve.x)
    np.testing.assert_allclose(every.curve.y["MMA@3"][-1], every.values["MMA@3"])
    tuned = scored(root, file, match_count=10)["mma/pump-count"]
    assert tuned.values["matches"] == 10 and tuned.settings["target"] == "10" and 0 < tuned.values["tau"] < 1
    assert list(tuned.curve.marks.values()) == [(10, tuned.values["MMA@5"])] and every.curve.marks == {}
    by_file = scored(root, file, match_count=file)["mma/pump-count"]
    assert by_file.values["matches"] == every.values["matches"]
    with pytest.raises(UserError, match="must be above 0"):
        scored(root, file, match_count=0)
    with pytest.raises(UserError, match="no file of features"):
        scored(root, file, match_count="none.h5")


def test_threshold_and_curve_by_hand():
    similarities = [np.array([0.9, 0.5, 0.7]), np.array([0.8, 0.6]), np.zeros(0)]
    errors = [np.array([1.0, 9, 2]), np.array([4.0, 0]), np.zeros(0)]
    assert plane.threshold_for(similarities, 1) == 0.7 and plane.threshold_for(similarities, 2) == -np.inf
    assert plane.threshold_for([np.zeros(0)], 3) == -np.inf
    measured = [plane.Measured(e, s, 0.0, (3, 3)) for e, s in zip(errors, similarities, strict=True)]
    assert [e.tolist() for e in plane.above(measured, 0.7)] == [[1, 2], [4], []]
    counts, shares = plane.against_count(measured, (1, 3))
    np.testing.assert_allclose(counts, np.array([1, 2, 3, 4, 5]) / 3)
    np.testing.assert_allclose(shares[:, 0], [1 / 3, 1 / 3, 1 / 6, (1 / 2 + 1 / 2) / 3, (1 / 3 + 1 / 2) / 3])
    np.testing.assert_allclose(shares[2], [(1 / 2 + 0) / 3, (1 + 0) / 3])


def test_homography_accuracy(sequences):
    root, file, _ = sequences
    found = scored(root, file)["homography/cv2-ransac"]
    assert found.protocol == "homography/cv2-ransac@3px" and "RANSAC" in found.estimator
    errors = np.array([row["corner_px"] for row in found.per_item.values()])
    assert np.isinf(errors).sum() == 1 and found.values["failed"] == 0.1, "the pair without matches"
    np.testing.assert_allclose([found.values[f"accuracy@{t}"] for t in (1, 3, 5)], [(errors <= t).mean() for t in (1, 3, 5)])
    assert 0 < found.values["AUC@3"] < found.values["AUC@10"] < 1
    by_magsac = scored(root, file, estimator="cv2-magsac", ransac_px=2)["homography/cv2-magsac"]
    assert by_magsac.protocol == "homography/cv2-magsac@2px"


def repeated(H, xy1, xy2, size1, size2, t):
    """(Keypoints of either image found again, keypoints in both images), by loops."""
    back = np.linalg.inv(H)
    inside = lambda p, size: all(-0.5 <= c <= n - 0.5 for c, n in zip(p, size, strict=True))  # noqa: E731
    moved1 = [moved(H, *p) for p in xy1 if inside(moved(H, *p), size2)]
    kept2 = [tuple(p) for p in xy2 if inside(moved(back, *p), size1)]
    again = sum(any(math.dist(a, b) <= t for b in kept2) for a in moved1)
    again += sum(any(math.dist(a, b) <= t for a in moved1) for b in kept2)
    return again, len(moved1) + len(kept2)


def test_repeatability_counts_what_both_images_see(sequences):
    root, file, _ = sequences
    found = scored(root, file)["repeatability/superpoint"]
    by_kind = {"i": [], "v": []}
    for pair in hpatches.read_pairs(root)[0]:
        xy1, xy2 = (
            read_hdf5(file, n).keypoints.astype(float).tolist() for n in (pair.name1, pair.name2)
        )
        share = []
        for t in (1, 3, 5):
            again, seen = repeated(pair.H_1to2, xy1, xy2, SIZE, SIZE, t)
            share.append(again / seen if xy2 else 0)
        by_kind[pair.kind].append(share)
        np.testing.assert_allclose(list(found.per_item[pair.key].values()), share, atol=1e-9)
    assert found.per_item["v_two/img1.ppm v_two/img6.ppm"]["repeatability@5"] == 0
    for name, shares in (("", by_kind["i"] + by_kind["v"]), ("i ", by_kind["i"])):
        values = [found.values[f"{name}repeatability@{t}"] for t in (1, 3, 5)]
        np.testing.assert_allclose(values, np.mean(shares, 0), atol=1e-9)
    assert 0.3 < values[0] < values[2] < 1


def test_repeatability_of_images_of_two_sizes():
    """Half of image 1 lies outside image 2, and what lies there counts for nothing."""
    rng = np.random.default_rng(0)
    xy1, xy2 = rng.uniform(0, (60, 40), (50, 2)), rng.uniform(0, (30, 44), (40, 2))
    H = np.array([[1, 0.1, -2], [0, 1.1, 1], [0, 1e-3, 1]])
    ours = plane.repeatability(H, (xy1, xy2), ((60, 40), (30, 44)), (2, 4))
    for share, t in zip(ours, (2, 4), strict=True):
        again, seen = repeated(H, xy1.tolist(), xy2.tolist(), (60, 40), (30, 44), t)
        assert 30 < seen < 70 and share == again / seen
    nothing = plane.repeatability(H, (xy1, xy2 + 100), ((60, 40), (30, 44)), (2,))
    assert nothing == [0] and plane.repeatability(H, (xy1[:0], xy2), ((9, 9), (9, 9)), (2,)) == [0]


def test_corner_error_by_hand():
    rng = np.random.default_rng(4)
    A, B = random_homography(rng), random_homography(rng)
    expected = np.mean([math.dist(moved(A, x, y), moved(B, x, y)) for x in (0, 63) for y in (0, 47)])
    assert plane.corner_error(A, B, SIZE) == pytest.approx(expected)
    assert plane.corner_error(None, B, SIZE) == np.inf
    assert plane.corner_error(np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]), np.eye(3), SIZE) == np.inf, "a corner at infinity"


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.zeros((3, 2)), np.zeros((20, 2)), np.repeat(np.arange(20.0)[:, None], 2, axis=1)])
@pytest.mark.parametrize("method", plane.ESTIMATORS.values())
def test_degenerate_matches_give_no_crash(points, method):
    H = plane.estimate(points, points, method, 3.0)
    assert H is None or np.isfinite(H).all()


def test_points_at_infinity_are_wrong():
    H = np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 10]])
    np.testing.assert_array_equal(plane.project(H, np.array([[10, 3]]))[0], [np.inf, np.inf])
    np.testing.assert_allclose(plane.project(H, np.array([[5, 3]]))[0], [1, 0.6])


def test_what_is_missing_is_named(sequences):
    root, file, truth = sequences
    (root / "i_one" / "3.png").unlink()
    (root / "v_two" / "H1to4p").unlink()
    with pytest.raises(UserError, match=r"lacks i_one/3 \(image\), v_two/H_1_4: complete it"):
        scored(root, file)
    found = scored(root, file, allow_missing=True)["mma/d2"]
    assert found.settings["missing"] == ["i_one/3 (image)", "v_two/H_1_4"] and found.settings["pairs"] == 8
    shares = [np.mean(np.array(e) <= 3) if e else 0 for (seq, k), e in truth.items() if seq != "i_dc" and (seq, k) not in (("i_one", 3), ("v_two", 4))]
    np.testing.assert_allclose(found.values["MMA@3"], np.mean(shares), atol=1e-6)
    Image.new("RGB", SIZE).save(root / "i_one" / "3.jpg")  # an image without features
    np.savetxt(root / "v_two" / "H1to4p", np.eye(3))
    with pytest.raises(UserError, match=r"no features of i_one/3\.jpg"):
        scored(root, file)
    assert "i_one/3.jpg" in scored(root, file, allow_missing=True)["mma/d2"].settings["missing"]
    with pytest.raises(UserError, match="holds no sequence"):
        scored(root.parent, file)


@pytest.mark.parametrize(
    "text", ["1 0 0\n0 1 0\n", "1 0 0\n0 1 0\n0 0 one\n", "1 0 0\n0 1 0\n0 0 nan\n", "1 0 0\n0 1 0\n1 1 0\n", "1 0\n0 1 0\n0 0 1\n", "", "\x00\xff"]
)
def test_malformed_homographies_are_named(tmp_path, text):
    path = tmp_path / "H_1_2"
    path.write_text(text, encoding="latin1")
    with pytest.raises(UserError, match=r"homography .*H_1_2 is malformed: "):
        hpatches.read_homography(path)


def test_result_files_of_d2_nets_notebook(tmp_path):
    i_err, v_err = {t: 260 * t / 20 for t in range(1, 16)}, {t: 280 * t / 16 for t in range(1, 16)}
    content = np.array([i_err, v_err, [np.array(["i"]), np.array([5.0]), np.array([3.0])]], dtype=object)
    np.save(tmp_path / "d2-net.npy", content, allow_pickle=True)
    found = homography.cached(tmp_path / "d2-net.npy")
    assert found.method == "d2-net" and found.protocol == "mma/d2" and len(found.curve.x) == len(found.curve.y["v"]) == 10
    np.testing.assert_allclose([found.values["i MMA@3"], found.values["v MMA@3"], found.values["MMA@3"]], [3 / 20, 3 / 16, (39 + 52.5) / 540])
    np.save(tmp_path / "other.npy", np.arange(5.0))
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    with open(tmp_path / "evil.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        pickle.dump(print, file)
    for name, why in (("other", "no result of D2-Net's benchmark"), ("bad", "cannot be read"), ("evil", "asks for builtins.print")):
        with pytest.raises(UserError, match=why):
            hpatches.read_cache(tmp_path / f"{name}.npy")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_rootsift_on_photographs(tmp_path):
    """MMA@3 of 2,000 RootSIFT features, measured once by another program."""
    for name, expected in (("v_graf", 0.303), ("i_leuven", 0.811)):
        chosen = options(DATA / name, method="rootsift")
        found = homography.score(chosen, homography.predict(chosen, tmp_path / name))[0]
        assert found.values["MMA@3"] == pytest.approx(expected, abs=0.01)


def test_only_all_540_pairs_are_called_hpatches():
    pairs = [
        hpatches.HomographyPair(f"{kind}_{n}", "1", str(k), np.eye(3)) for kind, count in (("i", 52), ("v", 56)) for n in range(count) for k in range(2, 7)
    ]
    assert hpatches.dataset_name(Path("/x/hp"), pairs) == "HPatches"
    assert hpatches.dataset_name(Path("/x/hp"), pairs[1:]) == "hp (108 sequences)" and hpatches.dataset_name(Path("/x/hp"), pairs[5:]) == "hp (107 sequences)"
