"""Two images matched, and what is made of their matches: files, pictures, distributions of a few points."""

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from jaxdesc import figures, methods
from jaxdesc.errors import UserError
from jaxdesc.images import fit, read_rgb, rescale, resize
from jaxdesc.predict.predictor import Matches
from jaxdesc.store import flow
from jaxdesc.store.files import atomic
from jaxdesc.store.matches import write_corres


def heat_maps(predictor, image1, image2, max_side: int | None, queries: list[list[float]], truth: list[list[float]] | None):
    """The picture of where pixels of image 1 may be in image 2, by the method's `explain`.

    Args:
      image1, image2: (H, W, 3), shown as `max_side` leaves them. queries, truth: (x, y) of each point in image 1, and in image 2 where that is known; pixels of
        the images as given.
    Raises:
      UserError: a method without one; a query outside image 1; as the method's `explain`.
    """
    if predictor.method.explain is None:
        raise UserError(f"{predictor.name} has no --heatmaps: {_having('explain')} have.")
    given = image1.shape[:2], image2.shape[:2]
    image1, image2 = (resize(image, fit(hw, max_side)) for image, hw in zip((image1, image2), given, strict=True))
    xy1 = within(queries, given[0], image1.shape[:2])
    xy2 = None if truth is None else rescale(np.array(truth), given[1], image2.shape[:2])
    return predictor.method.explain(predictor.variables, image1, image2, xy1, xy2)


def _having(slot: str) -> str:
    """The methods that give a slot, for a sentence."""
    known = (methods.find(name) for name in methods.names())
    return ", ".join(d.name for d in known if d.build(d.Config())._asdict()[slot])


def match_points(predictor, image1, image2, max_side: int | None, xy1, options):
    """Matches of given points (N, 2) of image 1, in their order, by the method's `points`.

    Raises:
      UserError: a method without one; a point outside image 1.
    """
    if predictor.method.points is None:
        raise UserError(f"{predictor.name} matches no chosen --points: {_having('points')} does.")
    given = image1.shape[:2], image2.shape[:2]
    shrunk = [resize(image, fit(hw, max_side)) for image, hw in zip((image1, image2), given, strict=True)]
    asked = within(xy1, given[0], shrunk[0].shape[:2])
    found = predictor.method.points(predictor.variables, *shrunk, asked, options)
    xy2 = rescale(found.xy2_px, shrunk[1].shape[:2], given[1])
    return Matches(np.asarray(xy1, np.float32), xy2, found.score, found.code)


def within(xy, from_hw, to_hw):
    """Points (N, 2) of an image in the same image resized; of one that lies in the outer half of a pixel at the edge, the pixel's centre."""
    xy, size = np.asarray(xy, np.float64), np.array(from_hw[::-1])
    inside = ((xy >= -0.5) & (xy <= size - 0.5)).all(-1, keepdims=True)
    moved = rescale(xy, from_hw, to_hw)
    return np.where(inside, np.clip(moved, 0, np.array(to_hw[::-1]) - 1), moved)


def read_points(path: Path):
    """(N, 2) float64 of a text file, x y a line; raises UserError for anything else."""
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
) -> int:
    """Matches two images and writes what `out` asks for, once all of it is known; returns the number of matches.

    Args:
      out: file by name: "out", "figure", "dense", "warp", "alignment", "colours", "heatmaps". queries, truth: see `heat_maps`. grid_px: spacing of "colours".
      points: (N, 2) of image 1, the only ones to be matched, see `match_points`; None: as the method's `match` does.
      random: matches of "figure", drawn at random; None: from best to worst.
    Raises:
      UserError: an image cannot be read; no match, which "dense", "warp", "alignment" and "colours" need; as `heat_maps` and `match_points`.
    """
    image1, image2 = (read_rgb(path) for path in inputs)
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
            matches = match_points(predictor, image1, image2, max_side, points, options)
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
