"""python -m jaxdesc.benchmark losses|match|step|data: time and memory of the hot paths, each beside its floor, measured in the same run."""

import argparse
import ctypes
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

from jaxdesc import cli
from jaxdesc.errors import UserError

GIGA = 1e9


def flags() -> argparse.ArgumentParser:
    parser = cli.parser(
        "benchmark",
        "Times the losses, the matching pyramid, the training step or the input pipeline and prints each with its floor and the ratio to it.",
        "python -m jaxdesc.benchmark losses --size 256 --batch 2\n  python -m jaxdesc.benchmark step --config configs/caps.py:paper --config.train.accumulate=6",
    )
    parser.add_argument("what", choices=("losses", "match", "step", "data"))
    parser.add_argument(
        "--config",
        default="configs/pump.py",
        metavar="FILE.py[:VARIANT]",
        help="step, data: configuration (default: %(default)s); any field can be changed with --config.FIELD=VALUE",
    )
    parser.add_argument("--batch", type=int, default=2, help="losses: pairs (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="losses: side of the descriptor maps (default: %(default)s)")
    parser.add_argument("--sizes", nargs="+", default=["320x240", "480x360"], metavar="WxH", help="match: of both images (default: 320x240 480x360)")
    parser.add_argument("--storage", default="float16", choices=("float16", "float32"), help="match: of the pyramid (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=128, help="losses, match: length of the descriptors (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions after a first one, of which the median counts (default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="step: time a single update, the first, where one takes minutes")
    return parser


def seconds(function: Callable, *arguments, repeat: int, warm: bool = True) -> float:
    """Median wall time of a compiled function, after one call that warms up unless `warm` is False."""
    import jax

    if warm:
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return sorted(times)[repeat // 2]


def compiled(function: Callable, *arguments):
    """(compiled function, peak bytes of its temporaries and results)."""
    import jax

    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis()
    return program, memory.temp_size_in_bytes + memory.output_size_in_bytes


def row(name: str, time_s: float, floor_s: float | None, floor: str = "", memory: int | None = None) -> None:
    ratio = f"{floor_s:8.3f} s  {time_s / floor_s:6.2f} x  {floor}" if floor_s else ""
    print(f"{name:44s} {time_s:8.3f} s  {f'{memory / 2**20:7.0f} MiB' if memory is not None else '':>11s}  {ratio}", flush=True)


def heading() -> None:
    import jax

    device = jax.devices()[0]
    print(f"{device.device_kind} x {jax.local_device_count()}, jax {jax.__version__}")
    print(f"{'':44s} {'time':>10s}  {'memory':>11s}  {'floor':>10s}  {'ratio':>8s}")


def losses(args: argparse.Namespace) -> None:
    """L_uniq and L_AP on random unit descriptors, beside the bare matrix products of L_uniq's level 0 and of L_AP's scores."""
    import jax
    import jax.numpy as jnp

    from jaxdesc.ops.losses import average_precision_loss, pixel_ap, uniqueness_loss
    from jaxdesc.ops.normalise import l2_normalise

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
    import jax
    import jax.numpy as jnp

    from jaxdesc.methods.pump.single import MatchOptions, fields, predict_bytes
    from jaxdesc.ops.normalise import l2_normalise

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


def resident_bytes(peak: bool = False) -> int:
    """Of this process: now, after all that is free was given back, or at most since that was asked (Linux with glibc; elsewhere 0)."""
    try:
        if not peak:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:" if peak else "VmRSS:"))
    except (OSError, AttributeError):
        return 0


def configuration(args: argparse.Namespace):
    """The configuration asked for, with embedded data in place of sources that still lack their folder, as those of published recipes do: arrays have the same
    shapes whatever they show."""
    from jaxdesc import config

    cfg = config.load(args.config, args.overrides)
    lacking = {}
    for part in ("synthetic", "real", "posed", "semantic"):
        empty = [source.kind for source in getattr(cfg.data, part) if not source.path and source.kind not in ("embedded", "rendered")]
        if empty:
            print(f"config.data.{part} names no folder for {', '.join(empty)}: embedded data stands in.")
            lacking[part] = (config.Source(),)
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, **lacking))


def step(args: argparse.Namespace) -> None:
    """One update of each stage of a configuration on one device: drawing, network, losses, optimiser; the floor is FLOPs over a measured peak."""
    import jax
    import jax.numpy as jnp

    from jaxdesc import config

    cfg, side = configuration(args), 2048
    peak = 2 * side**3 / seconds(jax.jit(lambda x: x @ x), jnp.ones((side, side)), repeat=5)
    heading()
    for stage in config.plan(cfg):
        if stage.name:
            print(f"stage {stage.name}")
        step_of(stage, cfg, args, peak)


def step_of(stage, cfg, args: argparse.Namespace, peak: float) -> None:
    """One stage's row and what it is made of; `peak`: FLOPs in a second."""
    import jax
    import jax.numpy as jnp

    from jaxdesc import loop
    from jaxdesc.data.draw import draw_batch
    from jaxdesc.data.pipeline import open_data
    from jaxdesc.engine.optim import make_optimizer
    from jaxdesc.engine.step import AXIS, init_state, train_step
    from jaxdesc.methods import METHODS

    raw = next(open_data(stage.data, cfg.train.seed).batches(0))
    method, optimizer = METHODS[cfg.method.name](cfg.method, axis_name=AXIS, **stage.options), make_optimizer(cfg.optim, stage.steps, stage.rates)
    draw, accumulate = partial(draw_batch, cfg=cfg.draw), cfg.train.accumulate
    drawing = jax.jit(draw)
    batch = drawing(jax.random.key(0), raw)
    state = jax.jit(partial(init_state, method, optimizer, seed=0))(batch)
    update = partial(train_step, method=method, optimizer=optimizer, draw=draw, seed=0, accumulate=accumulate)
    devices = jax.local_devices()[:1]
    stacked_raw = jax.tree.map(lambda x: x[None], raw)

    images = jnp.concatenate([image for pair in batch.values() for image in (pair.image1, pair.image2)])
    pairs, (height, width) = len(images) // 2, images.shape[1:3]
    images = images[: 2 * pairs // accumulate]  # as many as are worked through at once
    variables = {"params": state.params, **state.model_state}
    forward = jax.jit(method.describe).lower(variables, images).compile()
    flop = 3 * accumulate * forward.cost_analysis()["flops"]
    draw_s = seconds(drawing, jax.random.key(0), raw, repeat=args.repeat)
    forward_s = accumulate * seconds(forward, variables, images, repeat=1 if args.cold else args.repeat, warm=not args.cold)
    run_state = loop.replicate(state, devices)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    one = loop.parallel(update, devices).lower(run_state, stacked_raw).compile()
    temporaries = one.memory_analysis().temp_size_in_bytes
    batch = state = variables = images = None  # so that what the step takes can be seen
    before = resident_bytes()

    def run():  # the state is given up by each step, so it goes from step to step
        nonlocal run_state
        run_state, metrics = one(run_state, stacked_raw)
        return metrics

    time_s = seconds(run, repeat=1 if args.cold else args.repeat, warm=not args.cold)
    taken = before and resident_bytes(peak=True) - before
    parts = f", in {accumulate} parts" if accumulate > 1 else ""
    floor = f"{flop / GIGA:.0f} GFLOP of the network at {peak / GIGA:.0f} GFLOP/s"
    row(f"step, {pairs} pairs of {width}x{height} px{parts}", time_s, flop / peak, floor, temporaries)
    row("  of which drawing the pairs", draw_s, None)
    row("  of which the network, forward", forward_s, flop / 3 / peak, "a third of the above")
    print(f"  memory: {temporaries / 2**20:.0f} MiB of temporaries are planned" + (f", the process grew by {taken / 2**20:.0f} MiB" if taken else ""))
    print(f"{pairs / time_s:.3g} pairs/s, {2 * pairs / time_s:.3g} images/s; {parameters:,} parameters")


def data(args: argparse.Namespace) -> None:
    """The input pipeline alone: photographs decoded and put on canvases, per second."""
    from jaxdesc.data.pipeline import open_data

    cfg = configuration(args)
    opened = open_data(cfg.data, cfg.train.seed)
    batches = opened.batches(0)
    next(batches)
    count = max(20, 10 * args.repeat)
    start = time.perf_counter()
    for _ in islice(batches, count):
        pass
    rate = count / (time.perf_counter() - start)
    twice = cfg.data.real_per_batch + cfg.data.posed_per_batch + cfg.data.semantic_per_batch
    images, pairs = cfg.data.synthetic_per_batch + 2 * twice, cfg.data.synthetic_per_batch + twice
    print(
        f"{rate:.1f} batches/s, {rate * images:.0f} images/s, {rate * pairs:.0f} pairs/s with {cfg.data.threads} threads; canvases of {cfg.data.canvas_px} px"
    )
    print("compare pairs/s with what `benchmark step` prints: the pipeline should be several times faster")


def main() -> None:
    args, unknown = flags().parse_known_args()
    args.overrides = cli.parse_overrides(unknown)
    if args.overrides and args.what not in ("step", "data"):
        raise UserError(f"--config.{next(iter(args.overrides))} is for step and data: {args.what} reads no configuration.")
    cli.use_compilation_cache()
    {"losses": losses, "match": match, "step": step, "data": data}[args.what](args)


if __name__ == "__main__":
    cli.run(main)
