"""Time and memory of PUMP's losses and of its matching pyramid, each beside its floor."""

import argparse
from functools import partial

import jax
import jax.numpy as jnp

from jaxdesc.errors import UserError
from jaxdesc.methods.pump.average_precision import average_precision_loss, pixel_ap
from jaxdesc.methods.pump.single import MatchOptions, fields, predict_bytes
from jaxdesc.methods.pump.uniqueness import uniqueness_loss
from jaxdesc.ops.normalise import l2_normalise
from jaxdesc.timing import GIGA, compiled, heading, resident_bytes, row, seconds


def losses(args: argparse.Namespace) -> None:
    """L_uniq and L_AP on random unit descriptors, beside the bare matrix products of L_uniq's level 0 and of L_AP's scores."""
    b, n, d = args.batch, args.size, args.dim
    keys = jax.random.split(jax.random.key(0), 2)
    maps = tuple(l2_normalise(jax.random.normal(k, (b * n * n * d,)).reshape(b, n, n, d)) for k in keys)
    side = -(-(n - 32) // 2)
    patches, pixels = (len(range(2, side, 4))) ** 2, side**2
    p, q = jnp.ones((patches, d)), jnp.ones((pixels, d))
    run = partial(seconds, repeat=args.repeat)

    def forward(p, q):
        return jnp.einsum("pd,qd->pq", p, q)

    correlation = jax.jit(forward)(p, q)
    floor_value = 2 * b * run(jax.jit(forward), p, q)
    backward = run(jax.jit(lambda c, q: c @ q), correlation, q) + run(jax.jit(lambda c, p: c.T @ p), correlation, p)
    floor_gradient = floor_value + 2 * b * backward

    heading()
    flop = 2 * b * 2 * patches * pixels * d / GIGA

    def uniq(desc1, desc2):
        return jax.lax.map(lambda pair: uniqueness_loss(*pair), (desc1, desc2)).mean()

    def ap(desc1, desc2):
        example_keys = jax.random.split(jax.random.key(1), b)
        H = jnp.tile(jnp.eye(3), (b, 1, 1))
        return average_precision_loss(*pixel_ap(desc1, desc2, H, example_keys)).mean()

    queries = (n - 32) ** 2 // 64
    scores = jax.jit(lambda q, x: q @ x.T)
    ap_floor = b * run(scores, jnp.ones((queries, d)), jnp.ones((b * queries, d)))
    for name, loss, floors in (
        (
            f"L_uniq, both directions, {b} x {n} x {n} x {d}",
            uniq,
            ((floor_value, f"{flop:.1f} GFLOP of level 0"), (floor_gradient, f"{3 * flop:.1f} GFLOP of level 0")),
        ),
        (f"L_AP, {b} x {n} x {n} x {d}", ap, ((ap_floor, "distractors' scores"), (3 * ap_floor, "distractors' scores, three times"))),
    ):
        for what, function, (floor, words) in zip(("value", "value and both gradients"), (loss, jax.value_and_grad(loss, argnums=(0, 1))), floors, strict=True):
            program, memory = compiled(function, *maps)
            row(f"{name}: {what}" if what == "value" else f"  {what}", run(program, *maps), floor, words, memory)


def match(args: argparse.Namespace) -> None:
    """The matching pyramid at one scale, on random descriptors: beside the bare product of level 0, and beside what is predicted to be needed of memory."""
    options = MatchOptions(storage=args.storage)
    heading()
    for size in args.sizes:
        try:
            w, h = map(int, size.split("x"))
        except ValueError as e:
            raise UserError(f"--sizes {size} is no size: write it as 320x240.") from e
        desc1, desc2 = (l2_normalise(jax.random.normal(key, (h * w * args.dim,)).reshape(h, w, args.dim)) for key in jax.random.split(jax.random.key(0)))
        run = jax.jit(lambda a, b, hw=(h, w): fields(a, b, options, hw, hw))
        program, memory = compiled(run, desc1, desc2)
        before = resident_bytes()
        time_s = seconds(program, desc1, desc2, repeat=1)
        measured = before and resident_bytes(peak=True) - before + desc1.nbytes + desc2.nbytes
        rows = min(640, h * w // 16)
        patches, pixels = jnp.ones((rows, args.dim)), jnp.ones((args.dim, h * w))
        floor_s = seconds(jax.jit(jnp.matmul), patches, pixels, repeat=3) * (h * w / 16) / rows
        flop = 2 * (h * w) ** 2 / 16 * args.dim
        row(f"match, 2 x {size} x {args.dim}, {args.storage}", time_s, floor_s, f"{flop / GIGA:.0f} GFLOP of level 0", memory)
        whole = 1.333 * 2 * (h * w) ** 2 / 16
        words = f"predicted {predict_bytes((h, w), (h, w), args.dim, options) / 2**20:.0f} MiB"
        if measured:
            words += f", the process took {measured / 2**20:.0f} MiB"
        print(f"  memory with the descriptors: {words}; the whole pyramid in half precision would be {whole / 2**20:.0f} MiB", flush=True)
