"""Batches drawn on the device from what the host delivered, kind by kind.

Every draw comes from fold_in(step key, slot), the example's place in the global batch, so
that a batch does not depend on how many devices share it.
"""

from functools import partial

import jax

from jaxdesc.config import DrawConfig, HostConfig
from jaxdesc.data.pipeline import Data
from jaxdesc.types import Array, Batch, RawBatch

HELD_OUT_SEED = 1_234_567  # of the fixed draws of held-out pairs, whatever a run's own seed


def draw_batch(
    key: Array, raw: RawBatch, data: HostConfig, cfg: DrawConfig, step: Array | None = None
) -> Batch:
    """The batch that a loss sees, {kind: pairs}, of the kinds that `raw` has.

    Args:
      step: of the run, for what grows with it; None: grown.
    """
    kinds = data.kinds()
    return {name: kinds[name].draw(key, *rows, cfg, step) for name, rows in raw.items()}


def held_out_batch(data: Data, cfg: DrawConfig, count: int) -> Batch:
    """`count` held-out pairs of each kind that can be scored, the same in every run.

    Colours are those of the files, and each kind says what else scoring asks for, see
    `Kind.to_score`.

    Raises:
      UserError: pairs of a kind cannot be scored.
    """
    raw, kinds = data.held_out(count), data.config.kinds()
    draw = partial(draw_batch, data=data.config, cfg=cfg.undistorted())
    batch = jax.jit(draw)(jax.random.key(HELD_OUT_SEED), raw)
    return {name: kinds[name].to_score(pairs, raw[name][0]) for name, pairs in batch.items()}
