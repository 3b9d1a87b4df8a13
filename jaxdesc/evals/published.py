"""Rows of published tables, to stand beside ours; shares in [0, 1], as `Result.values`.

Only what the papers' supplements and the projects' own pages say, each with its source. "[unverified]": recalled, no source was found.
"""

from typing import NamedTuple

BYTES = "descriptor [bytes]"  # a value that stands beside scores where the size of descriptors is known


class Row(NamedTuple):
    """One line of a table."""

    protocol: str  # the key of the results that it may stand beside
    dataset: str
    method: str
    values: dict[str, float]
    source: str


def _percent(names: str, values: str) -> dict[str, float]:
    """{name: share} from names and percentages separated by blanks."""
    return {name: round(float(value) / 100, 6) for name, value in zip(names.split(), values.split(), strict=True)}


def of(key: str) -> list[Row]:
    """The rows that may stand beside results of this key; what follows @ in it counts only where a row names it too."""
    return [row for row in ROWS if row.protocol in (key, key.split("@")[0])]


# ---- sparse features

_PUMP = "PUMP, supplementary, Table A"
_NIGHT = ("0.25m,2deg 0.5m,5deg 5m,10deg", "0.5m,2deg 1m,5deg 5m,10deg")  # PUMP's and CAPS's thresholds
_PUMP_ROWS = (
    ("ConvMixer", "S", "37.46 83.38 91.46", "69.63 84.82 96.86"),
    ("ConvMixer", "S+U", "37.83 84.16 92.42", "73.30 86.91 98.43"),
    ("R2D2 backbone", "S", "36.76 80.73 88.71", "70.68 85.86 96.34"),
    ("R2D2 backbone", "S+U", "37.20 81.39 89.41", "73.82 87.43 98.95"),
)
_CAPS_ROWS = (
    ("SIFT", "36.7 54.1 72.5"),
    ("HardNet", "41.8 61.2 84.7"),
    ("SuperPoint", "42.9 57.1 77.6"),
    ("DELF", "38.8 62.2 85.7"),
    ("D2-Net", "45.9 68.4 88.8"),
    ("R2D2", "46.9 66.3 88.8"),
    ("SOSNet", "42.9 64.3 85.7"),
    ("ContextDesc", "48.0 63.3 88.8"),
    ("CAPS on SIFT keypoints", "44.9 68.4 87.8"),
    ("CAPS on SuperPoint keypoints", "45.9 69.4 88.8"),
)
_SPARSE = [
    # PUMP's matches are cut to the number that the keypoint detector's own descriptors give
    *(Row("mma/pump-count", "HPatches", f"PUMP {loss}, {net}", _percent("MMA@1 MMA@3 MMA@5", mma), _PUMP) for net, loss, mma, _ in _PUMP_ROWS),
    *(Row("localisation/colmap-pnp", "Aachen night", f"PUMP {loss}, {net}", _percent(_NIGHT[0], night), _PUMP) for net, loss, _, night in _PUMP_ROWS),
    *(Row("localisation/colmap-pnp", "Aachen night", name, _percent(_NIGHT[1], night), "CAPS, supplementary, Table 1") for name, night in _CAPS_ROWS),
    Row("mma/d2", "HPatches", "R2D2 WAF, 1024 px", _percent("MMA@3", "68.6"), "R2D2, README"),
    Row("mma/d2", "HPatches", "R2D2 WASF, 1024 px", _percent("MMA@3", "72.1"), "R2D2, README"),
    Row("mma/d2", "HPatches", "R2D2 WAF, full size", _percent("MMA@3", "71.8"), "R2D2, README"),
    Row(
        "mma/d2",
        "HPatches",
        "R2D2 WASF, full size",
        _percent("MMA@1 MMA@3 MMA@10", "33.3 75.8 87.1") | {"i MMA@3": 0.808, "v MMA@3": 0.711},
        "R2D2, README; recomputed",
    ),
    Row(
        "homography/cv2-ransac@3px",
        "HPatches",
        "CAPS on SuperPoint keypoints",
        _percent("accuracy@1 accuracy@3 accuracy@5", "44.8 76.3 85.2"),
        "CAPS [unverified]",
    ),
    Row("auc/cv2-ransac@1px", "ScanNet-1500", "SuperPoint + SuperGlue", _percent("auc@5 auc@10 auc@20", "16.12 33.76 51.79"), "SuperGlue, README"),
    Row("precision/sym-epipolar2@0.0005", "ScanNet-1500", "SuperPoint + SuperGlue", _percent("precision matching_score", "84.4 31.1"), "SuperGlue, README"),
    Row("auc/cv2-ransac", "MegaDepth-1500", "SuperPoint + LightGlue, OpenCV", _percent("auc@5 auc@10 auc@20", "51.0 68.1 80.7"), "glue-factory, README"),
    Row("auc/poselib", "MegaDepth-1500", "SuperPoint + LightGlue, PoseLib", _percent("auc@5 auc@10 auc@20", "66.8 79.3 87.9"), "glue-factory, README"),
]

# ---- semantic keypoints

_PCK = "PCK@0.05 PCK@0.1 PCK@0.15"
_COLD_ROWS = (
    ("COLD, 4 channels", "49.2 73.7 84.0"),
    ("COLD, 8 channels", "56.5 78.2 87.5"),
    ("COLD, 16 channels", "58.3 80.8 88.5"),
    ("COLD, 32 channels", "66.4 84.0 90.0"),
    ("COLD, 64 channels", "67.8 84.2 90.5"),
    ("COLD, 128 channels", "71.2 86.8 92.1"),
    ("COLD, 256 channels", "72.2 87.1 92.4"),
    ("COLD, 512 channels", "73.3 88.2 92.9"),
    ("COLD, 1024 channels", "75.7 88.2 92.9"),
    ("COLD, 1536 channels", "76.6 88.8 93.6"),
    ("COLD, 2048 channels", "75.8 89.2 93.7"),
    ("COLD, 3072 channels", "76.8 89.0 93.4"),
    ("NC-Net", "54.3 78.9 86.0"),
    ("SF-Net", "53.6 81.9 90.6"),
    ("DCC-Net", "55.6 82.3 90.5"),
    ("HPF", "60.1 84.8 92.7"),
)
_DIMS = {"NC-Net": 1024, "SF-Net": 3072, "DCC-Net": 1024, "HPF": 6400} | {name: int(name.split()[1]) for name, _ in _COLD_ROWS if "channels" in name}
_VIA_CATS = "CATs, table of earlier results [unverified]"
_SEMANTIC = [
    # the paper says tau_img, not whether images were squashed
    *(
        Row(f"pck/{rule}", "PF-PASCAL", name, _percent(_PCK, v) | {BYTES: 4.0 * _DIMS[name]}, "COLD, supplementary, Table 1; bytes: float32")
        for rule in ("hpf-img", "dhpf-240")
        for name, v in _COLD_ROWS
    ),
    Row("pck/hpf-bbox", "SPair-71k", "GSF", _percent("PCK@0.1", "33.5"), "GSF, supplementary, Table 2"),
    Row("pck/hpf-img", "PF-PASCAL", "GSF", _percent(_PCK, "65.6 87.8 95.9"), _VIA_CATS),
    Row("pck/kp-extent", "PF-WILLOW", "GSF", _percent(_PCK, "49.1 78.7 90.2"), _VIA_CATS),
    Row("pck/kp-extent", "PF-WILLOW", "HPF", _percent("PCK@0.1", "74.4"), "HPF, README"),
    Row("labels/hpf-caltech", "Caltech-101", "HPF", _percent("LT-ACC IoU", "88 64"), "HPF, README"),
    *(
        Row("pck/dm-img", "PF-PASCAL", name, _percent("PCK@0.05 PCK@0.1", v), "DenseMatching, README")
        for name, v in (("Semantic-GLU-Net", "46.0 70.6"), ("WarpC", "62.1 81.7"))
    ),
    *(
        Row("pck/dm-kp", "PF-WILLOW", name, _percent("PCK@0.05 PCK@0.1", v), "DenseMatching, README")
        for name, v in (("Semantic-GLU-Net", "36.4 63.8"), ("WarpC", "49.0 75.1"))
    ),
]

# ---- dense flow

_DENSE = [
    *(
        Row("aepe/eth3d-dm", "ETH3D", name, {f"AEPE@{r} [px]": float(v) for r, v in zip(range(3, 16, 2), aepe.split(), strict=True)}, "DenseMatching, README")
        for name, aepe in (
            ("GLU-Net, dynamic", "2.01 2.46 2.98 3.51 4.30 6.11 9.08"),
            ("PDC-Net (D)", "1.60 1.79 2.03 2.26 2.58 2.92 3.69"),
            ("PDC-Net+ (H)", "1.56 1.74 1.96 2.18 2.48 2.73 3.24"),
        )
    ),
    Row("pck/megadepth-480", "MegaDepth", "GLU-Net, dynamic", _percent("PCK@1 PCK@3 PCK@5", "21.6 52.3 61.9"), "DenseMatching, README"),
    Row("pck/megadepth-480", "MegaDepth", "PDC-Net+ (MS)", _percent("PCK@1 PCK@3 PCK@5", "74.5 90.7 92.1"), "DenseMatching, README"),
]

ROWS: list[Row] = [*_SPARSE, *_SEMANTIC, *_DENSE]

# ---- studies: a training for every value of one field of the configuration, or of two


class Study(NamedTuple):
    """A published score for every cell."""

    over: dict[str, tuple[float, ...]]  # field -> values, in the order of the table
    scores: dict[tuple, dict[str, float]]  # values of the fields -> scores by the names of our validations
    score: str  # the one to be drawn where only one can be
    others: dict[str, tuple[float, dict[str, float]]]  # other methods: value of the field, scores
    about: str  # data and network
    source: str


def _grid(rows: tuple[float, ...], columns: tuple[float, ...], values: str) -> dict[tuple, dict[str, float]]:
    """Cells from percentages, row by row."""
    names = ((row, column) for row in rows for column in columns)
    return {name: {"pck@0.1": round(float(value) / 100, 6)} for name, value in zip(names, values.split(), strict=True)}


_AT = _PCK.lower()
_CHANNELS = {_DIMS[name]: _percent(_AT, values) for name, values in _COLD_ROWS if "channels" in name}
_WIDTHS, _WINDOWS = (0.1, 2.0, 5.0, 7.0), (3, 5, 7, 11)
_GSF_ABOUT = "SPair-71k, L of the object's box, ResNet"

STUDIES = {
    "cold-channels": Study(
        {"method.dim": tuple(_CHANNELS)},
        {(dim,): scores for dim, scores in _CHANNELS.items()},
        "pck@0.1",
        {name: (_DIMS[name], _percent(_AT, values)) for name, values in _COLD_ROWS if "channels" not in name},
        "PF-PASCAL, L of the image, ResNet-101",
        "COLD, supplementary, Table 1",
    ),
    "gsf-widths": Study(
        {"method.guide_width": _WIDTHS, "method.modulation_width": _WIDTHS},
        _grid(_WIDTHS, _WIDTHS, "9.8 16.4 20.3 18.0  18.7 25.1 29.8 26.9  22.2 31.8 33.5 30.1  20.8 24.4 27.1 25.5"),
        "pck@0.1",
        {},
        _GSF_ABOUT,
        "GSF, supplementary, Table 2 (a)",
    ),
    # which of the two windows the rows are is read from a damaged heading
    "gsf-windows": Study(
        {"method.geo_window": _WINDOWS, "method.match_window": _WINDOWS},
        _grid(_WINDOWS, _WINDOWS, "27.7 30.9 29.8 29.3  30.5 33.5 32.8 32.0  28.3 30.0 29.1 29.8  25.1 27.7 28.1 28.3"),
        "pck@0.1",
        {},
        _GSF_ABOUT,
        "GSF, supplementary, Table 2 (b)",
    ),
}
