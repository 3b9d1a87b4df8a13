"""Sequences with homographies on disk."""

from pathlib import Path

import numpy as np
import pytest

from jaxdesc.datasets import hpatches
from jaxdesc.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "1 0 0\n0 1 0\n",
        "1 0 0\n0 1 0\n0 0 one\n",
        "1 0 0\n0 1 0\n0 0 nan\n",
        "1 0 0\n0 1 0\n1 1 0\n",
        "1 0\n0 1 0\n0 0 1\n",
        "",
        "\x00\xff",
    ],
)
def test_malformed_homographies_are_named(tmp_path, text):
    path = tmp_path / "H_1_2"
    path.write_text(text, encoding="latin1")
    with pytest.raises(UserError, match=r"homography .*H_1_2 is malformed: "):
        hpatches.read_homography(path)


def test_only_all_540_pairs_are_called_hpatches():
    pairs = [
        hpatches.HomographyPair(f"{kind}_{n}", "1", str(k), np.eye(3))
        for kind, count in (("i", 52), ("v", 56))
        for n in range(count)
        for k in range(2, 7)
    ]
    assert hpatches.dataset_name(Path("/x/hp"), pairs) == "HPatches"
    assert (
        hpatches.dataset_name(Path("/x/hp"), pairs[1:]) == "hp (108 sequences)"
        and hpatches.dataset_name(Path("/x/hp"), pairs[5:]) == "hp (107 sequences)"
    )
