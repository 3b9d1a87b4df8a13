"""SfM-120k's pairs, the paper's real training data, see `jaxdesc.datasets.pairs`."""

from jaxdesc.data.builders import base, pairs
from jaxdesc.datasets.pairs import read_sfm120k

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
    return pairs.source_of(read_sfm120k(root), str(root), max_side_px, CARD)


pairs.SOURCES["sfm120k"] = folder
