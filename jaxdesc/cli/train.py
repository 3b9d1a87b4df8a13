"""python -m jaxdesc.train --config configs/pump.py[:variant]: trains a method, or goes on where the workdir stopped."""

import argparse
from pathlib import Path

from jaxdesc import cli


def flags() -> argparse.ArgumentParser:
    parser = cli.parser(
        "train",
        "Trains a method; a workdir that already holds checkpoints of the same configuration is resumed.",
        "python -m jaxdesc.train --config configs/pump.py --config.data.homography.sources=photos:MY_PHOTOS --config.train.steps=2000",
    )
    parser.add_argument("--config", required=True, metavar="NAME|FILE.py[:VARIANT]", help="configuration: pump, caps, cold, gsf, or a file; any field can be changed with --config.FIELD=VALUE")
    parser.add_argument("--workdir", metavar="DIR", help="checkpoints, metrics and pictures (default: runs/<config>-<variant>)")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="several processes: address of process 0 (Cloud TPU and Slurm find it themselves: 'auto')")
    parser.add_argument("--processes", type=int, metavar="N", help="several processes: how many")
    parser.add_argument("--process", type=int, metavar="I", help="several processes: which one this is, from 0")
    return parser


def main() -> None:
    args, unknown = flags().parse_known_args()
    overrides = cli.parse_overrides(unknown)
    import jax

    from jaxdesc import config
    from jaxdesc.training import loop

    if args.coordinator:
        if args.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(args.coordinator, args.processes, args.process)
    cli.use_compilation_cache()
    cfg = config.load(args.config, overrides)
    file, _, variant = Path(args.config).name.partition(":")
    workdir = Path(args.workdir or f"runs/{Path(file).stem}{'-' + variant if variant else ''}")
    scores = loop.run(cfg, workdir)
    if scores and jax.process_index() == 0:
        print(f"{workdir}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
