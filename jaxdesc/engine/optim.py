"""The optimiser, from optax's pieces."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdesc.config import OptimConfig


class ParameterAverage(NamedTuple):
    average: Any


def parameter_average(decay: float) -> optax.GradientTransformation:
    """Keeps average <- decay * average + (1 - decay) * (params + updates) beside the optimiser; the updates pass unchanged.

    Must come last in a chain, where the updates are what is added to the parameters.
    """

    def init(params):
        return ParameterAverage(jax.tree.map(jnp.copy, params))

    def update(updates, state, params):
        new = optax.apply_updates(params, updates)
        return updates, ParameterAverage(optax.incremental_update(new, state.average, 1 - decay))

    return optax.GradientTransformation(init, update)


def averaged(opt_state: Any, params: Any) -> Any:
    """The running mean of the parameters if the optimiser keeps one, else the parameters."""
    kept = [s for s in jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, ParameterAverage)) if isinstance(s, ParameterAverage)]
    return kept[0].average if kept else params


def learning_rate(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant, cosine to 0, or halved every `halving_steps`."""
    after = {
        "constant": lambda: optax.constant_schedule(cfg.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(cfg.learning_rate, max(steps - cfg.warmup_steps, 1)),
        "halving": lambda: optax.exponential_decay(cfg.learning_rate, cfg.halving_steps, 0.5, staircase=True),
    }[cfg.schedule]()
    warmup = optax.linear_schedule(cfg.learning_rate / max(cfg.warmup_steps, 1), cfg.learning_rate, max(cfg.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [cfg.warmup_steps]) if cfg.warmup_steps else after


def make_optimizer(cfg: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Adam whose weight decay is coupled: it joins the gradient before the moments, as in the papers' programs."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
        optax.add_decayed_weights(cfg.weight_decay),
        optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps),
        optax.scale_by_learning_rate(learning_rate(cfg, steps)),
        parameter_average(cfg.ema_decay) if cfg.ema_decay else optax.identity(),
    )
