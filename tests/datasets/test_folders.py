"""Folders of photographs."""

import pytest

from jaxdesc.datasets.folders import find_images, image_folder
from jaxdesc.types import UserError


def test_find_images(tmp_path):
    wanted = ["B.JPEG", "a b.png", "sub/größe 1.TiF", "sub/deep/x.jpg", "Žluť.webp"]
    for name in [
        *wanted,
        "notes.txt",
        ".hidden.jpg",
        ".git/y.jpg",
        "__MACOSX/z.jpg",
        "sub/._x.jpg",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert find_images(tmp_path) == sorted(wanted)


def test_find_images_refuses(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.jpg").write_bytes(b"x")
    for name, words in (
        ("missing", "There is no folder"),
        ("file.jpg", "is a file"),
        ("empty", "holds no image"),
    ):
        with pytest.raises(UserError, match=words) as error:
            find_images(tmp_path / name)
        assert name in str(error.value)


def test_image_folder(tmp_path):
    assert image_folder(tmp_path) == tmp_path
    (tmp_path / "imgs").mkdir()
    assert image_folder(tmp_path) == tmp_path
    assert image_folder(tmp_path, ("images", "imgs")) == tmp_path / "imgs"
    (tmp_path / "images").mkdir()
    assert (
        image_folder(tmp_path, ("images", "imgs")) == tmp_path / "images" == image_folder(tmp_path)
    )
