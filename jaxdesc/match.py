"""python -m jaxdesc.match A.jpg B.jpg | FOLDER: quasi-dense matches of two images, or of the pairs of a folder."""

import argparse
import dataclasses
import functools
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxdesc import cli
from jaxdesc.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def flags() -> argparse.ArgumentParser:
    parser = cli.parser(
        "match",
        "Matches two images, or all pairs of the images in a folder (or those of a list); a folder's interrupted run goes on when it is started again.",
        "python -m jaxdesc.match A.jpg B.jpg --out m.npz --figure m.png\n  python -m jaxdesc.match FOLDER --pairs pairs.txt --out matches.h5",
    )
    parser.add_argument("inputs", nargs="+", metavar="IMAGE", help="two images, or one folder")
    parser.add_argument("--weights", metavar="W", help="weight file, training workdir or method's name (default: pump)")
    parser.add_argument("--max-scale", type=float, metavar="S", help="pump: change of scale that is searched, 1/S to S (default: 4)")
    parser.add_argument("--max-rot", type=float, metavar="DEG", help="pump: rotation that is searched, within +-DEG (default: 0; 180 for all)")
    parser.add_argument("--confident", action="store_true", help="gsf: only cells with a match that the pruning network keeps")
    parser.add_argument("--max-side", type=int, metavar="PX", help="shrink larger images to this before matching; positions stay those of the files")
    parser.add_argument("--memory", type=float, metavar="GIB", help="pump: that matching may take (default: what is free)")
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
    two.add_argument("--one-way", action="store_true", help="caps, cold: the nearest neighbour of every place, not only those that choose each other")
    two.add_argument("--points", metavar="FILE.txt", help="caps: match these pixels of image 1, x y a line, and nothing else")
    two.add_argument("--search", default="local", choices=("local", "global"), help="caps: where --points look finely: around the coarse match, or everywhere")
    two.add_argument(
        "--heatmaps", metavar="FILE.png", help="where --query may be in image 2; pump: level by level, caps: by the coarse and the fine descriptors"
    )
    two.add_argument("--query", type=float, nargs=2, action="append", metavar=("X", "Y"), help="pixel of image 1 for --heatmaps; caps: may be repeated")
    two.add_argument(
        "--truth", type=float, nargs=2, action="append", metavar=("X", "Y"), help="caps: where it is in image 2, if that is known; one for each --query"
    )
    folder = parser.add_argument_group("a folder")
    folder.add_argument("--pairs", metavar="FILE.txt", help="two image names a line, relative to the folder (default: every pair)")
    folder.add_argument("--features", metavar="FILE.h5", help="keypoints that the pairs share (default: OUT with _features before its suffix)")
    folder.add_argument("--cell", type=float, default=4.0, metavar="PX", help="one keypoint in a square of this side (default: 4)")
    folder.add_argument("--max-error", type=float, default=4.0, metavar="PX", help="that joining a match's end to a keypoint may cost (default: 4)")
    return parser


def heat_maps(predictor, image1, image2, max_side: int | None, queries: list[list[float]], truth: list[list[float]] | None):
    """The picture of where pixels of image 1 may be in image 2, as the method sees it: with the distributions of its `infer`, or the levels of its `heatmaps`.

    Args:
      image1, image2: (H, W, 3), shown as `max_side` leaves them. queries, truth: (x, y) of each point in image 1, and in image 2 where that is known; pixels of
        the images as given.
    Raises:
      UserError: a method without either; a query outside image 1; several queries, or a truth, for a method that shows levels.
    """
    import numpy as np

    from jaxdesc import figures
    from jaxdesc.data.images import fitted_hw, rescale_xy
    from jaxdesc.predictor import resized

    module, given = predictor.module, (image1.shape[:2], image2.shape[:2])
    image1, image2 = (resized(image, fitted_hw(hw, max_side)) for image, hw in zip((image1, image2), given, strict=True))
    xy1 = within(queries, given[0], image1.shape[:2])
    xy2 = None if truth is None else rescale_xy(np.array(truth), given[1], image2.shape[:2])
    if hasattr(module.infer, "distributions"):
        net = module.network.build(predictor.config)
        found = module.infer.distributions(predictor.variables, image1, image2, xy1, net=net, cfg=predictor.config)
        return figures.distributions(image1, image2, xy1, xy2, found)
    if find_spec(f"{module.__name__}.heatmaps") is None:
        raise UserError(f"--heatmaps shows what the correlations of pump and caps look like, which {predictor.name} does not have: leave it out.")
    if len(queries) > 1 or truth is not None:
        raise UserError(f"--heatmaps of {predictor.name} shows one --query and no --truth.")
    levels = import_module(f"{module.__name__}.heatmaps").query_maps(predictor.describe(image1), predictor.describe(image2), tuple(xy1[0]))
    return figures.heat_maps(image1, image2, levels)


def match_points(predictor, image1, image2, max_side: int | None, xy1, search: str):
    """Matches of given points (N, 2) of image 1, in their order, by the `query` of the method's `infer`.

    Raises:
      UserError: a method without one; a point outside image 1.
    """
    import numpy as np

    from jaxdesc.data.images import fitted_hw, rescale_xy
    from jaxdesc.predictor import Matches, resized

    infer, given = predictor.module.infer, (image1.shape[:2], image2.shape[:2])
    if not hasattr(infer, "query"):
        raise UserError(f"--points asks the coarse and then the fine descriptors of caps, which {predictor.name} does not have: leave it out.")
    shrunk = [resized(image, fitted_hw(hw, max_side)) for image, hw in zip((image1, image2), given, strict=True)]
    net = predictor.module.network.build(predictor.config)
    asked = within(xy1, given[0], shrunk[0].shape[:2])
    found, _ = infer.query(predictor.variables, *shrunk, asked, net=net, cfg=predictor.config, search=search)
    xy2 = rescale_xy(found.xy2_px, shrunk[1].shape[:2], given[1]).astype(np.float32)
    return Matches(np.asarray(xy1, np.float32), xy2, found.score, found.code)


def within(xy, from_hw, to_hw):
    """Points (N, 2) of an image in the same image resized; of one that lies in the outer half of a pixel at the edge, the pixel's centre."""
    import numpy as np

    from jaxdesc.data.images import rescale_xy

    xy, size = np.asarray(xy, np.float64), np.array(from_hw[::-1])
    inside = ((xy >= -0.5) & (xy <= size - 0.5)).all(-1, keepdims=True)
    moved = rescale_xy(xy, from_hw, to_hw)
    return np.where(inside, np.clip(moved, 0, np.array(to_hw[::-1]) - 1), moved)


def read_points(path: Path):
    """(N, 2) float64 of a text file, x y a line; raises UserError for anything else."""
    import numpy as np

    try:
        rows = [[float(word) for word in line.split()] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read as points, x y a line: {getattr(e, 'strerror', None) or e}.") from e
    if not rows or any(len(row) != 2 for row in rows) or not np.isfinite(rows).all():
        raise UserError(f"{path} does not hold points: two finite numbers, x and y, are expected on each line.")
    return np.array(rows)


def match_pair(
    predictor,
    inputs: list[Path],
    options,
    max_side: int | None,
    out: dict[str, Path],
    queries: list[list[float]] | None = None,
    truth: list[list[float]] | None = None,
    grid_px: float = 50.0,
    random: int | None = None,
    points=None,
    search: str = "local",
) -> int:
    """Matches two images and writes what `out` asks for, once all of it is known; returns the number of matches.

    Args:
      out: file by name: "out", "figure", "dense", "warp", "alignment", "colours", "heatmaps". queries, truth: see `heat_maps`. grid_px: spacing of "colours".
      points: (N, 2) of image 1, the only ones to be matched, see `match_points`; None: as the method's `match` does.
      random: matches of "figure", drawn at random; None: from best to worst.
    Raises:
      UserError: an image cannot be read; no match, which "dense", "warp", "alignment" and "colours" need; as `heat_maps` and `match_points`.
    """
    import numpy as np
    from PIL import Image
    from tqdm import tqdm

    from jaxdesc import figures
    from jaxdesc.predictor import as_rgb
    from jaxdesc.store import flow
    from jaxdesc.store.files import atomic
    from jaxdesc.store.matches import write_corres

    image1, image2 = (as_rgb(path) for path in inputs)
    pictures = {}
    if "heatmaps" in out:
        pictures["heatmaps"] = heat_maps(predictor, image1, image2, max_side, queries, truth)
    with tqdm(desc="matching", bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining}", dynamic_ncols=True) as bar:

        def progress(done, todo):
            bar.total = todo
            bar.update(done - bar.n)

        if points is None:
            matches = predictor.match_with(image1, image2, options, max_side, progress=progress)
        else:
            matches = match_points(predictor, image1, image2, max_side, points, search)
        bar.update((bar.total or 0) - bar.n)
    if "dense" in out or "warp" in out:
        positions = predictor.positions(image1, image2, matches)
    if "figure" in out:
        count = len(matches.score)
        drawn = np.arange(count) if random is None else np.random.default_rng(0).permutation(count)[:random]
        pictures["figure"] = figures.side_by_side(image1, image2, matches.xy1[drawn], matches.xy2[drawn], most=80 if random is None else random)
    if "colours" in out:
        if not len(matches.score):
            raise UserError("There is no match that --colours could show.")
        pictures["colours"] = figures.dense_correspondence(image1, image2, matches.xy1, matches.xy2, grid_px)
    if "alignment" in out:
        back = predictor.positions(image2, image1, predictor.match_with(image2, image1, options, max_side))
        pictures["alignment"] = figures.alignment(image1, image2, figures.warp(image1, back), matches.xy1, matches.xy2)
    if "warp" in out:
        pictures["warp"] = figures.warp(image2, positions)
    if "out" in out:
        write_corres(out["out"], *matches)
    if "dense" in out:
        y, x = np.mgrid[: image1.shape[0], : image1.shape[1]]
        flow.write_flo(out["dense"], positions - np.stack([x, y], -1))
    for name, picture in pictures.items():
        with atomic(out[name]) as temporary:
            Image.fromarray(picture).save(temporary)
    return len(matches.score)


def match_folder(
    predictor,
    folder: Path,
    out: Path,
    features: Path,
    options,
    pairs_file: Path | None = None,
    max_side: int | None = None,
    grid: dict[str, float] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Matches the pairs of a folder into an hloc match file, each as soon as it is known, and joins their ends to keypoints in a feature file.

    `<out>.pairs.txt` lists the matched pairs, as hloc's next steps want it; `<out>.json` the settings, without which a file is not added to.

    Args:
      options: the method's MatchOptions. grid: cell_px and max_error_px of `aggregate_dense`.
    Returns:
      {"pairs": matched, "skipped": matched before, "dropped": lines of the list, "unreadable": {image: why}, "keypoints": mean per image}.
    Raises:
      UserError: as `find_images`, `read_pairs`, `claim`; no pair is left.
    """
    import numpy as np
    from tqdm import tqdm

    from jaxdesc.data.images import UnreadableImage, find_images, read_rgb
    from jaxdesc.store import matches as files
    from jaxdesc.store.files import atomic
    from jaxdesc.store.pairs import exhaustive_pairs, read_pairs
    from jaxdesc.store.settings import claim

    dropped = {}
    if pairs_file:
        pairs, dropped = read_pairs(pairs_file, lambda name: (folder / name).is_file())
    else:
        names = find_images(folder)
        if blank := next((name for name in names if len(name.split()) != 1), None):
            raise UserError(f"The image name {blank!r} in {folder} holds a blank, which lists of pairs cannot: rename the image.")
        pairs = exhaustive_pairs(names)
        if not pairs:
            raise UserError(f"{folder} holds one image, {names[0]}: at least two are needed.")
    settings = {"weights": predictor.digest, "max_side": max_side, **dataclasses.asdict(options)}
    settings.pop("memory_bytes", None)
    if not overwrite and not out.exists() and features.exists():
        raise UserError(f"{features} exists already: choose another name (--features) or ask for it to be overwritten.")
    claim(out, settings, overwrite)
    claim(features, settings, overwrite)
    listed = out.with_name(f"{out.name}.pairs.txt")
    if out.exists() and listed.exists():  # keypoints are shared: all pairs of the file get new indices
        pairs = list(dict.fromkeys([*read_pairs(listed, lambda name: True)[0], *pairs]))
    todo = files.unfinished(out, pairs)
    skipped = len({frozenset(pair) for pair in pairs}) - len(todo)

    told, unreadable = set(), {}
    read = functools.lru_cache(maxsize=16)(lambda name: read_rgb(folder / name))
    with tqdm(todo, unit="pair", dynamic_ncols=True, disable=not todo) as bar:

        def say(sentence):
            if sentence not in told:  # once for images of one size
                told.add(sentence)
                bar.write(f"jaxdesc: {sentence}")

        for name1, name2 in bar:
            for name in {name1, name2} - unreadable.keys():
                try:
                    read(name)
                except UnreadableImage as e:
                    unreadable[name] = e.reason
            if unreadable.keys() & {name1, name2}:
                continue
            found = predictor.match_with(read(name1), read(name2), options, max_side, say)
            files.write_dense_hdf5(out, name1, name2, found.xy1, found.xy2, found.score)
            bar.set_postfix_str(f"{len(found.score)} matches", refresh=False)

    left = {frozenset(pair) for pair in files.unfinished(out, pairs)}
    done = [pair for pair in dict.fromkeys(pairs) if frozenset(pair) not in left]
    if not done:
        raise UserError(f"No pair could be matched: {', '.join(f'{name} ({why})' for name, why in unreadable.items())}.")
    with atomic(listed) as temporary:
        temporary.write_text("".join(f"{a} {b}\n" for a, b in done))
    keypoints, indices = files.aggregate_dense({pair: files.read_dense_hdf5(out, *pair) for pair in done}, **(grid or {}))
    files.write_aggregated(features, out, keypoints, indices)
    mean = float(np.mean([len(xy) for xy, _ in keypoints.values()]))
    return {"pairs": len(done) - skipped, "skipped": skipped, "dropped": dropped, "unreadable": unreadable, "keypoints": mean}


def main() -> None:
    args = flags().parse_args()
    inputs = [Path(path) for path in args.inputs]
    options = {"max_scale": args.max_scale, "max_rotation_deg": args.max_rot, "memory_bytes": args.memory and int(args.memory * 2**30)}
    options["mutual"] = False if args.one_way else None
    options["confident"] = args.confident or None
    options = {name: value for name, value in options.items() if value is not None}  # the others are the method's own
    if args.max_side is not None and args.max_side < 32:
        raise UserError(f"--max-side {args.max_side} must be at least 32.")
    if len(inputs) == 1 and inputs[0].is_file():
        raise UserError(f"{inputs[0]} is one image: name another one to match it with, or a folder.")
    if len(inputs) == 1:
        _main_folder(args, inputs[0], options)
    elif len(inputs) == 2:
        _main_pair(args, inputs, options)
    else:
        raise UserError(f"Two images or one folder are expected, {len(inputs)} names are given: put the images into a folder.")


def _main_pair(args, inputs: list[Path], options: dict) -> None:
    from jaxdesc.store.files import refuse_existing

    if args.pairs or args.features:
        raise UserError("--pairs and --features are for a folder of images.")
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
    from jaxdesc.predictor import load

    points = read_points(Path(args.points)) if args.points else None
    predictor = load(args.weights)
    found = match_pair(predictor, inputs, predictor.options(**options), args.max_side, out, args.query, args.truth, args.grid, args.random, points, args.search)
    print(f"{found} matches of {inputs[0]} and {inputs[1]}" + "".join(f"\n{path}" for path in out.values()))


def _main_folder(args, folder: Path, options: dict) -> None:
    if not args.out or args.figure or args.dense or args.warp or args.alignment or args.colours or args.heatmaps or args.points:
        raise UserError("A folder needs --out FILE.h5; --figure, --dense, --warp, --alignment, --colours, --heatmaps and --points are for two images.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    if not (args.cell > 0 and args.max_error > 0):
        raise UserError(f"--cell {args.cell:g} and --max-error {args.max_error:g} must be above 0.")
    out = Path(args.out)
    features = Path(args.features or out.with_name(f"{out.stem}_features{out.suffix}"))
    for path in (out, features):
        if path.suffix != ".h5":
            raise UserError(f"{path} must end in .h5.")
    cli.use_compilation_cache()
    from jaxdesc.predictor import load, tell

    predictor = load(args.weights)
    pairs = Path(args.pairs) if args.pairs else None
    grid = {"cell_px": args.cell, "max_error_px": args.max_error}
    result = match_folder(predictor, folder, out, features, predictor.options(**options), pairs, args.max_side, grid, args.overwrite)
    for what, count in result["dropped"].items():
        if count:
            tell(f"{count} {what.replace('_', '-')} of {args.pairs} dropped.")
    for name, why in result["unreadable"].items():
        tell(f"skipped with its pairs: {name}: {why}.")
    print(f"{result['pairs']} pairs matched, {result['skipped']} were there already; {result['keypoints']:.0f} keypoints per image\n{out}\n{features}")


if __name__ == "__main__":
    cli.run(main)
