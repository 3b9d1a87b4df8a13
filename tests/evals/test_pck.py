"""Keypoint transfer: every rule against a slow count of its own, the data sets' files, label transfer."""

import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from jaxdesc import config, figures
from jaxdesc.datasets import semantic
from jaxdesc.datasets.semantic import SemanticPair, split_by_images
from jaxdesc.evals import pck, transfers
from jaxdesc.evals.pck import RULES
from jaxdesc.predict import predictor
from jaxdesc.store import weights
from jaxdesc.store.flow import write_flo
from jaxdesc.training import loop
from jaxdesc.types import UserError

WILLOW = Path("/work/shared/data/willow")
SIZES = {"a.jpg": (80, 50), "b.jpg": (60, 90)}


def options(data, dataset="pf-willow", **more):
    return pck.Options(data=data, dataset=dataset, **more)


def image(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return SemanticPair("a.jpg", "b.jpg", "cat", rng.uniform(5, 45, (9, 2)), rng.uniform(5, 55, (9, 2)), np.array([2, 3, 70, 48.0]), np.array([4, 5, 50, 80.0]))


def slow(rule, pair, moved):
    """Share of right transfers at alpha = 0.1, keypoint by keypoint."""
    b, xy_a, xy_b, box = ("a.jpg", pair.xy_target, pair.xy_source, pair.box_source)
    if not rule.backward:
        b, xy_a, xy_b, box = ("b.jpg", pair.xy_source, pair.xy_target, pair.box_target)
    wb, hb = SIZES[b]
    L = {
        "square": rule.square,
        "image": max(wb, hb),
        "box": max(box[2] - box[0], box[3] - box[1]),
        "keypoints": max(max(p[k] for p in xy_b) - min(p[k] for p in xy_b) for k in (0, 1)),
    }[rule.length]
    right = {}
    for k, ((xm, ym), (xt, yt), (xa, ya)) in enumerate(zip(moved, xy_b, xy_a, strict=True)):
        sx, sy = (rule.square / wb, rule.square / hb) if rule.square else (1, 1)
        ok = math.hypot((xm - xt) * sx, (ym - yt) * sy) <= 0.1 * L
        right[(round(xa), round(ya)) if rule.merged else k] = ok
    return sum(right.values()) / len(right)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_its_slow_count(name, pair):
    rng = np.random.default_rng(5)
    pair = pair._replace(xy_target=np.concatenate([pair.xy_target[:-1], pair.xy_target[:1] + 1e-3]))  # two of them in one pixel
    rule = RULES[name]
    errors, expected, merged = [], [], 0
    for _ in range(30):
        moved = (pair.xy_source if rule.backward else pair.xy_target) + rng.normal(scale=5, size=(9, 2))
        errors.append(pck.distances(rule, pair, SIZES, lambda a, b, xy, size, moved=moved: moved, False))
        expected.append(slow(rule, pair, moved))
        merged += len(errors[-1]) == 8
    assert merged == (30 if rule.merged else 0)
    found = pck.pck([pair] * 30, errors, name, {"dataset": "d", "method": "m"})
    assert found.values["PCK@0.1"] == pytest.approx(np.mean(expected)) and 0.1 < found.values["PCK@0.1"] < 0.95
    assert found.curve.y["PCK"][9] == found.values["PCK@0.1"] and found.protocol == f"pck/{name}"


def test_flow_is_asked_at_rounded_points(pair):
    asked = []

    def transfer(a, b, xy, size):
        asked.append(xy)
        return xy

    pck.distances(RULES["dm-img"], pair, SIZES, transfer, True)
    pck.distances(RULES["sfnet-288"], pair, SIZES, transfer, True)
    pck.distances(RULES["hpf-img"], pair, SIZES, transfer, True)
    np.testing.assert_array_equal(asked[0], np.round(pair.xy_target))
    np.testing.assert_allclose(asked[1], np.round(pair.xy_target * [288 / 60, 288 / 90]) / [288 / 60, 288 / 90])
    np.testing.assert_array_equal(asked[2], pair.xy_source)


def test_aggregation_over_pairs_points_and_groups(pair):
    pairs = [pair._replace(tags=("occlusion=0",)), pair._replace(category="dog", tags=("occlusion=1",)), pair._replace(tags=("occlusion=1",))]
    errors = [np.array([0.05, 0.1, 0.1001]), np.array([0.2]), np.array([0.0])]
    found = pck.pck(pairs, errors, "hpf-bbox", {"dataset": "d", "method": "m"})
    assert found.values["PCK@0.1"] == pytest.approx((2 / 3 + 0 + 1) / 3) and found.values["pooled PCK@0.1"] == pytest.approx(3 / 5)
    assert found.values["PCK@0.05"] == pytest.approx((1 / 3 + 0 + 1) / 3), "at most alpha L"
    assert found.per_item["class cat"]["PCK@0.1"] == pytest.approx((2 / 3 + 1) / 2) and found.per_item["class dog"] == {
        "PCK@0.05": 0,
        "PCK@0.1": 0,
        "PCK@0.15": 0,
        "pairs": 1,
    }
    assert found.per_item["occlusion=1"]["PCK@0.1"] == 0.5


def test_degenerate_keypoints_and_absent_boxes(pair):
    one = pair._replace(xy_source=np.ones((1, 2)), xy_target=np.ones((1, 2)))
    assert pck.distances(RULES["kp-extent"], one, SIZES, lambda a, b, xy, size: xy, False).tolist() == [0.0]
    assert pck.distances(RULES["kp-extent"], one, SIZES, lambda a, b, xy, size: xy + 1, False).tolist() == [np.inf]
    with pytest.raises(UserError, match="no boxes"):
        pck.distances(RULES["hpf-bbox"], pair._replace(box_target=None), SIZES, lambda a, b, xy, size: xy, False)


def test_transfers_of_points_and_flow(tmp_path):
    rng = np.random.default_rng(1)
    xy, moved = rng.uniform(0, 30, (5, 2)), rng.uniform(0, 30, (5, 2)).astype(np.float32)
    assert transfers.write_points(tmp_path / "t.h5", "c/a.jpg", "c/b.jpg", moved) and not transfers.write_points(tmp_path / "t.h5", "c/a.jpg", "c/b.jpg", moved)
    np.savez(tmp_path / "t.npz", **{"c-a.jpg--c-b.jpg": moved})
    for name in ("t.h5", "t.npz"):
        transfer, free = transfers.reader(tmp_path / name)
        np.testing.assert_array_equal(transfer("c/a.jpg", "c/b.jpg", xy, (40, 35)), moved)
        assert not free
        with pytest.raises(UserError, match=r"nothing from c/b\.jpg to c/a\.jpg"):
            transfer("c/b.jpg", "c/a.jpg", xy, (40, 35))
        with pytest.raises(UserError, match=r"shape \(5, 2\) or holds NaN; \(4, 2\)"):
            transfer("c/a.jpg", "c/b.jpg", xy[:4], (40, 35))
    flow = rng.normal(size=(35, 40, 2)).astype(np.float32)
    write_flo(transfers.flow_path(tmp_path / "flow", "c/a.jpg", "c/b.jpg"), flow)
    transfer, free = transfers.reader(tmp_path / "flow")
    x, y = 12.25, 7.5
    expected = sum((1 - abs(x - i)) * (1 - abs(y - j)) * flow[j, i].astype(float) for j in range(35) for i in range(40) if abs(x - i) < 1 and abs(y - j) < 1)
    points = np.array([[x, y], [39, 34], [-3, 50]])
    np.testing.assert_allclose(transfer("c/a.jpg", "c/b.jpg", points, (40, 35)) - points, [expected, flow[34, 39], flow[34, 0]], atol=1e-6)
    assert free
    with pytest.raises(UserError, match=r"40 x 35 vectors, but the image c/a\.jpg has 41 x 35"):
        transfer("c/a.jpg", "c/b.jpg", xy, (41, 35))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"bad\.npz cannot be read"):
        transfers.reader(tmp_path / "bad.npz")


def test_willow_plain_by_identity_then_from_its_file(tmp_path):
    rng = np.random.default_rng(2)
    root, points = tmp_path / "data", {}
    for name, size in (("duck/1.jpg", (60, 40)), ("duck/2.png", (90, 80)), ("car/1.jpg", (50, 50)), ("car/2.jpg", (50, 50))):
        image(root / name, size)
        points[name] = rng.uniform(0, 40, (10, 2)), size
        np.savetxt((root / name).with_suffix(".txt"), points[name][0])
    chosen = options(root, label="identity", method="identity", out=tmp_path / "out", figures=1)
    path = pck.predict(chosen, tmp_path / "out")
    extent, img = pck.score(chosen, path)
    expected = []
    for a, b in (("car/1.jpg", "car/2.jpg"), ("car/2.jpg", "car/1.jpg"), ("duck/1.jpg", "duck/2.png"), ("duck/2.png", "duck/1.jpg")):
        (xy_a, (wa, ha)), (xy_b, (wb, hb)) = points[a], points[b]
        L = max(np.ptp(xy_b[:, 0]), np.ptp(xy_b[:, 1]))
        right = [math.hypot((x + 0.5) * wb / wa - 0.5 - u, (y + 0.5) * hb / ha - 0.5 - v) <= 0.15 * L for (x, y), (u, v) in zip(xy_a, xy_b, strict=True)]
        expected.append(sum(right) / 10)
    assert extent.protocol == "pck/kp-extent" and extent.values["PCK@0.15"] == pytest.approx(np.mean(expected)) and img.protocol == "pck/hpf-img"
    assert extent.dataset == "pf-willow test (4 pairs)" and extent.per_item["class duck"]["pairs"] == 2
    assert [p.name for p in (tmp_path / "out" / "figures").iterdir()] == ["car-1.jpg--car-2.jpg.png"]
    stamp = path.stat().st_mtime_ns
    assert pck.predict(chosen, tmp_path / "out").stat().st_mtime_ns == stamp, (
        "nothing is done twice"
    )
    (root / "car" / "2.txt").write_text("1 2\n3 4\n")
    with pytest.raises(UserError, match="car: its keypoint files differ"):
        pck.score(chosen, path)
    (root / "car" / "2.txt").write_text("1 b\n")
    with pytest.raises(UserError, match=r"2\.txt is malformed"):
        pck.score(chosen, path)
    (root / "car" / "2.txt").unlink()
    with pytest.raises(UserError, match=r"no keypoints beside it: 2\.txt"):
        pck.score(chosen, path)


def test_weights_move_keypoints_their_own_way_or_by_stored_descriptors(tmp_path):
    """COLD: what is scored is what the predictor says; sizes of descriptors are told; held-out pairs are those of training."""
    rng, root = np.random.default_rng(6), tmp_path / "data"
    for k in range(5):
        (root / "duck").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(root / "duck" / f"{k}.png")
        np.savetxt(root / "duck" / f"{k}.txt", rng.uniform(1, 48, (10, 2)))
    weights.save(
        tmp_path / "w.safetensors",
        "cold",
        (cold := predictor.untrained("cold", backbone="resnet10", width=4, dim=5, image_px=40)).config,
        jax.device_get(cold.variables),
    )
    common = options(root, weights=tmp_path / "w.safetensors", label="x", held_out=True)
    chosen = replace(common, transfer="own")
    path = pck.predict(chosen, tmp_path / "own")
    held_out = split_by_images(semantic.plain(root)).validation
    assert len(held_out) == 2
    pair = held_out[0]
    moved = transfers.reader(path)[0](pair.source, pair.target, pair.xy_source, (60, 50))
    np.testing.assert_allclose(moved, cold.transfer(root / pair.source, root / pair.target, pair.xy_source), atol=1e-4)
    (_, found) = pck.score(chosen, path)
    assert found.values["descriptor [bytes]"] == 20 and found.dataset == "pf-willow held out (2 pairs)" and found.settings["pairs"] == 2
    near = {}
    for storage in ("float32", "int8"):
        chosen = replace(common, transfer="nearest", storage=storage)
        path = pck.predict(chosen, tmp_path / storage)
        near[storage] = transfers.reader(path)[0](pair.source, pair.target, pair.xy_source, (60, 50))
        assert (
            pck.score(chosen, path)[0].values["descriptor [bytes]"]
            == {"float32": 20, "int8": 7}[storage]
        )
    assert not np.array_equal(near["float32"], near["int8"]), "five bytes are not exact"
    with pytest.raises(UserError, match="--storage int8 is for --transfer nearest"):
        replace(common, transfer="own", storage="int8")
    with pytest.raises(UserError, match="--held-out is for --dataset pf-willow"):
        options(root, held_out=True, pairs=root / "none.csv")


def test_transfers_are_drawn_green_within_20_px(tmp_path, monkeypatch):
    """COLD, supplementary, Figures 3 and 4: "Correct matches are colored as green and incorrect
    matches as red. The distance threshold for correctness was set to 20 pixels."
    """
    for name in ("a.png", "b.png"):
        image(tmp_path / name, (64, 48))
    truth, off = np.zeros((4, 2)), np.array([[19.9, 0], [12, 16], [0, 20.1], [24, 0]])
    pair = SemanticPair("a.png", "b.png", "cat", np.ones((4, 2)), truth)
    shown = []

    def draw(image1, image2, xy1, xy2, good):
        shown.append(good.tolist())
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(figures, "side_by_side", draw)
    (tmp_path / "out").mkdir()
    size_of = dict.fromkeys(("a.png", "b.png"), (64, 48))
    pck.draw([pair], tmp_path, size_of, lambda a, b, xy, size: off, tmp_path / "out")
    assert shown == [[True, True, False, False]]


def test_a_checkpoint_scores_the_same_in_training_and_here(tmp_path):
    """The held-out pairs of a folder, as the run's last validation scored them; the training draws
    are mirrored and of other colours, the validation's are not. Photographs larger than the square
    and not of its shape, JPEG and PNG, fewer pixels than config.data.canvas_px."""
    rng, root = np.random.default_rng(8), tmp_path / "data"
    for k in range(14):
        path = root / "ab"[k % 2] / f"{k}{'.png' if k % 4 else '.jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8))
        coarse.resize((120 - 5 * k, 64 + 9 * k)).save(path)
        np.savetxt(path.with_suffix(".txt"), rng.uniform(1, 48, (10, 2)))
    overrides = {"data.cache": tmp_path / "c", "data.keypoints.sources": f"keypoints:{root}"}
    overrides |= {"report.validation_pairs": 4, "train.steps": 1, "draw.brightness": 0.9}
    cfg = config.load("configs/cold.py:smoke", {k: str(v) for k, v in overrides.items()})
    scores = loop.run(cfg, tmp_path / "run")
    how = {"held_out": True, "transfer": "own", "rule": ("dhpf-240",)}
    chosen = options(root, weights=tmp_path / "run", label="x", **how)
    (found,) = pck.score(chosen, pck.predict(chosen, tmp_path / "out"))
    assert found.settings["pairs"] == 4 == cfg.report.validation_pairs
    theirs = [found.values[f"PCK@{alpha:g}"] for alpha in pck.REPORTED]
    assert [scores[f"pck@{alpha:g}"] for alpha in pck.REPORTED] == pytest.approx(theirs, abs=1e-6)
    assert 0 < theirs[0] < theirs[-1] < 1


def test_pascal_list_with_padding_and_boxes(tmp_path):
    image(tmp_path / "PF" / "JPEGImages" / "2008_1.jpg", (60, 40))
    image(tmp_path / "PF" / "JPEGImages" / "2008_2.jpg", (70, 40))
    for k, box in ((1, [1, 2, 30, 20]), (2, [5, 6, 50, 39])):
        path = tmp_path / "PF" / "Annotations" / "bus" / f"2008_{k}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"bbox": np.array([box])})
    text = "source_image,target_image,class,XA,YA,XB,YB\n"
    row = "x/JPEGImages/2008_1.jpg,x/JPEGImages/2008_2.jpg,6,1.5;2;-1;-1,3;4;-1;-1,5;6;-1;-1,7;8;-1;-1\n"
    (tmp_path / "PF" / "test_pairs_pf.csv").write_text(text + row)
    (found,) = semantic.read("pf-pascal", tmp_path / "PF", None, "test")
    np.testing.assert_array_equal(found.xy_source, [[1.5, 3], [2, 4]])
    np.testing.assert_array_equal(found.xy_target, [[5, 7], [6, 8]])
    np.testing.assert_array_equal([found.box_source, found.box_target], [[1, 2, 30, 20], [5, 6, 50, 39]])
    chosen = options(tmp_path / "PF", "pf-pascal", label="x", method="identity")
    assert [r.protocol for r in pck.score(chosen, pck.predict(chosen, tmp_path / "out"))] == [
        "pck/hpf-img",
        "pck/hpf-bbox",
        "pck/dhpf-240",
    ]
    for change, sentence in (
        (("YB", "Y"), "no column 'YB'"),
        (("7;8", "7;eight"), "line 2: as many x as y"),
        (("2;-1;-1", "2;-1"), "line 2: as many x as y"),
        (("2008_2.jpg,6", "2008_9.jpg,6"), "line 2: there is no image"),
        ((row, ""), "no pair"),
        ((",7;8;-1;-1", ""), "line 2: it has other columns"),
        (("1.5;2;-1;-1,3;4;-1;-1", "-1;-1;-1;-1,3;4;-1;-1"), "has no keypoints"),
    ):
        (tmp_path / "PF" / "test_pairs_pf.csv").write_text((text + row).replace(*change))
        with pytest.raises(UserError, match=sentence):
            semantic.read("pf-pascal", tmp_path / "PF", None, "test")


def test_spair_with_variations(tmp_path):
    for k in (1, 2):
        image(tmp_path / "JPEGImages" / "cat" / f"{k}.jpg", (60, 40))
    data = {"src_imname": "1.jpg", "trg_imname": "2.jpg", "category": "cat", "src_kps": [[1, 2], [3, 4]], "trg_kps": [[5, 6], [7, 8]]}
    data |= {"src_bndbox": [0, 0, 20, 10], "trg_bndbox": [1, 1, 41, 31], "viewpoint_variation": 2, "scale_variation": 0, "truncation": 3, "occlusion": 1}
    (tmp_path / "Layout" / "large").mkdir(parents=True)
    (tmp_path / "Layout" / "large" / "test.txt").write_text("000001-1-2:cat\n")
    path = tmp_path / "PairAnnotation" / "test" / "000001-1-2:cat.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data))
    np.savez(tmp_path / "t.npz", **{"JPEGImages-cat-1.jpg--JPEGImages-cat-2.jpg": np.array([[5, 10.0], [7, 12.1]])})
    chosen = options(tmp_path, "spair", label="x", rule=("hpf-bbox",))
    (found,) = pck.score(chosen, tmp_path / "t.npz")
    assert found.values["PCK@0.1"] == 0.5, "4.0 and 4.1 px, of 0.1 x 40"
    assert found.per_item["viewpoint_variation=2"]["PCK@0.1"] == found.per_item["truncation=3"]["PCK@0.1"] == 0.5
    for change, sentence in (
        ({"trg_kps": [[5, 6]]}, "different numbers"),
        ({"src_bndbox": [1]}, "is malformed"),
        ({"trg_imname": "3.jpg"}, "lacks 1 of 2 images"),
    ):
        path.write_text(json.dumps(data | change))
        with pytest.raises(UserError, match=sentence):
            pck.score(chosen, tmp_path / "t.npz")
    path.unlink()
    with pytest.raises(UserError, match=r"cat\.json cannot be read"):
        pck.score(chosen, tmp_path / "t.npz")


def test_labels_of_caltech(tmp_path):
    for k, size in ((1, (40, 30)), (2, (60, 50))):
        image(tmp_path / "c" / f"{k}.jpg", size)
    text = "source_image,target_image,class,XA,YA,XB,YB\nc/1.jpg,c/2.jpg,1,5;25;25;5,5;5;20;20,10;40;40,10;10;35\n"
    (tmp_path / "test_pairs_caltech.csv").write_text(text)
    moved = np.array([[10, 10], [39, 10], [39, 29], [10, 29.0]])
    np.savez(tmp_path / "t.npz", **{"c-1.jpg--c-2.jpg": moved})
    (found,) = pck.score(options(tmp_path, "caltech", label="x"), tmp_path / "t.npz")
    box, triangle = np.zeros((50, 60), bool), np.zeros((50, 60), bool)
    for y in range(50):
        for x in range(60):
            box[y, x] = 10 <= x <= 39 and 10 <= y <= 29
            triangle[y, x] = x <= 40 and y >= 10 and (y - 10) * 30 <= (x - 10) * 25
    assert found.values["IoU"] == pytest.approx((box & triangle).sum() / (box | triangle).sum(), abs=0.03)
    assert found.values["LT-ACC"] == pytest.approx((box == triangle).mean(), abs=0.01)
    assert found.protocol == "labels/hpf-caltech"


@pytest.mark.skipif(not WILLOW.is_dir(), reason=f"{WILLOW} is not there")
def test_willow_on_disk():
    pairs = semantic.read("pf-willow", WILLOW, None, "test")
    assert len({pair.category for pair in pairs}) == 7 and all(len(pair.xy_source) == len(pair.xy_target) == 10 for pair in pairs)


def test_nearest_descriptors_find_what_was_moved(tmp_path, monkeypatch):
    """With pixels' own colours as descriptors, a keypoint of a shifted image finds its place in both sizes."""
    from types import SimpleNamespace

    from jaxdesc.predict import predictor

    rng = np.random.default_rng(7)
    texture = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
    (tmp_path / "d").mkdir()
    Image.fromarray(texture[:60, :80]).save(tmp_path / "d" / "1.png")
    Image.fromarray(texture[3:70, 5:90]).save(tmp_path / "d" / "2.png")

    def describe(rgb):
        values = rgb.astype(np.float32) - 127.3
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    monkeypatch.setattr(predictor, "load", lambda weights: SimpleNamespace(describe=describe, source="colours", digest="0", dim=3))
    _, move = pck.trained(options(tmp_path, weights="w", max_side=128))
    xy = np.array([[20.0, 11], [64, 50], [33, 29]])
    np.testing.assert_allclose(move(tmp_path / "d/1.png", tmp_path / "d/2.png", xy, (80, 60), (85, 67)), xy - [5, 3], atol=1e-9)
