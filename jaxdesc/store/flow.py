"""Optical flow and PFM files.

Convention: the flow is defined on the pixels of the TARGET image and points to the SOURCE: source = target + flow, (u, v) = (x, y) in pixels, an array
(H, W, 2) of float32 with a mask (H, W) of where it is known. Formats without a mask of their own know all.
"""

import math
import re
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from jaxdesc.errors import UserError
from jaxdesc.store.files import atomic

FLO_MAGIC = 202021.25  # the bytes "PIEH"
FLO_UNKNOWN = 1e9  # Middlebury: a component above this is unknown
Flow = tuple[np.ndarray, np.ndarray]


def write_flo(path: Path | str, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Middlebury .flo: float32 202021.25, int32 width, int32 height, float32 (H, W, 2), all little-endian; 1e10 where not valid."""
    height, width, _ = flow.shape
    rows = np.where(True if valid is None else valid[..., None], flow, 10 * FLO_UNKNOWN).astype("<f4")
    with atomic(path) as temporary:
        temporary.write_bytes(np.float32(FLO_MAGIC).astype("<f4").tobytes() + np.array([width, height], "<i4").tobytes() + rows.tobytes())


def read_flo(path: Path | str) -> Flow:
    """Flow (H, W, 2), 0 where unknown, and its mask (H, W).

    Raises:
      UserError: the file is missing, is no .flo file, or is cut short.
    """
    data = _bytes(path)
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != FLO_MAGIC:
        raise UserError(f"{path} is not a .flo file: it does not begin with the number {FLO_MAGIC}.")
    width, height = (int(n) for n in np.frombuffer(data, "<i4", 2, 4))
    if width <= 0 or height <= 0 or len(data) != 12 + 8 * width * height:
        raise UserError(f"{path} is damaged: {width} x {height} flow vectors need {12 + 8 * width * height} bytes, it has {len(data)}.")
    flow = np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)
    valid = (np.abs(flow) < FLO_UNKNOWN).all(-1)
    return np.where(valid[..., None], flow, 0), valid


def read_pfm(path: Path | str) -> np.ndarray:
    """A portable float map: (H, W) of "Pf" or (H, W, 3) of "PF", float32, top row first (the file begins with the bottom row).

    Raises:
      UserError: the file is missing, is no PFM file, or is cut short.
    """
    data = _bytes(path)
    head = re.match(rb"(PF|Pf)\s+(\d+)\s+(\d+)\s+([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s", data)
    if not head:
        raise UserError(f"{path} is not a PFM file: it should begin with PF or Pf, its width, its height and a scale.")
    shape = (int(head[3]), int(head[2])) + ((3,) if head[1] == b"PF" else ())
    if len(data) - head.end() != 4 * math.prod(shape):
        raise UserError(f"{path} is damaged: {' x '.join(map(str, shape))} numbers need {4 * math.prod(shape)} bytes, it has {len(data) - head.end()}.")
    byte_order = "<" if float(head[4]) < 0 else ">"
    values = np.frombuffer(data, byte_order + "f4", offset=head.end()).astype(np.float32)
    return np.ascontiguousarray(values.reshape(shape)[::-1])


def write_r2d2_flow(path: Path | str, flow: np.ndarray) -> None:
    """R2D2's flow PNG: int16 round(16 flow), clipped, the four little-endian bytes of a pixel being R, G, B, A. Its mask is a picture of its own."""
    code = np.clip(np.rint(16 * flow.astype(np.float64)), -(2**15), 2**15 - 1).astype("<i2")
    with atomic(path) as temporary:
        Image.fromarray(code.view(np.uint8).reshape(*flow.shape[:2], 4), "RGBA").save(temporary, format="PNG")


def read_r2d2_flow(path: Path | str) -> np.ndarray:
    """Flow (H, W, 2) in steps of 1/16 px.

    Raises:
      UserError: the file is missing or no RGBA PNG.
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(image) if image.mode == "RGBA" else None
    except OSError as e:
        raise UserError(f"{path} cannot be read as a PNG picture: {e.strerror or 'it is none, or damaged'}.") from e
    if pixels is None:
        raise UserError(f"{path} is not an R2D2 flow picture: it has no four channels of 8 bits.")
    return np.ascontiguousarray(pixels).view("<i2").astype(np.float32) / 16


def write_kitti(path: Path | str, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """KITTI's 16-bit PNG: R = 64 u + 2^15, G = 64 v + 2^15, B = 1 where valid; vectors that 16 bits cannot hold (512 px) are not valid."""
    code = np.rint(64 * flow.astype(np.float64) + 2**15)
    valid = ((code >= 0) & (code < 2**16)).all(-1) & (True if valid is None else valid)
    rgb = np.dstack([np.where(valid[..., None], code, 0), valid]).astype(np.uint16)
    with atomic(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())


def read_kitti(path: Path | str) -> Flow:
    """Flow (H, W, 2) in steps of 1/64 px, 0 where unknown, and its mask (H, W).

    Raises:
      UserError: the file is missing or no 16-bit PNG of three channels.
    """
    data = np.frombuffer(_bytes(path), np.uint8)
    bgr = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if bgr is None or bgr.dtype != np.uint16 or bgr.ndim != 3 or bgr.shape[2] != 3:
        raise UserError(f"{path} is not a KITTI flow picture: a PNG of three channels of 16 bits is expected.")
    valid = bgr[..., 0] > 0
    return np.where(valid[..., None], (bgr[..., :0:-1].astype(np.float32) - 2**15) / 64, 0), valid


def _bytes(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}.") from e
