"""Result files of D2-Net's and R2D2's notebooks."""

from pathlib import Path

import numpy as np

from jaxdesc.datasets.hpatches import COUNT, HPATCHES
from jaxdesc.errors import UserError
from jaxdesc.store import pickles


def read_cache(path: Path) -> dict[str, np.ndarray]:
    """MMA at 1..15 px of HPatches from `cache/<method>.npy`: {"overall", "i", "v"} ->
    (15,) shares.

    The file is an object array [i_err, v_err, [types, numbers of features, numbers of
    matches]], of which the first two are {threshold: sum of the pairs' shares}
    (formats.md B.5). It is a pickle; see `pickles.load` for what may be in it.

    Raises:
      UserError: as `pickles.load`; the content has another form.
    """
    try:
        i_err, v_err = (
            np.array([float(part[t]) for t in range(1, 16)]) for part in pickles.load(path)[:2]
        )
    except (TypeError, KeyError, IndexError, ValueError) as e:
        raise UserError(
            f"{path} is no result of D2-Net's benchmark: [i_err, v_err, statistics] with errors "
            "at 1 to 15 px is expected."
        ) from e
    i, v = (COUNT - 1) * HPATCHES["i"], (COUNT - 1) * HPATCHES["v"]
    shares = {"overall": (i_err + v_err) / (i + v), "i": i_err / i, "v": v_err / v}
    if not all(((s >= 0) & (s <= 1 + 1e-6)).all() for s in shares.values()):
        raise UserError(
            f"{path} holds sums that are no shares of the {i} and {v} pairs of HPatches."
        )
    return shares
