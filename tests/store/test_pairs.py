import pytest

from jaxdesc.store.pairs import exhaustive_pairs, read_pairs
from jaxdesc.types import UserError

NAMES = {"a.jpg", "dir/b.jpg", "c.jpg"}


def _list(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "pairs.txt"
    path.write_text(text, encoding=encoding)
    return path


def test_order_comments_duplicates_and_self_pairs(tmp_path):
    text = "# a comment with words\n\na.jpg  dir/b.jpg\ndir/b.jpg a.jpg\nc.jpg c.jpg\n\tc.jpg\ta.jpg \na.jpg dir/b.jpg"
    assert read_pairs(_list(tmp_path, text, "utf-8-sig"), NAMES.__contains__) == (
        [("a.jpg", "dir/b.jpg"), ("c.jpg", "a.jpg")],
        {"duplicates": 2, "self_pairs": 1},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg c.jpg\nmy photo.jpg a.jpg\n", r"pairs\.txt, line 2: two image names are expected, 3 are there .*blanks"),
        ("a.jpg\n", "line 1: two image names are expected, 1 are there"),
        ("\na.jpg d.jpg\n", r"line 2: there is no image 'd\.jpg'"),
        ("# nothing\n", "holds no pair"),
        ("a.jpg a.jpg\n", "holds no pair"),
    ],
)
def test_refusals_name_file_and_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_pairs(_list(tmp_path, text), NAMES.__contains__)


def test_unreadable_lists(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_pairs(tmp_path / "none.txt", NAMES.__contains__)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not a text file"):
        read_pairs(tmp_path / "binary", NAMES.__contains__)


def test_exhaustive_pairs():
    assert exhaustive_pairs(["b", "c", "a", "b"]) == [("a", "b"), ("a", "c"), ("b", "c")]
