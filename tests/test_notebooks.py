"""The notebooks run from top to bottom, on the smoke configuration."""

from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

from jaxdesc import predictor
from jaxdesc.store import weights

ROOT = Path(__file__).parent.parent
QUICKER = {"gsf": {"method.stages": "A2", "method.stage_shares": "1"}}  # each stage is compiled anew


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "method", "pictures"), [("train_pump", "pump", 3), ("caps", "caps", 5), ("gsf", "gsf", 4), ("cold", "cold", 4)])
def test_notebook(name, method, pictures, tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
    settings = next(cell for cell in notebook.cells if cell.source.startswith("CONFIG ="))
    overrides = {"data.cache": str(tmp_path / "cache"), **QUICKER.get(name, {})}
    settings.source = f'CONFIG = "configs/{method}.py:smoke"\nWORKDIR = {str(tmp_path / "run")!r}\nOVERRIDES = {overrides!r}'
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles faster; two steps may take what they like
    monkeypatch.setenv("JAXDESC_REPOSITORY", "")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "colab")}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(shown) == pictures


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_match_pump(tmp_path, monkeypatch):
    weight_file = tmp_path / "tiny.safetensors"
    tiny = predictor.untrained("pump", hidden=32, depth=1, kernel=3, output_dim=16)
    weights.save(weight_file, "pump", tiny.config, jax.device_get(tiny.variables))
    notebook = nbformat.read(ROOT / "colab" / "match_pump.ipynb", as_version=4)
    settings = next(cell for cell in notebook.cells if cell.source.startswith("WEIGHTS ="))
    settings.source = f'WEIGHTS = {str(weight_file)!r}\nSIDE = 128\nOPTIONS = {{"max_scale": 1.0, "min_component": 0}}\nQUERY = (0.43, 0.57)'
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAXDESC_REPOSITORY", "")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "colab")}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(shown) == 4
