"""Local image descriptors and dense correspondences, learned with weak supervision, in pure JAX.

import jaxdesc
predictor = jaxdesc.load("runs/pump")              # a training workdir, a weight file, or "pump"
descriptors = predictor.describe("a.jpg")          # (H, W, D) float32, unit length
matches = predictor.match("a.jpg", "b.jpg")        # xy1 (N, 2), xy2 (N, 2), score (N,), code (N,)
matches = jaxdesc.match("a.jpg", "b.jpg")          # the same in one go; jaxdesc.describe too
"""

__all__ = ["describe", "load", "match"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'jaxdesc' has no attribute {name!r}")
    from jaxdesc import predictor  # only now: importing the package loads no IO library

    return getattr(predictor, name)
