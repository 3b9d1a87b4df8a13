"""SfM-120k's pairs, the paper's real training data: `list_pairs.txt`, `ims/<name>`, `corres/<a>_<b>.npy` (see `pairs` for the formats).

In its public release an image lies at `ims/56/34/12/<...123456>`, by the last characters of its name; both forms are found.
"""

from pathlib import Path

from jaxdesc.data.builders import base, pairs
from jaxdesc.errors import UserError

CARD = base.Card(
    about="SfM-120k: photographs of landmarks whose reconstructions show that they overlap.",
    licence="The photographs are Flickr users', who keep their rights; see the homepage.",
    homepage="http://cmp.felk.cvut.cz/cnnimageretrieval/",
    citation="""@article{radenovic2019finetuning,
  title = {Fine-tuning {CNN} Image Retrieval with No Human Annotation},
  author = {Radenovi\\'c, Filip and Tolias, Giorgos and Chum, Ond\\v{r}ej},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year = {2019},
}""",
)


def open_pairs(path: str, max_side_px: int, cache: str) -> pairs.PairSet:
    """The pairs of the folder `path`; raises UserError as `pairs.open_pairs`."""
    return pairs.prepare(folder(path, max_side_px), max_side_px, cache)


def folder(path: str, max_side_px: int) -> base.Source:
    """SfM-120k's pairs in the folder `path`; raises UserError as `pairs.folder`."""
    root = pairs.existing_folder(path)
    for part in ("list_pairs.txt", "ims"):
        if not (root / part).exists():
            raise UserError(f"{root} is not SfM-120k: it has no {part}.")
    listing = pairs.read_listing(
        root, root / "list_pairs.txt", root / "ims", root / "corres", _locate
    )
    return pairs.source_of(listing, str(root), max_side_px, CARD)


pairs.SOURCES["sfm120k"] = folder


def _locate(images: Path, name: str) -> Path:
    nested = images / name[-2:] / name[-4:-2] / name[-6:-4] / name
    return nested if nested.is_file() else images / name
