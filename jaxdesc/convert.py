"""python -m jaxdesc.convert --method pump CHECKPOINT.pt OUT.safetensors: released PyTorch weights to ours."""

import argparse
from importlib import import_module
from pathlib import Path

from jaxdesc import cli
from jaxdesc.errors import UserError

METHODS = ("pump", "caps")


def flags() -> argparse.ArgumentParser:
    parser = cli.parser(
        "convert",
        "Converts released PyTorch weights. Every tensor must be used and every parameter filled, or nothing is written.",
        "python -m jaxdesc.convert --method pump CHECKPOINT.pt pump.safetensors",
    )
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("checkpoint", help=".pt or .pth (needs PyTorch installed) or .safetensors")
    parser.add_argument("out", help="weight file to write (.safetensors)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return parser


def main() -> None:
    args = flags().parse_args()
    from jaxdesc.store import convert, weights
    from jaxdesc.store.files import refuse_existing

    if Path(args.out).suffix != ".safetensors":
        raise UserError(f"OUT must end in .safetensors, which {args.out} does not.")
    refuse_existing(args.out, args.overwrite)
    table = import_module(f"jaxdesc.methods.{args.method}.weights")
    config, variables = table.from_torch(convert.read_tensors(args.checkpoint))
    weights.save(args.out, args.method, config, variables, notes={"source": Path(args.checkpoint).name, "licence": table.LICENCE})
    print(f"{args.out}: {args.method}, {config.backbone}, {sum(leaf.size for leaf in weights.flatten(variables['params']).values()):,} parameters")
    print(f"licence: {table.LICENCE}")


if __name__ == "__main__":
    cli.run(main)
