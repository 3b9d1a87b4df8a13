"""The optimiser, from optax's pieces."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdesc.config import OptimConfig


class ParameterAverage(NamedTuple):
    average: Any
    # What else the network needs with these parameters, such as batch statistics of its own:
    # those of the parameters that are trained do not fit. See `step.settle_statistics`.
    model_state: Any = None


def parameter_average(decay: float) -> optax.GradientTransformation:
    """Keeps average <- decay * average + (1 - decay) * (params + updates) beside the optimiser; the updates pass unchanged.

    Must come last in a chain, where the updates are what is added to the parameters.
    """

    def init(params):
        return ParameterAverage(jax.tree.map(jnp.copy, params))

    def update(updates, state, params):
        new = optax.apply_updates(params, updates)
        average = optax.incremental_update(new, state.average, 1 - decay)
        return updates, state._replace(average=average)

    return optax.GradientTransformation(init, update)


def _is_average(node: Any) -> bool:
    return isinstance(node, ParameterAverage)


def kept_average(opt_state: Any) -> ParameterAverage | None:
    """The running mean of the parameters, if the optimiser keeps one."""
    return next(filter(_is_average, jax.tree.leaves(opt_state, is_leaf=_is_average)), None)


def with_model_state(opt_state: Any, model_state: Any) -> Any:
    """The optimiser's state, the running mean in it to be used with `model_state`."""

    def replaced(node):
        return node._replace(model_state=model_state) if _is_average(node) else node

    return jax.tree.map(replaced, opt_state, is_leaf=_is_average)


def learning_rate(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant, cosine to 0, halved every `halving_steps`, or constant up to the last fifth of the run and linear to 0 in it (trapezoid)."""
    end = max(steps // 5, 1)
    after = {
        "constant": lambda: optax.constant_schedule(cfg.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(cfg.learning_rate, max(steps - cfg.warmup_steps, 1)),
        "trapezoid": lambda: optax.linear_schedule(cfg.learning_rate, 0, end, max(steps - cfg.warmup_steps - end, 0)),
        "halving": lambda: optax.exponential_decay(cfg.learning_rate, cfg.halving_steps, 0.5, staircase=True),
    }[cfg.schedule]()
    warmup = optax.linear_schedule(cfg.learning_rate / max(cfg.warmup_steps, 1), cfg.learning_rate, max(cfg.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [cfg.warmup_steps]) if cfg.warmup_steps else after


def make_optimizer(cfg: OptimConfig, steps: int, rates: Callable[[Any], Any] | None = None) -> optax.GradientTransformation:
    """The optimiser that `cfg.name` names, for a run or a stage of `steps` updates.

    adam   weight decay is coupled: it joins the gradient before the moments, as in the papers' programs
    adamw  weight decay is decoupled: it joins the update
    sgd    v <- momentum v + (gradient + weight_decay params), as PyTorch has it

    Args:
      rates: from a tree of the parameters to what their updates are multiplied by; None: 1.
    """
    decay = optax.add_decayed_weights(cfg.weight_decay)
    adam = optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps)
    rules = {"adam": (decay, adam), "adamw": (adam, decay), "sgd": (decay, optax.trace(cfg.momentum))}
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
        *rules[cfg.name],
        optax.scale_by_learning_rate(learning_rate(cfg, steps)),
        *([optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, rates(updates)))] if rates else []),
        parameter_average(cfg.ema_decay) if cfg.ema_decay else optax.identity(),
    )
