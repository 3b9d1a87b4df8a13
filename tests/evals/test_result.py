"""Results: what is written is read, what is wrong is said, tables do not mix."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from jaxdesc.evals import published, result
from jaxdesc.evals.result import Curve, Result
from jaxdesc.types import UserError


def one(**changes):
    made = Result(
        protocol="mma/d2",
        estimator="",
        dataset="HPatches",
        method="pump on sift",
        values={"MMA@1": np.float32(0.25), "MMA@3": 0.75, "median": np.inf},
        curve=Curve("threshold [px]", (1, 2, 3), {"overall": np.array([0.25, 0.5, 0.75]), "i": [0.3, np.nan, 0.8]}, {"chosen": (2, np.float32(0.5))}),
        per_item={"a b": {"MMA@3": 1.0, "error": np.nan}},
        settings={"pairs": np.int64(3), "thresholds_px": (1, 2, 3), "share": np.float32(0.5), "limit": np.inf},
        timings={"score_s": 0.5},
    )
    return dataclasses.replace(made, **changes)


def test_round_trip(tmp_path):
    path = result.write(one(), tmp_path)
    assert path.name == "mma_d2_HPatches_pump_on_sift.json"
    assert json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))["values"]["median"] == "inf"
    back = result.read(path, "mma/d2")
    assert back.values == {"MMA@1": 0.25, "MMA@3": 0.75, "median": np.inf} and back.config_hash == one().config_hash
    assert np.isnan(back.curve.y["i"][1]) and np.isnan(back.per_item["a b"]["error"]) and back.curve.x == [1, 2, 3] and back.curve.marks == {"chosen": (2, 0.5)}
    assert back.versions["numpy"] == np.__version__ and back.settings["thresholds_px"] == [1, 2, 3]
    assert one(method="other").config_hash == one().config_hash != one(settings={"pairs": 4}).config_hash


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text[: len(text) // 2], "not JSON, or it is cut short"),
        (lambda text: "[1, 2]", "is no result of this program"),
        (lambda text: json.dumps({**json.loads(text), "format": "else"}), "is no result of this program"),
        (lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "values"}), "field 'values' is missing"),
        (lambda text: json.dumps({**json.loads(text), "more": 1}), "unknown field 'more'"),
        (lambda text: json.dumps({**json.loads(text), "values": {"MMA@1": "high"}}), "numbers cannot be read"),
        (lambda text: json.dumps({**json.loads(text), "values": {"MMA@1": None}}), "numbers cannot be read"),
        (lambda text: json.dumps({**json.loads(text), "curve": {"x_label": "x", "x": [1], "y": {"a": [1, 2]}, "marks": {}}}), "lines of different lengths"),
        (lambda text: json.dumps({**json.loads(text), "settings": {"pairs": 4}}), "changed after it was written"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, change, sentence):
    path = result.write(one(), tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=sentence) as error:
        result.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_another_protocol_and_a_missing_file(tmp_path):
    path = result.write(one(), tmp_path)
    with pytest.raises(UserError, match="of 'mma/d2', not of 'pck/hpf-img'"):
        result.read(path, "pck/hpf-img")
    with pytest.raises(UserError, match="cannot be read"):
        result.read(tmp_path / "none.json")


def test_tables_do_not_mix_protocols():
    other = one(protocol="mma/pump-count", dataset="HPatches")
    with pytest.raises(UserError, match="cannot share a table: mma/d2, mma/pump-count"):
        result.table([one(), other])
    text = result.compare([one(), other, one(method="rootsift", values={"MMA@3": 0.54321, "matches": 1234.5})], published.of)
    first, second = text.split("`mma/pump-count`")
    assert first.count("| here |") == 2 and "PUMP" not in first and "R2D2 WASF" in first, "PUMP's numbers are of matches cut to a number"
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines() if line.startswith("|")]
    assert lines[0] == ["method", "data", "MMA@1", "MMA@3", "median", "matches", "source"] and len({len(line) for line in lines}) == 1
    assert lines[3] == ["rootsift", "HPatches", "", "0.5432", "", "1234", "here"]
    assert "| PUMP S+U, ConvMixer | HPatches | 0.3783 | 0.8416 |" in second
    assert "settings of these rows differ" in result.table([one(), one(settings={"pairs": 2})])


def test_published_rows_go_by_key():
    assert [row.method for row in published.of("homography/cv2-ransac@3px")] == ["CAPS on SuperPoint keypoints"]
    assert published.of("homography/cv2-ransac@2px") == [] and published.of("mma/d2@top2000") == published.of("mma/d2") != []
    by_name = {(row.protocol, row.method): row.values for row in published.ROWS}
    assert by_name["localisation/colmap-pnp", "CAPS on SIFT keypoints"] == {"0.5m,2deg": 0.449, "1m,5deg": 0.684, "5m,10deg": 0.878}
    assert by_name["aepe/eth3d-dm", "PDC-Net+ (H)"]["AEPE@15 [px]"] == 3.24
    assert all("[unverified]" in row.source for row in published.ROWS if row.method == "GSF" and row.dataset != "SPair-71k")


def test_published_rows_name_their_sources_and_are_shares_where_they_should_be():
    assert len({(r.protocol, r.dataset, r.method) for r in published.ROWS}) == len(published.ROWS)
    for row in published.ROWS:
        assert row.source and row.values
        for name, value in row.values.items():
            assert 0 <= value <= 1 or name.startswith("AEPE") or name == published.BYTES, row


def test_curves_are_drawn_one_picture_a_protocol(tmp_path):
    shifted = one(protocol="aepe/x", curve=Curve("rate", [3, 5], {"AEPE [px]": [2.0, 40.0]}))
    paths = result.draw([one(), one(method="rootsift"), shifted, one(curve=None, protocol="none")], tmp_path)
    assert [path.name for path in paths] == ["mma_d2.png", "aepe_x.png"]
    picture = np.asarray(Image.open(paths[0]).convert("RGB")).reshape(-1, 3).tolist()
    assert [31, 119, 180] in picture and [255, 127, 14] in picture, "a colour a result"


def test_names_of_files_stay_short_and_plain(tmp_path):
    path = result.write(one(method="runs/ä b:" + "x" * 400), tmp_path)
    assert path.name.startswith("mma_d2_HPatches_runs_b_xxx") and result.read(path).method.endswith("xxx")


def test_scores_against_sizes(tmp_path):
    """Only results that say the size of their descriptors are drawn, beside published rows of their protocol."""
    size = published.BYTES
    mine = [Result("pck/hpf-img", "", "d", f"m{n}", {"PCK@0.05": 0.1, "PCK@0.1": 0.2, size: float(n)}) for n in (16, 64)]
    other = Result("pck/kp-extent", "", "d", "m", {"PCK@0.1": 0.2})
    (path,) = result.draw_sizes([*mine, other], tmp_path, size, published.of)
    assert path.name == "pck_hpf-img_sizes.png"
    drawn = np.asarray(Image.open(path))
    result.draw_sizes(mine, tmp_path, size, lambda key: [])
    assert drawn.std() > 0 and not np.array_equal(drawn, np.asarray(Image.open(path))), "published rows are drawn"
    rows = {row.method: row.values for row in published.of("pck/hpf-img")}
    assert rows["COLD, 64 channels"][size] == 256 and rows["HPF"][size] == 25600
    assert size in result.table(mine, published.of("pck/hpf-img")) and size not in result.table([other], published.of("pck/kp-extent"))
