"""Match files, read back by small readers written from the formats' descriptions."""

import struct

import h5py
import numpy as np
import pytest

from jaxdesc.store import matches as M
from jaxdesc.types import UserError


def hloc_get_matches(path, name0, name1):
    """What hloc's reader does with a match file."""

    def key(a, b, separator):
        return separator.join((a.replace("/", "-"), b.replace("/", "-")))

    with h5py.File(path) as file:
        for a, b, reverse, separator in ((name0, name1, 0, "/"), (name1, name0, 1, "/"), (name0, name1, 0, "_"), (name1, name0, 1, "_")):
            if key(a, b, separator) in file:
                group = file[key(a, b, separator)]
                matches, scores = group["matches0"].__array__(), group["matching_scores0"].__array__()
                first = np.where(matches != -1)[0]
                rows = np.stack([first, matches[first]], -1)
                return (np.flip(rows, -1) if reverse else rows), scores[first]
    raise ValueError


INDICES = np.array([[4, 40000], [0, 7], [2, 7], [4, 3], [5, 1]])
SCORES = np.array([0.5, 0.25, 1.0, 0.75, 1e6], np.float32)
KEPT = [[0, 7], [2, 7], [4, 3], [5, 1]], [0.25, 1, 0.75, 65504]  # the better match of keypoint 4, in its order


def test_hloc(tmp_path):
    path = tmp_path / "matches.h5"
    assert M.write_hdf5(path, "db/a.jpg", "db/b.jpg", INDICES, SCORES, 6)
    assert not M.write_hdf5(path, "db/a.jpg", "db/b.jpg", INDICES[:1], SCORES[:1], 6)
    assert not M.write_hdf5(path, "db/b.jpg", "db/a.jpg", INDICES[:1], SCORES[:1], 6), "the same pair in the other order"
    assert M.write_hdf5(path, "db/a.jpg", "c.jpg", INDICES[:0], SCORES[:0], 6), "no match is a result too"
    with h5py.File(path) as file:
        group = file["db-a.jpg/db-b.jpg"]
        assert group["matches0"].dtype == np.int32 and group["matches0"].shape == (6,)
        assert group["matching_scores0"].dtype == np.float16 and group["matching_scores0"].shape == (6,)
    for read in (hloc_get_matches, M.read_hdf5):
        for names, order in ((("db/a.jpg", "db/b.jpg"), 1), (("db/b.jpg", "db/a.jpg"), -1)):
            rows, scores = read(path, *names)
            np.testing.assert_array_equal(rows, np.array(KEPT[0])[:, ::order])
            np.testing.assert_array_equal(scores, KEPT[1])
        assert read(path, "db/a.jpg", "c.jpg")[0].shape == (0, 2)
    M.write_hdf5(path, "db/a.jpg", "d.jpg", [[1, 40000]] * np.ones((1, 1), int), SCORES[:1], 6)
    assert M.read_hdf5(path, "db/a.jpg", "d.jpg")[0][0, 1] == 40000, "int16 would wrap"
    with pytest.raises(UserError, match=r"holds no `matches0` of the pair db/a\.jpg e\.jpg"):
        M.read_hdf5(path, "db/a.jpg", "e.jpg")


def test_hloc_old_keys(tmp_path):
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        file["x-a_b/matches0"], file["x-a_b/matching_scores0"] = np.array([-1, 5], np.int16), np.array([0, 0.5], np.float16)
    np.testing.assert_array_equal(M.read_hdf5(path, "x/a", "b")[0], [[1, 5]])
    np.testing.assert_array_equal(M.read_hdf5(path, "b", "x/a")[0], [[5, 1]])
    assert M.unfinished(path, [("b", "x/a"), ("b", "c")]) == [("b", "c")]


def test_unfinished(tmp_path):
    pairs = [("a", "b"), ("c", "a"), ("b", "a"), ("a", "c"), ("b", "c")]
    assert M.unfinished(tmp_path / "m.h5", pairs) == [("a", "b"), ("c", "a"), ("b", "c")]
    M.write_hdf5(tmp_path / "m.h5", "a", "c", INDICES, SCORES, 6)
    assert M.unfinished(tmp_path / "m.h5", pairs) == [("a", "b"), ("b", "c")]


def slow_aggregate(matches, cell_px, max_error_px, most):
    """The same rule, keypoint by keypoint."""

    def rounded(v, s):
        return tuple(np.rint((np.float64(v) + 0.5) / s) * s - 0.5)

    bins = {}
    for (name0, name1), (xy0, xy1, scores) in matches.items():
        for name, xy in ((name0, xy0), (name1, xy1)):
            for point, score in zip(xy, scores, strict=True):
                fine = rounded(point, max_error_px)
                cell = bins.setdefault(name, {}).setdefault(rounded(fine, max(cell_px, max_error_px)), {})
                cell[fine] = cell.get(fine, 0) + float(score)
    keypoints = {}
    for name, cells in bins.items():
        best = [max(cell.items(), key=lambda item: item[1]) for cell in cells.values()]
        best.sort(key=lambda item: -item[1])
        keypoints[name] = best[:most]
    indices = {}
    for (name0, name1), (xy0, xy1, scores) in matches.items():
        rows = []
        for p0, p1, score in zip(xy0, xy1, scores, strict=True):
            ends = []
            for name, p in ((name0, p0), (name1, p1)):
                distance = [np.hypot(*(np.array(k) - p)) for k, _ in keypoints[name]]
                if min(distance) <= max_error_px:
                    ends.append(int(np.argmin(distance)))
            if len(ends) == 2:
                rows.append((score, *ends))
        kept = [
            row
            for row in rows
            if all(row[0] >= other[0] for other in rows if other[1] == row[1]) and all(row[0] >= other[0] for other in rows if other[2] == row[2])
        ]
        indices[name0, name1] = {row[1:] for row in kept}
    return keypoints, indices


@pytest.mark.parametrize(("cell_px", "max_error_px", "most"), [(8, 2, 1000), (4, 4, 1000), (1, 1, 1000), (8, 2, 23)])
def test_aggregate_dense(cell_px, max_error_px, most):
    rng = np.random.default_rng(0)
    base = {name: rng.uniform(0, (61, 47), (40, 2)) for name in "abc"}
    matches = {}
    for pair in (("a", "b"), ("c", "a"), ("b", "c")):
        rows = rng.permutation(40)[:30]
        xy0, xy1 = (base[name][rows] + rng.normal(0, 0.4, (30, 2)) for name in pair)
        matches[pair] = xy0.astype(np.float32), xy1.astype(np.float32), rng.random(30).astype(np.float32)
    keypoints, indices = M.aggregate_dense(matches, cell_px, max_error_px, most)
    expected, expected_indices = slow_aggregate(matches, cell_px, max_error_px, most)
    for name in "abc":
        xy, score = keypoints[name]
        assert xy.dtype == np.float32 and len(xy) == len(expected[name]) <= most
        np.testing.assert_allclose(score, [s for _, s in expected[name]], rtol=1e-6)
        np.testing.assert_allclose(xy, [k for k, _ in expected[name]])
    for pair, (rows, scores) in indices.items():
        assert {tuple(row) for row in rows} == expected_indices[pair] and len(rows) == len(scores) == len(expected_indices[pair]) > 3
        assert len(set(rows[:, 0])) == len(set(rows[:, 1])) == len(rows), "one to one"
        for i, name in enumerate(pair):
            nearest = np.linalg.norm(matches[pair][i][:, None] - keypoints[name][0][rows[:, i]], axis=-1).min(0)
            assert (nearest <= max_error_px).all()


def test_a_point_seen_in_three_pairs_is_one_keypoint():
    def row(x, y):
        return np.array([[x, y]], np.float32)

    one = np.ones(1, np.float32)
    keypoints, indices = M.aggregate_dense({("a", "b"): (row(10.1, 20), row(5, 5), one), ("a", "c"): (row(9.8, 20.3), row(7, 8), one)})
    assert len(keypoints["a"][0]) == 1 and keypoints["a"][1] == [2]
    assert indices["a", "b"][0].tolist() == indices["a", "c"][0].tolist() == [[0, 0]]
    nothing = np.zeros((0, 2), np.float32)
    keypoints, indices = M.aggregate_dense({("a", "b"): (nothing, nothing, np.zeros(0, np.float32))})
    assert keypoints["a"][0].shape == (0, 2) and indices["a", "b"][0].shape == (0, 2)


def test_dense_files_as_hloc_leaves_them(tmp_path):
    rng = np.random.default_rng(1)
    path, features = tmp_path / "m.h5", tmp_path / "out" / "f.h5"
    pairs = {("d/a", "b"): rng.uniform(0, 90, (50, 4)), ("b", "c"): rng.uniform(0, 90, (40, 4))}
    for (name0, name1), xy in pairs.items():
        assert M.write_dense_hdf5(path, name0, name1, xy[:, :2], xy[:, 2:], np.linspace(0, 1, len(xy)))
        assert not M.write_dense_hdf5(path, name1, name0, xy[:1, :2], xy[:1, 2:], np.ones(1))
        xy0, xy1, _ = M.read_dense_hdf5(path, name1, name0)
        np.testing.assert_array_equal(np.hstack([xy1, xy0]), xy.astype(np.float32))
    with pytest.raises(UserError, match="holds no `matches0` of the pair b c"):
        M.read_hdf5(path, "b", "c")
    asked = [("d/a", "b"), ("c", "b")]  # a pair may be asked for in the other order
    for _ in range(2):  # once more after more pairs
        keypoints, indices = M.aggregate_dense({pair: M.read_dense_hdf5(path, *pair) for pair in asked}, 1, 1)
        M.write_aggregated(features, path, keypoints, indices)
    for pair in asked:
        rows, scores = hloc_get_matches(path, *pair)
        order = np.lexsort(indices[pair][0].T[::-1])
        ours = indices[pair][0][order]
        assert len(rows) == len(ours) > 30
        assert {tuple(r) for r in rows} == {tuple(r) for r in ours}
        with h5py.File(features) as file:
            ends = [file[name]["keypoints"].__array__()[rows[:, i]] for i, name in enumerate(pair)]
            assert file["d/a"]["score"].shape == file["d/a"]["keypoints"].shape[:1]
        xy0, xy1, all_scores = M.read_dense_hdf5(path, *pair)
        for end0, end1, score in zip(*ends, scores, strict=True):
            near = (np.abs(xy0 - end0).max(1) <= 1) & (np.abs(xy1 - end1).max(1) <= 1)
            assert near.any() and np.isclose(all_scores[near], score, atol=1e-3).any()
    with h5py.File(path) as file:
        assert file["d-a/b/matches0"].dtype == np.int32 and set(file["d-a/b"]) == {"keypoints0", "keypoints1", "scores", "matches0", "matching_scores0"}


def test_corres(tmp_path):
    rng = np.random.default_rng(0)
    xy0, xy1, score = rng.random((9, 2)), rng.random((9, 2)), rng.random(9)
    M.write_corres(tmp_path / "a.npy", xy0, xy1, score, np.arange(-4, 5))
    rows = np.load(tmp_path / "a.npy")["corres"]
    assert rows.dtype == np.float32 and rows.shape == (9, 6)
    np.testing.assert_allclose(rows, np.column_stack([xy0, xy1, score, np.arange(-4, 5)]), rtol=1e-6)
    np.testing.assert_array_equal(M.read_corres(tmp_path / "a.npy"), rows)
    assert np.load(tmp_path / "a.npy")["rotation"] == "clockwise"
    np.savez(tmp_path / "b.npz", corres=rows[:, :5])
    np.savez(tmp_path / "c.npz", other=rows)
    np.save(tmp_path / "d.npy", rows)
    (tmp_path / "e.npz").write_text("none")
    for name, message in (("b.npz", r"shape \(9, 5\)"), *((n, "an npz with the array `corres` is expected") for n in ("c.npz", "d.npy", "e.npz", "f.npz"))):
        with pytest.raises(UserError, match=message):
            M.read_corres(tmp_path / name)


def test_corres_of_unknown_sense(tmp_path):
    """Without the mark, codes are read where mirroring leaves them as they are, else refused."""
    rows = np.arange(36, dtype=np.float32).reshape(6, 6)
    rows[:, 5] = 0, 4, 8, -4, -8, 20  # 0 or 180 degrees, at several scales
    np.savez(tmp_path / "old.npz", corres=rows)
    np.testing.assert_array_equal(M.read_corres(tmp_path / "old.npz"), rows)
    np.savez(tmp_path / "dense.npz", corres=rows[:, 1:5])
    np.testing.assert_array_equal(M.read_corres(tmp_path / "dense.npz"), rows[:, 1:5])
    for code in (1, 2, 6, 7, -2):
        rows[3, 5] = code
        np.savez(tmp_path / "turned.npz", corres=rows)
        with pytest.raises(UserError, match=r"turned\.npz holds .* whose turns are mirrored"):
            M.read_corres(tmp_path / "turned.npz")


def test_kapture(tmp_path):
    assert M.write_kapture(tmp_path, "q/b.jpg", "m/a.jpg", INDICES, SCORES, "pump") and not M.write_kapture(
        tmp_path, "m/a.jpg", "q/b.jpg", INDICES, SCORES, "pump"
    )
    rows = np.fromfile(tmp_path / "reconstruction/matches/pump/m/a.jpg.overlapping/q/b.jpg.matches", "<f8").reshape(-1, 3)
    np.testing.assert_array_equal(rows, np.column_stack([INDICES[:, 1], INDICES[:, 0], SCORES]))
    with pytest.raises(UserError, match="comma"):
        M.write_kapture(tmp_path, "a,b", "c", INDICES, SCORES)


def test_imc(tmp_path):
    assert M.write_imc(tmp_path, "a.jpg", "b.jpg", INDICES) and not M.write_imc(tmp_path, "b.jpg", "a.jpg", INDICES)
    assert M.write_imc(tmp_path, "c.jpg", "b.jpg", INDICES) and M.write_imc(tmp_path, "c.jpg", "a.jpg", INDICES[:0])
    with h5py.File(tmp_path / "matches.h5") as file:
        assert set(file) == {"b-a", "c-b", "c-a"} and file["b-a"].dtype.kind == "i" and file["c-a"].shape == (2, 0)
        np.testing.assert_array_equal(file["b-a"], INDICES[:, ::-1].T)
        np.testing.assert_array_equal(file["c-b"], INDICES.T)


def test_eth(tmp_path):
    assert M.write_eth(tmp_path, "b.png", "a.png", INDICES) and not M.write_eth(tmp_path, "a.png", "b.png", INDICES)
    data = (tmp_path / "matches" / "a.png---b.png.bin").read_bytes()
    assert struct.unpack("<ii", data[:8]) == (5, 2)
    np.testing.assert_array_equal(np.frombuffer(data, "<u4", offset=8).reshape(5, 2), INDICES[:, ::-1])
    with pytest.raises(UserError, match="lies in a folder"):
        M.write_eth(tmp_path, "x/b.png", "a.png", INDICES)
