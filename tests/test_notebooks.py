"""The notebooks run from top to bottom, on the smoke configuration."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_train_pump(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "colab" / "train_pump.ipynb", as_version=4)
    settings = next(cell for cell in notebook.cells if cell.source.startswith("CONFIG ="))
    settings.source = f'CONFIG = "configs/pump.py:smoke"\nWORKDIR = {str(tmp_path / "run")!r}\nOVERRIDES = {{"data.cache": {str(tmp_path / "cache")!r}}}'
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAXDESC_REPOSITORY", "")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "colab")}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(shown) == 3
