"""Local image descriptors and dense correspondences, learned with weak supervision, in pure JAX.

import jaxdesc
predictor = jaxdesc.load("runs/pump")              # a training workdir, a weight file, or "pump"
descriptors = predictor.describe("a.jpg")          # (H, W, D) float32, unit length
features = predictor.features("a.jpg", 2000)       # keypoints (N, 2), descriptors (N, D), scores
matches = predictor.match("a.jpg", "b.jpg")        # xy1 (N, 2), xy2 (N, 2), score (N,), code (N,)
matches = jaxdesc.match("a.jpg", "b.jpg")          # the same in one go; jaxdesc.describe too
jaxdesc.register(definition)                       # a method from outside, see jaxdesc.method
"""

from importlib import import_module

from jaxdesc.errors import UserError

_HOMES = {
    **dict.fromkeys(("describe", "load", "match"), "predict.predictor"),
    "register": "methods",
}
__all__ = ["UserError", "__version__", *sorted(_HOMES)]


def _version() -> str:
    """Of the installed package; of a tree that is not installed, "unknown"."""
    from importlib.metadata import PackageNotFoundError, version  # 20 ms that few need

    try:
        return version("jaxdesc")
    except PackageNotFoundError:
        return "unknown"


def __getattr__(name: str):
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxdesc' has no attribute {name!r}")
    # Only now: importing the package loads no IO library and no JAX.
    return getattr(import_module(f"jaxdesc.{_HOMES[name]}"), name)
