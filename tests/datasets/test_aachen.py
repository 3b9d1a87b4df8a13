"""VisualSFM's models; the benchmark's whole folder is read in tests/evals/test_localisation.py."""

import pytest

from jaxdesc.datasets import aachen
from jaxdesc.types import UserError


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello\n1\na 1 2\n",
        "NVM_V3\n\n2\na.png 300 1 0 0 0 0 0 0 0 0\n",
        "NVM_V3\n1\na.png 300 1 0 0 0 x 0 0 0 0\n",
    ],
)
def test_a_cut_nvm_is_one_sentence(tmp_path, text):
    (tmp_path / "x.nvm").write_text(text)
    with pytest.raises(UserError, match=r"x\.nvm is no VisualSFM model"):
        aachen.read_nvm(tmp_path / "x.nvm")
