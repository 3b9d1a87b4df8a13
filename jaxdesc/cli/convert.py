"""jaxdesc convert CHECKPOINT OUT.safetensors: released PyTorch weights, or a training workdir, to one weight file."""

import argparse
from pathlib import Path

from jaxdesc import cli
from jaxdesc.errors import UserError


def flags() -> argparse.ArgumentParser:
    parser = cli.parser(
        "convert",
        "Converts released PyTorch weights, of which every tensor must be used and every parameter filled, or packs the best checkpoint of a training run.",
        "jaxdesc convert --method pump CHECKPOINT.pt pump.safetensors\n  jaxdesc convert runs/pump mine.safetensors",
    )
    parser.add_argument(
        "--method", metavar="NAME", help="whose released weights they are; a workdir knows it itself"
    )
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
        known = " or ".join(_convertible())
        raise UserError(f"--method is missing: say whose weights {args.checkpoint} holds, {known}.")
    else:
        _convert(args)


def _pack(workdir: str, out: str) -> None:
    import jax

    from jaxdesc.predict.predictor import load
    from jaxdesc.store import weights

    trained = load(workdir)
    weights.save(out, trained.name, trained.config, jax.device_get(trained.variables), notes={"source": Path(workdir).name})
    print(f"{out}: {trained.name}, {sum(leaf.size for leaf in jax.tree.leaves(trained.variables['params'])):,} parameters")


def _convertible() -> list[str]:
    """Methods whose published weights can be read."""
    from jaxdesc import methods

    return [name for name in methods.names() if methods.find(name).released]


def _convert(args: argparse.Namespace) -> None:
    from jaxdesc import methods
    from jaxdesc.store import convert, weights

    if args.method not in _convertible():
        known = ", ".join(_convertible())
        raise UserError(f"--method {args.method} must be one whose published weights can be read: {known}.")
    table = methods.find(args.method).released()
    config, variables = table.from_torch(convert.read_tensors(args.checkpoint))
    weights.save(args.out, args.method, config, variables, notes={"source": Path(args.checkpoint).name, "licence": table.licence})
    print(f"{args.out}: {args.method}, {config.backbone}, {sum(leaf.size for leaf in weights.flatten(variables['params']).values()):,} parameters")
    print(f"licence: {table.licence}")
