"""Dense flow against true correspondences, counted by slow loops; readers of the data sets."""

import math
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxdesc import figures
from jaxdesc.datasets import dense_pairs
from jaxdesc.datasets.dense_pairs import DensePair
from jaxdesc.evals import dense
from jaxdesc.evals.transfers import flow_path
from jaxdesc.store.flow import read_flo, write_flo, write_kitti
from jaxdesc.types import UserError


def options(dataset, **more):
    return dense.Options(dataset=dataset, label="made", **more)


def image(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def test_one_pair_is_its_slow_count(tmp_path):
    rng = np.random.default_rng(0)
    flow, known = rng.normal(scale=3, size=(12, 17, 2)).astype(np.float32), rng.random((12, 17)) < 0.9
    write_flo(flow_path(tmp_path, "a", "b"), flow, known)
    xy_a = rng.integers(0, [17, 12], (40, 2)).astype(float)
    xy_b = xy_a + rng.normal(scale=40, size=(40, 2)) * (rng.random((40, 1)) < 0.5)
    scale = np.array([1.5, 0.5])
    pair = DensePair("a", "b", (17, 12), (20, 20), "", lambda: (xy_a, xy_b), scale)
    found = dense.measure(pair, tmp_path)
    errors, outliers, unknown = [], 0, 0
    for (x, y), (u, v) in zip(xy_a, xy_b, strict=True):
        fx, fy = flow[int(y), int(x)] if known[int(y), int(x)] else (0, 0)
        errors.append(math.hypot((x + fx - u) * 1.5, (y + fy - v) * 0.5))
        outliers += errors[-1] > 3 and errors[-1] > 0.05 * math.hypot((u - x) * 1.5, (v - y) * 0.5)
        unknown += not known[int(y), int(x)]
    assert found["AEPE [px]"] == pytest.approx(np.mean(errors)) and found["Fl"] == outliers / 40 and found["unknown"] == unknown / 40 > 0
    assert found["PCK@3"] == sum(e <= 3 for e in errors) / 40 and 0 < found["Fl"] < 1
    assert dense.measure(pair._replace(truth=lambda: (xy_a[:0], xy_b[:0])), tmp_path) == {"points": 0}
    # an error of 4 px is an outlier on a vector of 79 px, not on one of 81 px
    flow[:] = 0
    write_flo(flow_path(tmp_path, "a", "b"), flow)
    for length, expected in ((79, 1.0), (81, 0.0)):
        write_flo(flow_path(tmp_path, "a", "b"), np.full_like(flow, [length - 4, 0]))
        one = pair._replace(truth=lambda length=length: (np.zeros((1, 2)), np.array([[length, 0.0]])), scale_b=np.ones(2))
        assert dense.measure(one, tmp_path)["Fl"] == expected


def test_means():
    rows = [{"points": 1, "e": 2.0}, {"points": 3, "e": 6.0}]
    assert dense.mean(rows, "e") == 4 and dense.mean(rows, "e", pooled=True) == 5


@pytest.fixture
def eth3d(tmp_path):
    rng = np.random.default_rng(1)
    entries = {}
    for scene, rate, count in (("lakeside", 3, 2), ("lakeside", 5, 1), ("forest", 3, 1)):
        entries[scene, rate] = []
        for k in range(count):
            names = [f"{scene}/{rate}_{k}_{end}.png" for end in "st"]
            for name in names:
                image(tmp_path / name, (30, 20))
            Xt, Yt = rng.uniform(1, 28, 25), rng.uniform(1, 18, 25)
            Xt[:5], Yt[:5] = Xt[5:10], Yt[5:10]  # five of them twice, with other truths
            Xs, Ys = Xt + rng.normal(scale=2, size=25), Yt + rng.normal(scale=2, size=25)
            write_flo(flow_path(tmp_path / "flow", names[1], names[0]), rng.normal(size=(20, 30, 2)).astype(np.float32))
            entries[scene, rate].append({"source_image": f"data/{names[0]}", "target_image": names[1], "Xs": Xs, "Ys": Ys, "Xt": Xt, "Yt": list(Yt)})
        (tmp_path / "info_ETH3D_files").mkdir(exist_ok=True)
        (tmp_path / "info_ETH3D_files" / f"{scene}_every_5_rate_of_{rate}").write_bytes(pickle.dumps(entries[scene, rate], protocol=2))
    return tmp_path, entries


def test_eth3d_is_aggregated_both_ways(eth3d):
    root, entries = eth3d
    every, merged = dense.score(options("eth3d", data=root), root / "flow")
    for found, drop in ((every, False), (merged, True)):
        for rate in (3, 5):
            scenes = []
            for (_, r), content in entries.items():
                if r != rate:
                    continue
                pairs = []
                for entry in content:
                    flow, _ = read_flo(root / "flow" / f"{entry['target_image']}--{entry['source_image'].removeprefix('data/')}.flo".replace("/", "-"))
                    errors = {}
                    for k, (xs, ys, xt, yt) in enumerate(zip(entry["Xs"], entry["Ys"], entry["Xt"], entry["Yt"], strict=True)):
                        u, v = flow[round(yt), round(xt)]
                        errors[(round(xt), round(yt)) if drop else k] = math.hypot(xt + u - xs, yt + v - ys)
                    pairs.append(sum(errors.values()) / len(errors))
                scenes.append(sum(pairs) / len(pairs))
            assert found.values[f"AEPE@{rate} [px]"] == pytest.approx(sum(scenes) / len(scenes), rel=1e-6)
    assert (every.protocol, merged.protocol) == ("aepe/eth3d-pump", "aepe/eth3d-dm") and list(every.curve.x) == [3, 5]
    assert every.values["AEPE@3 [px]"] != merged.values["AEPE@3 [px]"] and len(every.per_item) == 4


def test_eth3d_files_that_are_wrong(eth3d):
    root, entries = eth3d
    path = root / "info_ETH3D_files" / "forest_every_5_rate_of_3"
    good = entries["forest", 3][0]
    for content, sentence in (
        (print, "asks for builtins.print"),
        ([{**good, "Xs": good["Xs"][1:]}], "entry 0: .* differ in length"),
        ([good, {"Xs": 1}], "entry 1: "),
        ({"a": 1}, "entry 0: "),
        ([{**good, "target_image": "forest/none.png"}], "no image forest/none.png"),
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=sentence):
            dense_pairs.eth3d(root, False)
    path.write_bytes(b"\x80")
    with pytest.raises(UserError, match="cannot be read"):
        dense_pairs.eth3d(root, False)
    with pytest.raises(UserError, match="holds no info_ETH3D_files"):
        dense_pairs.eth3d(root / "flow", False)


@pytest.fixture
def views(tmp_path):
    """v_two: six images of different sizes with random homographies; i_one, which does not count here."""
    rng = np.random.default_rng(2)
    matrices = {}
    for sequence in ("v_two", "i_one"):
        for k in range(1, 7):
            image(tmp_path / sequence / f"{k}.ppm", (40 + 2 * k, 30))
            if k > 1:
                H = np.eye(3) + rng.normal(scale=0.05, size=(3, 3))
                H[2, :2] = rng.uniform(-1e-3, 1e-3, 2)
                np.savetxt(tmp_path / sequence / f"H_1_{k}", H)
                matrices[k] = H
    return tmp_path, matrices


@pytest.mark.parametrize("square", [None, 16])
def test_views_of_hpatches_by_identity(views, square):
    root, _ = views
    chosen = options("hpatches", data=root, method="identity", square=square)
    folder = dense.predict(chosen, root / "out")
    (found,) = dense.score(chosen, folder)
    for k in range(2, 7):
        H, (wa, ha), (wb, hb) = np.loadtxt(root / "v_two" / f"H_1_{k}"), (42, 30), (40 + 2 * k, 30)
        errors = []
        for j in range(square or ha):
            for i in range(square or wa):
                x, y = ((i + 0.5) * wa / square - 0.5, (j + 0.5) * ha / square - 0.5) if square else (i, j)
                u, v, w = H @ [x, y, 1]
                if 0 <= u / w <= wb - 1 and 0 <= v / w <= hb - 1:
                    xc, yc = min(max(x, 0), wa - 1), min(max(y, 0), ha - 1)  # flow is known inside image 1; it is level beyond
                    px, py = x + (xc + 0.5) * wb / wa - 0.5 - xc, y + (yc + 0.5) * hb / ha - 0.5 - yc
                    sx, sy = (square / wb, square / hb) if square else (1, 1)
                    errors.append(math.hypot((px - u / w) * sx, (py - v / w) * sy))
        assert found.values[f"AEPE view {k} [px]"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert found.protocol == f"aepe/hpatches-{square or 'original'}" and len(found.per_item) == 5
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*.flo")}
    dense.predict(chosen, root / "out")
    assert len(stamps) == 5 and stamps == {path: path.stat().st_mtime_ns for path in folder.glob("*.flo")}, "nothing is done twice"
    flow_path(folder, "v_two/1.ppm", "v_two/3.ppm").unlink()
    with pytest.raises(UserError, match=r"v_two-1\.ppm--v_two-3\.ppm\.flo cannot be read"):
        dense.score(chosen, folder)


def test_motorcycle_needs_no_data(tmp_path):
    left = dense_pairs.motorcycle().pairs[0]
    xy_a, xy_b = left.truth()
    assert left.size_a == (741, 500) and 0.9 < len(xy_a) / (741 * 500) < 1 and (xy_a[:, 1] == xy_b[:, 1]).all()
    images = [dense_pairs.motorcycle().load(name).astype(float) for name in ("left", "right")]
    picked = np.random.default_rng(0).choice(len(xy_a), 2000)
    (x, y), (u, _) = np.rint(xy_a[picked]).astype(int).T, np.rint(xy_b[picked]).astype(int).T
    inside = (u >= 0) & (u < 741)
    moved = np.abs(images[0][y, x] - images[1][y, np.clip(u, 0, 740)])[inside].mean()
    still = np.abs(images[0][y, x] - images[1][y, x])[inside].mean()
    assert moved < 0.6 * still, "the disparity leads to like pixels"
    truth = np.zeros((500, 741, 2), np.float32)
    truth[xy_a[:, 1].astype(int), xy_a[:, 0].astype(int)] = xy_b - xy_a
    write_flo(flow_path(tmp_path / "flow", "left", "right"), truth + np.float32([0, 2]))
    (found,) = dense.score(options("middlebury", out=tmp_path, figures=3), tmp_path / "flow")
    picture = np.asarray(Image.open(tmp_path / "figures" / "left--right.png")).reshape(-1, 3)
    assert (picture == figures.KITTI[np.searchsorted(figures.KITTI_PX, 2)]).all(1).any() and not (picture == figures.KITTI[0]).all(1).any()
    assert found.values["AEPE [px]"] == pytest.approx(2, abs=1e-4) and found.values["PCK@1"] == 0 and found.values["PCK@3"] == 1


def test_kitti(tmp_path):
    rng = np.random.default_rng(3)
    counts = []
    for k, (h, w) in enumerate(((11, 15), (9, 21))):
        for end in (10, 11):
            image(tmp_path / "training" / "image_2" / f"{k:06d}_{end}.png", (w, h))
        true, valid = rng.integers(-640, 640, (h, w, 2)) / 8, rng.random((h, w)) < 0.7
        (tmp_path / "training" / "flow_occ").mkdir(exist_ok=True)
        write_kitti(tmp_path / "training" / "flow_occ" / f"{k:06d}_10.png", true, valid)
        flow = (true + rng.normal(scale=3, size=true.shape)).astype(np.float32)
        write_flo(flow_path(tmp_path / "flow", f"image_2/{k:06d}_10.png", f"image_2/{k:06d}_11.png"), flow)
        error = np.hypot(*np.moveaxis(flow - true, -1, 0))[valid]
        counts.append((error, (error > 3) & (error / np.hypot(*np.moveaxis(true, -1, 0))[valid] > 0.05)))
    (found,) = dense.score(options("kitti", data=tmp_path), tmp_path / "flow")
    assert found.values["AEPE [px]"] == pytest.approx(np.mean([e.mean() for e, _ in counts]), rel=1e-5)
    assert found.values["Fl"] == pytest.approx(np.concatenate([f for _, f in counts]).mean()) and 0.1 < found.values["Fl"] < 0.9
    with pytest.raises(UserError, match="flow_occ"):
        dense_pairs.kitti(tmp_path / "flow")


def test_tss_both_directions(tmp_path):
    rng = np.random.default_rng(4)
    expected, size = {1: (20, 14), 2: (26, 12)}, {}
    shares = []
    for k, (w, h) in expected.items():
        folder = tmp_path / "JODS" / "pair"
        image(folder / f"image{k}.png", (w, h))
        size[k] = w, h
        mask = (rng.random((h, w)) < 0.5).astype(np.uint8) * 255
        cv2.imwrite(str(folder / f"mask{k}.png"), mask)
        true = rng.normal(size=(h, w, 2)).astype(np.float32)
        write_flo(folder / f"flow{k}.flo", true)
        flow = true + rng.normal(scale=1, size=true.shape).astype(np.float32)
        write_flo(flow_path(tmp_path / "flow", f"JODS/pair/image{k}.png", f"JODS/pair/image{3 - k}.png"), flow)
        error = np.hypot(*np.moveaxis(flow - true, -1, 0))[mask > 0]
        longer = max(expected[3 - k])
        shares.append((error <= 0.05 * longer).mean())
    (found,) = dense.score(options("tss", data=tmp_path), tmp_path / "flow")
    assert found.values["JODS PCK@0.05"] == found.values["PCK@0.05"] == pytest.approx(np.mean(shares)) and 0.1 < np.mean(shares) < 0.9
    assert all("PCK@1" not in row for row in found.per_item.values())


def test_megadepth_counts_at_480_px_over_all_points(tmp_path):
    rng = np.random.default_rng(5)
    image(tmp_path / "s" / "a.jpg", (60, 45))  # source: 640 x 480
    image(tmp_path / "s" / "b.jpg", (30, 40))
    text = "source_image,target_image,XA,YA,XB,YB\n"
    errors = []
    flow = rng.normal(scale=0.5, size=(40, 30, 2)).astype(np.float32)
    write_flo(flow_path(tmp_path / "flow", "s/b.jpg", "s/a.jpg"), flow)
    for count in (3, 9):
        b = rng.integers(2, [28, 38], (count, 2))
        a = b + rng.normal(scale=0.2, size=(count, 2))
        a[0] = [70, 20]  # outside
        text += f"s/a.jpg,s/b.jpg,{';'.join(map(str, a[:, 0]))},{';'.join(map(str, a[:, 1]))},{';'.join(map(str, b[:, 0]))},{';'.join(map(str, b[:, 1]))}\n"
        errors += [math.hypot((x + flow[y, x, 0] - u) * 640 / 60, (y + flow[y, x, 1] - v) * 480 / 45) for (x, y), (u, v) in zip(b[1:], a[1:], strict=True)]
    (tmp_path / "test1600Pairs.csv").write_text(text)
    (found,) = dense.score(options("megadepth", data=tmp_path), tmp_path / "flow")
    assert found.protocol == "pck/megadepth-480"
    for t in (1, 3, 5, 10):
        assert found.values[f"PCK@{t}"] == pytest.approx(np.mean([e <= t for e in errors]))
    assert 0 < found.values["PCK@5"] < found.values["PCK@22"]


def test_flags_that_do_not_fit(tmp_path):
    for dataset, more, sentence in (
        ("kitti", {}, "--data DIR is needed"),
        ("kitti", {"data": tmp_path / "none"}, "There is no folder --data"),
        ("kitti", {"data": tmp_path, "square": 240}, "for --dataset hpatches alone"),
        ("hpatches", {"data": tmp_path, "square": 15}, r"Options\.square = 15 must be at least 16"),
        ("middlebury", {"method": "identity", "weights": "w"}, "needs no weights"),
        ("middlebury", {"figures": 1}, "needs --out DIR"),
        ("sintel", {}, r"Options\.dataset = 'sintel' must be one of eth3d"),
    ):
        with pytest.raises(UserError, match=sentence):
            dense.predict(options(dataset, **more), Path(tmp_path))
    with pytest.raises(UserError, match="is no folder"):
        dense.score(options("middlebury"), tmp_path / "none")


@pytest.mark.parametrize("count", [0, 40])
def test_a_predictors_matches_become_flow(tmp_path, monkeypatch, views, count):
    from types import SimpleNamespace

    from jaxdesc.config import Options
    from jaxdesc.predict import predictor

    root, _ = views
    xy1 = np.random.default_rng(0).uniform(0, 30, (40, 2)).astype(np.float32)
    found = predictor.Matches(xy1[:count], (1.5 * xy1 + [2, 1])[:count].astype(np.float32), np.ones(count, np.float32), np.zeros(count, np.int32))
    fake = SimpleNamespace(
        **{"source": "w", "digest": "0", "options": Options, "match_with": lambda a, b, options, max_side, say: found},
        positions=lambda a, b, matches: predictor.densified(matches, a.shape[:2], b.shape[:2]),
    )
    monkeypatch.setattr(predictor, "load", lambda weights: fake)
    folder = dense.predict(options("hpatches", data=root, weights="w"), tmp_path / "out")
    flow, known = read_flo(flow_path(folder, "v_two/1.ppm", "v_two/4.ppm"))
    assert flow.shape == (30, 42, 2) and known.all() == bool(count)
    if count:
        np.testing.assert_allclose(flow[15, 12], [12 * 0.5 + 2, 15 * 0.5 + 1], atol=1e-3)
    (scored,) = dense.score(options("hpatches", data=root), folder)
    assert scored.values.get("unknown", 0) == (0 if count else 1)
