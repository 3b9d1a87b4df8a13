"""The hot paths are lowered for GPU and TPU here, without a device: nothing is left on the host,
and the loops are those that are meant."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import pytest

from jaxdesc import config, methods
from jaxdesc.data.draw import draw_batch
from jaxdesc.methods.pump.matching_pyramid import match_fields
from jaxdesc.training.optim import make_optimizer
from jaxdesc.training.step import AXIS, init_state, train_step
from jaxdesc.types import Canvas, RawPair

CFG = config.load("configs/pump.py:smoke")
WILD = replace(CFG.draw, shade=0.5, gamma=1.5, blur_px=2.0, motion_px=4.0, jpeg_quality=20, noise=10.0, hue=0.1)
HOST = ("callback", "xla_python", "infeed", "outfeed")


@pytest.fixture(params=["cuda", "tpu"])
def lowered(request, monkeypatch):
    """The program of a function for a platform, as text."""
    backend = {"cuda": "gpu"}.get(request.param, request.param)

    def text(function, *inputs):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: backend)
            exported = jax.export.export(jax.jit(lambda *x: function(*x)), platforms=[request.param])(*inputs)
        return exported.mlir_module()

    return text


def loops(program: str) -> int:
    return len(re.findall(r"stablehlo\.while", program))


def check_on_device(program: str) -> None:
    assert len(program) > 1000
    assert not [word for word in HOST if word in program]


def raw_batch(n: int, side: int = 256):
    image, size = jnp.zeros((n, side, side, 3), jnp.uint8), jnp.full((n, 2), side)
    canvas, k = Canvas(image, size), 16
    pair = RawPair(canvas, canvas, jnp.zeros((n, k, 4)), jnp.zeros((n, k)), jnp.zeros((n, k), jnp.int32), jnp.ones((n, k), bool))
    return {"homography": (canvas, jnp.arange(n)), "unlabelled": (pair, jnp.arange(n))}


def test_training_step(lowered):
    method = methods.find("pump").build(CFG.method, axis_name=AXIS)
    optimizer, raw = make_optimizer(CFG.optim, 2), raw_batch(2)
    draw = partial(draw_batch, data=CFG.data, cfg=WILD)
    batch = jax.jit(draw)(jax.random.key(0), raw)
    state = jax.jit(partial(init_state, method, optimizer, seed=0))(batch)
    step = partial(train_step, method=method, optimizer=optimizer, draw=draw, seed=0)
    program = lowered(jax.vmap(step, axis_name=AXIS), *jax.tree.map(lambda x: x[None], (state, raw)))
    check_on_device(program)
    # thresholds of the soft histograms, and strips of the correlations, of which a crop has one;
    # no loop over pairs or images: a CPU's four more
    assert loops(program) <= 12


def test_describe(lowered):
    method = methods.find("pump").build(CFG.method)
    draw = partial(draw_batch, data=CFG.data, cfg=CFG.draw)
    batch = jax.eval_shape(draw, jax.random.key(0), raw_batch(1))
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    program = lowered(method.describe, variables, jax.ShapeDtypeStruct((2, 60, 80, 3), jnp.float32))
    check_on_device(program)
    assert loops(program) == 0


def test_matching_pyramid(lowered):
    desc = jax.ShapeDtypeStruct((96, 128, 16), jnp.float32)
    program = lowered(match_fields, desc, desc)
    check_on_device(program)
    assert loops(program) <= 15  # rows of patches and of levels; a CPU's are 17
