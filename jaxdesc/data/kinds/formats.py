"""config.json of runs that earlier versions began, in the names of today.

Format 2 had one `data` and one `draw` for all kinds of pair, those without pairs too: "synthetic"
are homography pairs today, "real" unlabelled and "semantic" keypoint pairs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdesc.config import FORMAT_VERSION
from jaxdesc.errors import UserError

Values = dict[str, Any]

HOST = ("canvas_px", "cache", "threads", "keep_mb", "prefetch")
COLOURS = ("flip_probability", "brightness", "contrast", "saturation", "hue")
CROPS = (
    *("crop_px", "rotation_deg", "min_side_px", "max_side_px", "aspect", "crop_scale", "trials"),
    *("noise", "swap_probability", "ramp_steps"),
    *("shade", "gamma", "blur_px", "motion_px", "jpeg_quality"),
)
EMBEDDED = {"kind": "embedded", "path": "", "weight": 1.0}


def upgraded(values: Values, version: int, workdir: Path) -> Values:
    """What config.json holds, as today's version would have written it.

    Fields that it lacks, of before they existed, are left out.

    Args:
      version: format_version of the file.
    Raises:
      UserError: a run of format 1 whose pairs would be drawn otherwise now.
    """
    if version == 1:
        _check_first(values, workdir)
    if version < 3:
        data, draw = values["data"], values["draw"]
        values = {**values, "data": _data(data, draw, values["method"]), "draw": _draw(data, draw)}
    return {**values, "format_version": FORMAT_VERSION}


def _check_first(values: Values, workdir: Path) -> None:
    """Refuses warped or unlabelled pairs of format 1, and posed ones that are pruned."""
    data, draw = values["data"], values["draw"]
    posed = data.get("posed_per_batch", 0) and draw.get("prune", True)
    if _crops(data) or posed:
        raise UserError(
            f"{workdir} was begun by an earlier version of jaxdesc, which drew its pairs "
            "otherwise: choose another --workdir. Its checkpoints can still be used as weights."
        )


def _crops(data: Values) -> int:
    return data.get("synthetic_per_batch", 0) + data.get("real_per_batch", 0)


def _taken(values: Values, names: Sequence[str] | Mapping[str, str]) -> Values:
    """Those of the fields that there are, by their names of today."""
    today = names if isinstance(names, Mapping) else {name: name for name in names}
    return {new: values[old] for old, new in today.items() if old in values}


def _draw(data: Values, draw: Values) -> Values:
    return _taken(draw, (*COLOURS, *CROPS) if _crops(data) else COLOURS)


def _data(data: Values, draw: Values, method: Values) -> Values:
    found: Values = {"homography": None, "unlabelled": None, "posed": None, "keypoints": None}
    if _crops(data):  # held-out photographs scored runs on unlabelled pairs alone, too
        found["homography"] = {
            "sources": data.get("synthetic") or [EMBEDDED],
            "per_batch": data.get("synthetic_per_batch", 0),
            **_taken(draw, ("tilt",)),
        }
    if data.get("real_per_batch", 0):
        names = {"real": "sources", "real_per_batch": "per_batch"}
        found["unlabelled"] = _taken(data, names) | _taken(data, ("correspondences",))
    if data.get("posed_per_batch", 0):
        names = {"posed": "sources", "posed_per_batch": "per_batch", "keypoints": "candidates"}
        renamed = {"posed_hw": "hw", "crop_scale": "zoom"}
        found["posed"] = {
            **_taken(data, names),
            **_taken(data, ("pose_noise", "curriculum")),
            **_taken(draw, renamed),
            **_taken(draw, ("queries", "prune", "prune_depth")),
        }
    if data.get("semantic_per_batch", 0):
        found["keypoints"] = {
            "sources": _keypoint_sources(data, method.get("stages")),
            "per_batch": data["semantic_per_batch"],
            **_taken(data, ("common_keypoints",)),
            **_taken(draw, {"crop_px": "image_px", "warp": "warp"}),
        }
    return {**_taken(data, HOST), **found}


def _keypoint_sources(data: Values, stages: Sequence[str] | None) -> list[Values]:
    """Stages A1 and A2 of GSF read the photographs that "synthetic" named, B the other list."""
    if stages is None:
        return data.get("semantic", [EMBEDDED])
    photographs = data.get("synthetic", [EMBEDDED]) if {"A1", "A2"} & set(stages) else []
    return photographs + (data.get("semantic", [EMBEDDED]) if "B" in stages else [])
