"""jaxdesc extract IMAGES --out features.h5: descriptors of keypoints, in the files that other tools read."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxdesc import cli
from jaxdesc.errors import UserError

STORAGES = ("float32", "float16", "int8")  # store.features.STORAGES, which is not loaded for --help
FORMATS = ("hloc", "npz", "colmap", "kapture", "imc", "eth")


def flags() -> argparse.ArgumentParser:
    parser = cli.parser(
        "extract",
        "Describes keypoints of all images of a folder; images that are there already are skipped, so an interrupted run goes on when it is started again.",
        "jaxdesc extract IMAGES --out features.h5 --max-keypoints 2000",
    )
    parser.add_argument("images", metavar="IMAGES", help="folder of images, nested or not, or one image")
    parser.add_argument("--out", required=True, metavar="PATH", help="hloc: FILE.h5; colmap: FILE.db (and the descriptors in FILE.h5); others: a folder")
    told = "weight file or training workdir (default: pump's, which come with the package)"
    parser.add_argument("--weights", metavar="W", help=told)
    parser.add_argument(
        "--keypoints",
        default=cli.DETECTOR,
        metavar=cli.KEYPOINTS,
        help=f"where to describe: {cli.KEYPOINTS_TOLD} (default: {cli.DETECTOR})",
    )
    parser.add_argument("--format", default="hloc", choices=FORMATS, help="of the output (default: hloc)")
    parser.add_argument(
        "--storage", default="float16", choices=STORAGES, help="of descriptors in FILE.h5; int8: with a scale for each descriptor (default: float16)"
    )
    parser.add_argument("--max-keypoints", type=int, default=4096, metavar="N", help="the best-scored of an image (default: 4096)")
    parser.add_argument("--scales", default="own", choices=("own", "all"), help="one descriptor at the keypoint's own scale, or one at every scale")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    return parser


class Sink(NamedTuple):
    """Where features go."""

    has: Callable[[str], bool]  # whether the image of this name is there
    write: Callable[[str, Any], bool]  # (name, Features)


def open_sink(kind: str, out: Path, storage: str) -> Sink:
    """The writer of a format; hloc's for COLMAP, whose database is made from it in the end. Only hloc's knows of `storage`."""
    from jaxdesc.store import features

    if kind in ("hloc", "colmap"):
        path = out.with_suffix(".h5")
        names = features.list_names(path)
        return Sink(names.__contains__, lambda name, found: features.write_hdf5(path, name, found, storage))
    if kind == "imc":
        parts = [out / f"{part}.h5" for part in ("keypoints", "descriptors", "scores")]
        stems = set.intersection(*map(_keys, parts))
        return Sink(lambda name: Path(name).stem in stems, lambda name, found: features.write_imc(out, name, found))
    last = {"npz": "{}.jaxdesc", "kapture": "reconstruction/descriptors/jaxdesc/{}.desc", "eth": "descriptors/{}.bin"}[kind]
    write = {"npz": features.write_npz, "kapture": features.write_kapture, "eth": features.write_eth}[kind]
    return Sink(lambda name: (out / last.format(name)).exists(), lambda name, found: write(out, name, found))


def _keys(path: Path) -> set[str]:
    from jaxdesc.store.hdf5 import open_hdf5

    if not path.exists():
        return set()
    with open_hdf5(path) as file:
        return set(file)


def extract_folder(
    predictor,
    images: Path,
    out: Path,
    source: str = cli.DETECTOR,
    kind: str = "hloc",
    most: int = 4096,
    scales: str = "own",
    overwrite: bool = False,
    storage: str = "float16",
) -> dict[str, Any]:
    """Describes the images below a folder (or one image), each written as soon as it is known.

    Returns:
      {"images": described, "skipped": there before, "outside": keypoints dropped, "unreadable": {image: why}}.
    Raises:
      UserError: as `find_images`, `claim` and the writers; the file of keypoints lacks an image or belongs to images of other sizes; no image is readable.
    """
    from tqdm import tqdm

    from jaxdesc.datasets.folders import find_images
    from jaxdesc.images import UnreadableImage, read_rgb
    from jaxdesc.matching.keypoints import settings as keypoint_settings
    from jaxdesc.predict.sparse import check_source, features_of
    from jaxdesc.store.settings import claim

    root, names = (images.parent, [images.name]) if images.is_file() else (images, find_images(images))
    check_source(predictor, source, names)
    settings = {
        "weights": predictor.digest,
        "format": kind,
        **keypoint_settings(source),
        "max_keypoints": most,
        "scales": scales,
        "storage": storage,
    }
    claim(out if kind != "colmap" else out.with_suffix(".h5"), settings, overwrite)
    sink = open_sink(kind, out, storage)
    todo = [name for name in names if not sink.has(name)]
    outside, unreadable = 0, {}
    with tqdm(todo, unit="image", dynamic_ncols=True, disable=not todo) as bar:
        for name in bar:
            try:
                rgb = read_rgb(root / name)
            except UnreadableImage as e:
                unreadable[name] = e.reason
                continue
            found, dropped = features_of(predictor, source, name, rgb, most, scales)
            outside += dropped
            sink.write(name, found)
            bar.set_postfix_str(f"{len(found)} keypoints", refresh=False)
    if len(unreadable) == len(names):
        raise UserError(f"None of the {len(names)} images of {images} can be read; {names[0]}: {unreadable[names[0]]}.")
    return {"images": len(todo) - len(unreadable), "skipped": len(names) - len(todo), "outside": outside, "unreadable": unreadable}


def write_colmap(out: Path, overwrite: bool) -> None:
    """COLMAP's database of the images and keypoints in the hloc file beside it."""
    from jaxdesc.store import colmap
    from jaxdesc.store.features import list_names, read_hdf5

    file = out.with_suffix(".h5")
    found = {name: read_hdf5(file, name) for name in sorted(list_names(file))}
    colmap.write_database(out, {name: f.image_size for name, f in found.items()}, {name: f.keypoints for name, f in found.items()}, {}, overwrite)


def main() -> None:
    args = flags().parse_args()
    images, out = Path(args.images), Path(args.out)
    if args.max_keypoints < 1:
        raise UserError(f"--max-keypoints {args.max_keypoints} must be at least 1.")
    if args.storage != "float16" and args.format not in ("hloc", "colmap"):
        raise UserError(f"--storage {args.storage} is for --format hloc and colmap: the descriptors of --format {args.format} are float32 in any case.")
    suffix = {"hloc": ".h5", "colmap": ".db"}.get(args.format)
    if suffix and out.suffix != suffix:
        raise UserError(f"--out {out} must end in {suffix} for --format {args.format}.")
    if not suffix and out.is_file():
        raise UserError(f"--out {out} is a file; --format {args.format} writes into a folder.")
    if not images.exists():
        raise UserError(f"There is no image and no folder {images}.")
    if args.format == "colmap":
        from jaxdesc.store.files import refuse_existing

        refuse_existing(out, args.overwrite)
    cli.use_compilation_cache()
    from jaxdesc.predict.predictor import load, tell

    result = extract_folder(load(args.weights), images, out, args.keypoints, args.format, args.max_keypoints, args.scales, args.overwrite, args.storage)
    if args.format == "colmap":
        write_colmap(out, args.overwrite)
    if result["outside"]:
        tell(f"{result['outside']} keypoints outside their images dropped.")
    for name, why in result["unreadable"].items():
        tell(f"skipped: {name}: {why}.")
    print(f"{result['images']} images described, {result['skipped']} were there already\n{out}")
