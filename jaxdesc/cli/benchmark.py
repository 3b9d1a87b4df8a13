"""jaxdesc benchmark step|data|keypoints|losses|match: time and memory of the hot paths, each beside its floor, measured in the same run."""

import argparse
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from itertools import islice

from jaxdesc import cli
from jaxdesc.errors import UserError
from jaxdesc.timing import GIGA, cpu_seconds, heading, resident_bytes, row, seconds

PATHLESS = ("embedded", "rendered")  # sources that need no folder


def flags() -> argparse.ArgumentParser:
    parser = cli.parser(
        "benchmark",
        "Times the losses, the matching pyramid, the training step, the input pipeline or the detectors of keypoints and prints each with its floor and the ratio to it.",
        "jaxdesc benchmark losses --size 256 --batch 2\n  jaxdesc benchmark step --config configs/caps.py:paper --config.train.accumulate=6",
    )
    parser.add_argument("what", help="step, data, keypoints; or what a method times of itself: losses, match (pump)")
    parser.add_argument(
        "--config",
        default="pump",
        metavar="NAME|FILE.py[:VARIANT]",
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


def configuration(args: argparse.Namespace):
    """The configuration asked for."""
    from jaxdesc import config

    return config.load(args.config, args.overrides)


def with_data(data):
    """The pairs of a configuration or of a stage, with embedded data in place of sources that
    still lack their folder, as those of published recipes do: arrays have the same shapes
    whatever they show."""
    from jaxdesc.config import Source

    found = {}
    for name, kind in data.kinds().items():
        lacking = [s.kind for s in kind.sources if not s.path and s.kind not in PATHLESS]
        if lacking:
            print(f"config.data.{name}.sources names no folder for {', '.join(lacking)}: embedded data stands in.")
            found[name] = dataclasses.replace(kind, sources=(Source(),))
    return dataclasses.replace(data, **found)


def step(args: argparse.Namespace) -> None:
    """One update of each stage of a configuration on one device: drawing, network, losses, optimiser; the floor is FLOPs over a measured peak."""
    import jax
    import jax.numpy as jnp


    cfg, side = configuration(args), 2048
    peak = 2 * side**3 / seconds(jax.jit(lambda x: x @ x), jnp.ones((side, side)), repeat=5)
    heading()
    for stage in cfg.method.plan(cfg):
        if stage.name:
            print(f"stage {stage.name}")
        step_of(stage, cfg, args, peak)


def step_of(stage, cfg, args: argparse.Namespace, peak: float) -> None:
    """One stage's row and what it is made of; `peak`: FLOPs in a second."""
    import jax
    import jax.numpy as jnp

    from jaxdesc import methods
    from jaxdesc.data.draw import draw_batch
    from jaxdesc.data.pipeline import open_data
    from jaxdesc.training import loop
    from jaxdesc.training.optim import make_optimizer
    from jaxdesc.training.step import AXIS, init_state, train_step

    pairs_of = with_data(stage.data)
    raw = next(open_data(pairs_of, cfg.train.seed).batches(0))
    method, optimizer = methods.find(cfg.method.name).build(cfg.method, axis_name=AXIS, **stage.options), make_optimizer(cfg.optim, stage.steps, stage.rates)
    draw, accumulate = partial(draw_batch, data=pairs_of, cfg=cfg.draw), cfg.train.accumulate
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
    opened = open_data(with_data(cfg.data), cfg.train.seed)
    batches = opened.batches(0)
    next(batches)
    count = max(20, 10 * args.repeat)
    start = time.perf_counter()
    for _ in islice(batches, count):
        pass
    rate = count / (time.perf_counter() - start)
    pairs = sum(cfg.data.pairs_per_batch().values())
    images = sum(kind.per_batch * kind.photographs for kind in cfg.data.kinds().values())
    print(
        f"{rate:.1f} batches/s, {rate * images:.0f} images/s, {rate * pairs:.0f} pairs/s with {cfg.data.threads} threads; canvases of {cfg.data.canvas_px} px"
    )
    print("compare pairs/s with what `benchmark step` prints: the pipeline should be several times faster")


def keypoints(args: argparse.Namespace) -> None:
    """CPU time of the detectors on a photograph of 800 x 640 px, beside SIFT's."""
    import skimage.data

    from jaxdesc.images import resize
    from jaxdesc.matching.keypoints import find

    image = resize(skimage.data.astronaut(), (640, 800))
    print("2,000 keypoints of 800x640 px, CPU time of all threads, median")
    sift_s = None
    for name in ("sift", "hessian", "hessian:1.2,1.7,2.4,3.4"):
        detect = find(name).detect
        time_s = cpu_seconds(lambda detect=detect: detect(image, 2000), args.repeat)
        sift_s = sift_s or time_s
        print(f"{name:44s} {1e3 * time_s:8.1f} ms  {time_s / sift_s:6.2f} x  sift", flush=True)


def of_methods() -> dict[str, Callable[[argparse.Namespace], None]]:
    """What the methods time of themselves, by name."""
    from jaxdesc import methods

    given = [definition.benchmarks for definition in map(methods.find, methods.names())]
    return {name: time for each in given if each for name, time in each().items()}


def main() -> None:
    args, unknown = flags().parse_known_args()
    args.overrides = cli.parse_overrides(unknown)
    if args.overrides and args.what not in ("step", "data"):
        raise UserError(f"--config.{next(iter(args.overrides))} is for step and data: {args.what} reads no configuration.")
    known = {"step": step, "data": data, "keypoints": keypoints, **of_methods()}
    if args.what not in known:
        raise UserError(f"There is no benchmark {args.what!r}; there are {', '.join(known)}.")
    cli.use_compilation_cache()
    known[args.what](args)
