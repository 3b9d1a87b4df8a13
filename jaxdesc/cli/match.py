"""jaxdesc match A.jpg B.jpg | FOLDER: quasi-dense matches of two images, or of the pairs of a folder."""

import argparse
from pathlib import Path

from jaxdesc import cli
from jaxdesc.cli import method_flags
from jaxdesc.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def flags() -> argparse.ArgumentParser:
    parser = cli.parser(
        "match",
        "Matches two images, or all pairs of the images in a folder (or those of a list); a folder's interrupted run goes on when it is started again.",
        "jaxdesc match A.jpg B.jpg --out m.npz --figure m.png\n  jaxdesc match FOLDER --pairs pairs.txt --out matches.h5\n"
        "  jaxdesc match FOLDER --keypoints --max-rot 180 --out matches.h5",
    )
    parser.add_argument("inputs", nargs="+", metavar="IMAGE", help="two images, or one folder")
    told = "weight file or training workdir (default: pump's, which come with the package)"
    parser.add_argument("--weights", metavar="W", help=told)
    parser.add_argument("--max-side", type=int, metavar="PX", help="shrink larger images to this before matching; positions stay those of the files")
    parser.add_argument("--out", metavar="FILE", help="two images: .npz with `corres` (x1, y1, x2, y2, score, code); a folder: .h5, as hloc reads it")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    two = parser.add_argument_group("two images")
    two.add_argument("--figure", metavar="FILE.png", help="the images side by side, with lines")
    two.add_argument("--random", type=int, metavar="N", help="--figure: N matches drawn at random (the papers' figures: 50), not 80 from best to worst")
    two.add_argument("--dense", metavar="FILE.flo", help="a position in image 2 for every pixel of image 1, as optical flow")
    two.add_argument("--warp", metavar="FILE.png", help="image 2 as image 1 sees it")
    two.add_argument("--alignment", metavar="FILE.png", help="image 1, image 2 and image 1 as image 2 sees it, above the matches; of both directions")
    two.add_argument("--colours", metavar="FILE.png", help="matches at the nodes of a grid of image 1, as dots that have one colour in both images")
    two.add_argument("--grid", type=float, default=50.0, metavar="PX", help="spacing of --colours (default: 50)")
    two.add_argument(
        "--points",
        metavar="FILE.txt",
        help="match these pixels of image 1, x y a line, and nothing else, where the method can",
    )
    two.add_argument(
        "--heatmaps",
        metavar="FILE.png",
        help="where --query may be in image 2, as the method sees it, where it can show that",
    )
    query = {"type": float, "nargs": 2, "action": "append", "metavar": ("X", "Y")}
    two.add_argument("--query", **query, help="pixel of image 1 for --heatmaps; may be repeated")
    two.add_argument(
        "--truth", **query, help="where it is in image 2, if that is known; one for each --query"
    )
    folder = parser.add_argument_group("a folder")
    folder.add_argument("--pairs", metavar="FILE.txt", help="two image names a line, relative to the folder (default: every pair)")
    folder.add_argument("--features", metavar="FILE.h5", help="keypoints that the pairs share (default: OUT with _features before its suffix)")
    folder.add_argument(
        "--keypoints",
        nargs="?",
        const=cli.DETECTOR,
        metavar=cli.KEYPOINTS,
        help="match keypoints by their descriptors, in the scale and rotation in which most "
        f"agree: {cli.KEYPOINTS_TOLD} (nothing named: {cli.DETECTOR})",
    )
    folder.add_argument("--max-keypoints", type=int, default=2000, metavar="N", help="--keypoints: the best-scored of an image (default: 2000)")
    folder.add_argument("--cell", type=float, default=4.0, metavar="PX", help="one keypoint in a square of this side (default: 4)")
    folder.add_argument("--max-error", type=float, default=4.0, metavar="PX", help="that joining a match's end to a keypoint may cost (default: 4)")
    return parser


def main() -> None:
    args = method_flags.parse(flags())
    inputs = [Path(path) for path in args.inputs]
    if args.max_side is not None and args.max_side < 32:
        raise UserError(f"--max-side {args.max_side} must be at least 32.")
    if len(inputs) == 1 and inputs[0].is_file():
        raise UserError(f"{inputs[0]} is one image: name another one to match it with, or a folder.")
    if len(inputs) == 1:
        _main_folder(args, inputs[0])
    elif len(inputs) == 2:
        _main_pair(args, inputs)
    else:
        raise UserError(f"Two images or one folder are expected, {len(inputs)} names are given: put the images into a folder.")


def _main_pair(args, inputs: list[Path]) -> None:
    from jaxdesc.store.files import refuse_existing

    if args.pairs or args.features or args.keypoints:
        raise UserError("--pairs, --features and --keypoints are for a folder of images.")
    if (args.heatmaps is None) != (args.query is None):
        raise UserError("--heatmaps FILE.png and --query X Y need each other.")
    if args.truth and len(args.truth) != len(args.query or ()):
        raise UserError(f"--truth is given {len(args.truth)} times and --query {len(args.query or ())} times: each query needs its own, or none has one.")
    if args.random is not None and (args.random < 1 or not args.figure):
        raise UserError(f"--random {args.random} needs --figure FILE.png, and must be at least 1.")
    if not args.grid > 0:
        raise UserError(f"--grid {args.grid:g} must be above 0.")
    for path in inputs:
        if not path.is_file():
            raise UserError(f"{path} is a folder; two images or one folder are expected." if path.is_dir() else f"There is no image {path}.")
    out = {name: Path(path) for name in ("out", "figure", "dense", "warp", "alignment", "colours", "heatmaps") if (path := getattr(args, name))}
    for name, path in out.items():
        suffixes = {"out": (".npz",), "dense": (".flo",)}.get(name, PICTURES)
        if path.suffix.lower() not in suffixes:
            raise UserError(f"--{name} {path} must end in {' or '.join(suffixes)}.")
        refuse_existing(path, args.overwrite)
    cli.use_compilation_cache()
    from jaxdesc.predict.pair import match_pair, read_points
    from jaxdesc.predict.predictor import load

    points = read_points(Path(args.points)) if args.points else None
    predictor = load(args.weights)
    options = method_flags.match_options(predictor, args)
    found = match_pair(predictor, inputs, options, args.max_side, out, args.query, args.truth, args.grid, args.random, points)
    print(f"{found} matches of {inputs[0]} and {inputs[1]}" + "".join(f"\n{path}" for path in out.values()))


def _main_folder(args, folder: Path) -> None:
    if not args.out or args.figure or args.dense or args.warp or args.alignment or args.colours or args.heatmaps or args.points:
        raise UserError("A folder needs --out FILE.h5; --figure, --dense, --warp, --alignment, --colours, --heatmaps and --points are for two images.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    if not (args.cell > 0 and args.max_error > 0):
        raise UserError(f"--cell {args.cell:g} and --max-error {args.max_error:g} must be above 0.")
    if args.keypoints and args.max_side:
        raise UserError("--keypoints are described in the images as they are: leave --max-side out.")
    if args.max_keypoints < 1:
        raise UserError(f"--max-keypoints {args.max_keypoints} must be at least 1.")
    out = Path(args.out)
    features = Path(args.features or out.with_name(f"{out.stem}_features{out.suffix}"))
    for path in (out, features):
        if path.suffix != ".h5":
            raise UserError(f"{path} must end in .h5.")
    cli.use_compilation_cache()
    from jaxdesc.predict.folder import Dense, Sparse, match_folder
    from jaxdesc.predict.predictor import load, tell

    predictor = load(args.weights)
    pairs = Path(args.pairs) if args.pairs else None
    how = Sparse(args.keypoints, args.max_keypoints) if args.keypoints else Dense(args.max_side, args.cell, args.max_error)
    result = match_folder(predictor, folder, out, features, method_flags.match_options(predictor, args), how, pairs, args.overwrite)
    for what, count in result["dropped"].items():
        if count:
            tell(f"{count} pairs of {args.pairs} dropped: {what}.")
    for name, why in result["unreadable"].items():
        tell(f"skipped with its pairs: {name}: {why}.")
    print(f"{result['pairs']} pairs matched, {result['skipped']} were there already; {result['keypoints']:.0f} keypoints per image\n{out}\n{features}")
