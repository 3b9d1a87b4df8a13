"""jaxdesc evaluate PROTOCOL --data DIR --out results/NAME: predictions into a file, the file's score into JSON, Markdown and PNG."""

import argparse
import dataclasses
import sys
from pathlib import Path

from jaxdesc import cli, evals
from jaxdesc.cli import flags, method_flags
from jaxdesc.errors import UserError
from jaxdesc.evals import published, result
from jaxdesc.evals.options import EvalOptions

EXAMPLE = """jaxdesc evaluate homography --data HPATCHES --weights runs/pump --out results/pump
  jaxdesc evaluate homography --data HPATCHES --method rootsift --out results/rootsift
  jaxdesc evaluate compare results/*"""


def parser_of(protocol: evals.Protocol) -> argparse.ArgumentParser:
    """The protocol's options, and predictions that are there already."""
    parser = cli.parser(
        f"evaluate {protocol.name}", protocol.help, f"jaxdesc evaluate {protocol.name} --data DIR --weights runs/pump --out results/pump"
    )
    flags.add(parser, protocol.Options, required=("out",))
    parser.add_argument(
        "--features", "--predictions", dest="predictions", metavar="PATH", help="predictions that are there already: nothing is predicted, only scored"
    )
    return parser


def overview() -> argparse.ArgumentParser:
    """What there is to choose from."""
    parser = cli.parser("evaluate", "Scores a method under a published protocol. Each has its own --help.", EXAMPLE)
    actions = parser.add_subparsers(dest="protocol", metavar="PROTOCOL", required=True)
    for name in evals.PROTOCOLS:
        actions.add_parser(name, help=evals.load(name).help, add_help=False)
    actions.add_parser("compare", help="results beside each other and beside published rows, one table for each protocol key")
    return parser


def options_of(protocol: evals.Protocol, args: argparse.Namespace) -> EvalOptions:
    """The protocol's options. Where a method's own flags were given, the weights say which method
    they are for.

    Raises:
      UserError: as the options.
    """
    options = flags.made(protocol.Options, args)
    if args.predictions or not method_flags.given(args):
        return options
    from jaxdesc.predict.predictor import load

    matching = method_flags.match_fields(load(options.weights), args)
    return dataclasses.replace(options, matching=matching)


def evaluate(
    protocol: evals.Protocol, options: EvalOptions, predictions: str | None
) -> list[result.Result]:
    """Predicts, unless there are predictions, scores them, writes the results and returns them.

    Raises:
      UserError: as the protocol.
    """
    out = Path(options.out)
    if out.is_file():
        raise UserError(f"--out {out} is a file; a folder is expected.")
    if predictions is None:
        cli.use_compilation_cache()
    results = evals.evaluate(protocol, options, predictions)
    for found in results:
        result.write(found, out)
    result.draw(results, out)
    write_text(out / "results.md", result.compare(results, published.of))
    return results


def write_text(path: Path, text: str) -> None:
    from jaxdesc.store.files import atomic

    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def compare(arguments: list[str]) -> None:
    """The results of several folders or files, as Markdown on stdout; with --out also as a file, with one PNG for each key that has curves, and one of scores against the
    size of descriptors where results say it."""
    from jaxdesc.evals import homography

    parser = cli.parser(
        "evaluate compare", "Results beside each other and beside published rows.", "jaxdesc evaluate compare results/* --out comparison"
    )
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULT",
        help="folders that evaluate wrote, single result files (.json), or MMA as D2-Net's and R2D2's notebooks keep it (.npy)",
    )
    parser.add_argument("--out", metavar="DIR", help="write compare.md and the curves there too")
    parser.add_argument("--protocol", metavar="KEY", help="only results of this key, such as mma/d2; a single file must be one")
    args = parser.parse_args(arguments)
    found = []
    for path in map(Path, args.results):
        if path.is_dir():
            mine = [result.read(file) for file in sorted(path.glob("*.json")) if not file.name.endswith((".h5.json", "jaxdesc.json"))]
            if not mine:
                print(f"jaxdesc: {path} holds no result and is passed over.", file=sys.stderr)
            found += [r for r in mine if args.protocol in (None, r.protocol)]
        elif path.suffix == ".npy":
            found.append(homography.cached(path))
        else:
            found.append(result.read(path, args.protocol))
    if not found:
        raise UserError("There is no result" + (f" of {args.protocol!r}" if args.protocol else "") + f" in {', '.join(args.results)}: evaluate first.")
    text = result.compare(found, published.of)
    if args.out:
        write_text(Path(args.out, "compare.md"), text)
        result.draw(found, args.out)
        result.draw_sizes(found, args.out, published.BYTES, published.of)
    print(text)


def main() -> None:
    chosen = sys.argv[1] if len(sys.argv) > 1 else ""
    if chosen == "compare":
        return compare(sys.argv[2:])
    if chosen not in evals.PROTOCOLS:
        overview().parse_args()
    protocol = evals.load(chosen)
    parse = method_flags.parse if protocol.matches else argparse.ArgumentParser.parse_args
    args = parse(parser_of(protocol), sys.argv[2:])
    options = options_of(protocol, args)
    print(result.compare(evaluate(protocol, options, args.predictions)))
    print(f"{options.out}/results.md has these rows beside published ones.")
