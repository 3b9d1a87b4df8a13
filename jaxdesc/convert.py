"""python -m jaxdesc.convert CHECKPOINT OUT.safetensors: released PyTorch weights, or a training workdir, to one weight file."""

import argparse
from importlib import import_module
from pathlib import Path

from jaxdesc import cli
from jaxdesc.errors import UserError

METHODS = ("pump", "caps")


def flags() -> argparse.ArgumentParser:
    parser = cli.parser(
        "convert",
        "Converts released PyTorch weights, of which every tensor must be used and every parameter filled, or packs the best checkpoint of a training run.",
        "python -m jaxdesc.convert --method pump CHECKPOINT.pt pump.safetensors\n  python -m jaxdesc.convert runs/pump mine.safetensors",
    )
    parser.add_argument("--method", choices=METHODS, help="whose released weights they are; a workdir knows it itself")
    parser.add_argument("checkpoint", help=".pt or .pth (needs PyTorch installed) or .safetensors; or the workdir of a training run")
    parser.add_argument("out", help="weight file to write (.safetensors)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return parser


def main() -> None:
    args = flags().parse_args()
    from jaxdesc.store.files import refuse_existing

    if Path(args.out).suffix != ".safetensors":
        raise UserError(f"OUT must end in .safetensors, which {args.out} does not.")
    refuse_existing(args.out, args.overwrite)
    if Path(args.checkpoint).is_dir():
        _pack(args.checkpoint, args.out)
    elif args.method is None:
        raise UserError(f"--method is missing: say whose weights {args.checkpoint} holds, {' or '.join(METHODS)}.")
    else:
        _convert(args)


def _pack(workdir: str, out: str) -> None:
    import jax

    from jaxdesc.predictor import load
    from jaxdesc.store import weights

    trained = load(workdir)
    weights.save(out, trained.name, trained.config, jax.device_get(trained.variables), notes={"source": Path(workdir).name})
    print(f"{out}: {trained.name}, {sum(leaf.size for leaf in jax.tree.leaves(trained.variables['params'])):,} parameters")


def _convert(args: argparse.Namespace) -> None:
    from jaxdesc.store import convert, weights

    table = import_module(f"jaxdesc.methods.{args.method}.weights")
    config, variables = table.from_torch(convert.read_tensors(args.checkpoint))
    weights.save(args.out, args.method, config, variables, notes={"source": Path(args.checkpoint).name, "licence": table.LICENCE})
    print(f"{args.out}: {args.method}, {config.backbone}, {sum(leaf.size for leaf in weights.flatten(variables['params']).values()):,} parameters")
    print(f"licence: {table.LICENCE}")


if __name__ == "__main__":
    cli.run(main)
