"""Lists of pairs, read alike by training, matching and scoring."""

import numpy as np
import pytest

from jaxdesc.datasets import pairs
from jaxdesc.datasets.pairs import SELF, TWICE, among, below, exhaustive_pairs, read_pairs
from jaxdesc.types import UserError

NAMES = {"a.jpg", "dir/b.jpg", "c.jpg"}


def listed(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "pairs.txt"
    path.write_text(text, encoding=encoding)
    return path


def images(folder, names=("a.jpg", "dir/b.jpg", "c.jpg")):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_order_comments_duplicates_and_self_pairs(tmp_path):
    text = "# a comment with words\n\na.jpg  dir/b.jpg\ndir/b.jpg a.jpg\nc.jpg c.jpg\n\tc.jpg\ta.jpg \na.jpg dir/b.jpg"
    assert read_pairs(listed(tmp_path, text, "utf-8-sig"), among(NAMES)) == (
        [("a.jpg", "dir/b.jpg"), ("c.jpg", "a.jpg")],
        {TWICE: 2, SELF: 1},
    )


REFUSED = [
    (
        "a.jpg c.jpg\nmy photo.jpg a.jpg\n",
        r"pairs\.txt, line 2: two image names are expected, 3 are there .*blanks",
    ),
    ("a.jpg\n", "line 1: two image names are expected, 1 are there"),
    ("\na.jpg d.jpg\n", r"line 2: there is no image 'd\.jpg'"),
    ("d.jpg a.jpg\n", r"line 1: there is no image 'd\.jpg'"),
    ("# nothing\n", "holds no pair"),
    ("a.jpg a.jpg\n", "holds no pair"),
    ("./a.jpg dir/../a.jpg\n", "holds no pair"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refusals_name_file_and_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_pairs(listed(tmp_path, text), among(NAMES))


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_folder_of_pairs_refuses_the_same(tmp_path, text, message):
    images(tmp_path)
    listed(tmp_path, text)
    with pytest.raises(UserError, match=message):
        pairs.read_folder(tmp_path)


def test_where_images_were_looked_for_is_told(tmp_path):
    images(tmp_path / "images")
    listed(tmp_path, "images/a.jpg c.jpg\n")
    with pytest.raises(UserError, match=r"no image 'images/a\.jpg' in .*images\.$"):
        pairs.read_folder(tmp_path)


def test_unreadable_lists(tmp_path):
    with pytest.raises(UserError, match=r"list of pairs .* cannot be read: No such file"):
        read_pairs(tmp_path / "none.txt", among(NAMES))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not a text file"):
        read_pairs(tmp_path / "binary", among(NAMES))


def test_names_are_compared_as_paths_by_everybody(tmp_path):
    """Training took "./a.jpg" for "a.jpg"; scoring knew no such image, matching two of them."""
    images(tmp_path)
    path = listed(tmp_path, "./a.jpg dir/./b.jpg\ndir/b.jpg a.jpg\nc.jpg dir/../c.jpg\n")
    expected = [("a.jpg", "dir/b.jpg")]
    assert read_pairs(path, among(NAMES)) == (expected, {TWICE: 1, SELF: 1})
    assert read_pairs(path, below(tmp_path)) == (expected, {TWICE: 1, SELF: 1})
    listing = pairs.read_folder(tmp_path)
    assert (list(listing.pairs), listing.dropped) == (expected, {TWICE: 1, SELF: 1})
    assert listing.files["dir/b.jpg"].read_bytes() == b"x"


def test_correspondences_and_folders_of_folders(tmp_path):
    for name in ("one", "two"):
        images(tmp_path / name / "images")
        listed(tmp_path / name, "a.jpg dir/b.jpg\nc.jpg a.jpg\nc.jpg a.jpg\n")
    (tmp_path / "two/corres").mkdir()
    np.save(tmp_path / "two/corres/a_b.npy", np.zeros((3, 4)))
    found = pairs.read_folder(tmp_path)
    assert list(found.pairs) == [
        (f"{folder}/images/{a}", f"{folder}/images/{b}")
        for folder in ("one", "two")
        for a, b in (("a.jpg", "dir/b.jpg"), ("c.jpg", "a.jpg"))
    ]
    corres = [file and file.relative_to(tmp_path).as_posix() for file in found.pairs.values()]
    assert corres == [None, None, "two/corres/a_b.npy", None]
    assert found.dropped == {TWICE: 2} and found.label == tmp_path.name
    assert found.files["two/images/c.jpg"] == tmp_path / "two/images/c.jpg"


def test_sfm120k_finds_both_forms(tmp_path):
    images(tmp_path / "ims", ("56/34/12/abc123456", "flat"))
    (tmp_path / "list_pairs.txt").write_text("abc123456 flat\n")
    found = pairs.read_sfm120k(tmp_path)
    assert list(found.pairs) == [("ims/56/34/12/abc123456", "ims/flat")]
    (tmp_path / "list_pairs.txt").unlink()
    with pytest.raises(UserError, match=r"is not SfM-120k: it has no list_pairs\.txt"):
        pairs.read_sfm120k(tmp_path)


def test_exhaustive_pairs():
    assert exhaustive_pairs(["b", "c", "a", "b"]) == [("a", "b"), ("a", "c"), ("b", "c")]
