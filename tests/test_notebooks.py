"""The notebooks run from top to bottom, on the smoke configuration."""

import json
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

from jaxdesc.predict import predictor
from jaxdesc.store import weights

ROOT = Path(__file__).parent.parent
# each stage is compiled anew; the contrast is chosen before the first step, as in gsf.py:paper
GSF = {"method.stages": "A2", "method.stage_shares": "1", "method.confidence_contrast": "0"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "method", "pictures"), [("train_pump", "pump", 3), ("caps", "caps", 5), ("gsf", "gsf", 4), ("cold", "cold", 4)])
def test_notebook(name, method, pictures, tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
    settings = next(cell for cell in notebook.cells if cell.source.startswith("CONFIG ="))
    overrides = {"data.cache": str(tmp_path / "cache"), **(GSF if name == "gsf" else {})}
    settings.source = f'CONFIG = "configs/{method}.py:smoke"\nWORKDIR = {str(tmp_path / "run")!r}\nOVERRIDES = {overrides!r}'
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles faster; two steps may take what they like
    monkeypatch.setenv("JAXDESC_REPOSITORY", "")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "colab")}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(shown) == pictures
    if name == "gsf":
        kept = json.loads((tmp_path / "run" / "config.json").read_text())["method"]
        assert 1 < kept["confidence_contrast"] < 1000
        rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        (start,) = (row for row in rows if row["split"] == "validation" and row["step"] == 0)
        assert start["density"] == pytest.approx(0.75, abs=1 / 32)  # of 2 x 16 cells


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
