"""The house's rule: imports only ever point down, and the public package loads no IO library."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "jaxdesc"
LEVELS = (
    ("errors", "types", "config"),
    ("ops",),
    ("nets",),
    ("methods",),
    ("engine", "data", "store", "report", "figures"),
    ("predictor",),
    ("sparse", "two_images"),
    ("image_folder", "evals"),
    ("loop",),
    ("cli", "train", "evaluate", "extract", "match", "convert", "benchmark", "sweep", "view"),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxdesc":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jaxdesc.")}
    return rooms


def test_imports_point_down():
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in LEVEL, f"{room} is in no level of the house"
        for other in imported_rooms(path) - {room}:
            # rooms of one level may know each other only where the level is made of verbs' helpers or engine and store
            assert LEVEL[other] < LEVEL[room] or (LEVEL[other] == LEVEL[room] and other in ("errors", "types", "cli")), f"{path} imports jaxdesc.{other}"


def test_engine_and_data_know_no_method():
    for folder in ("engine", "data", "store"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "methods" not in imported_rooms(path), path


def test_methods_do_not_know_each_other():
    for folder in (p for p in (ROOT / "methods").iterdir() if p.is_dir() and p.name != "__pycache__"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("jaxdesc.methods"):
                    assert node.module.split(".")[2:3] in ([], [folder.name]), path


def test_importing_the_package_loads_no_io_library_and_never_tensorflow():
    code = "import sys, jaxdesc; print([m for m in ('cv2', 'h5py', 'tensorflow_datasets', 'tensorflow', 'matplotlib', 'orbax') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
