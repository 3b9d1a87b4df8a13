"""The house's rule: imports only ever point down, and the public package loads no IO library."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "jaxdesc"
LEVELS = (
    ("errors", "types", "config"),
    ("method",),
    ("ops", "figures", "timing", "images"),
    ("nets",),
    ("matching",),
    ("methods",),
    ("store",),
    ("datasets",),
    ("data",),
    ("training", "predict"),
    ("evals",),
    ("cli", "train", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "jaxdesc"
        ):
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("jaxdesc.")
            }
    return rooms


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_imports_point_down():
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in LEVEL, f"{room} is in no level of the house"
        for other in imported_rooms(path) - {room}:
            # rooms of one level do not know each other, but for the first and the last level
            assert LEVEL[other] < LEVEL[room] or (
                LEVEL[other] == LEVEL[room] and other in ("errors", "types", "cli")
            ), f"{path} imports jaxdesc.{other}"


def test_nobody_knows_a_method_but_the_registry():
    """The rest takes what `jaxdesc.methods.find` gives, and asks for nothing by name."""
    for path in ROOT.rglob("*.py"):
        if path.is_relative_to(ROOT / "methods"):
            continue
        for module in imported_modules(path):
            assert module.split(".")[:2] != ["jaxdesc", "methods"] or module.split(".")[2:3] in (
                [],
                ["find"],
                ["names"],
                ["register"],
            ), f"{path} imports {module}"


def test_a_method_is_asked_for_nothing_by_name():
    lookups = ("hasattr", "getattr", "find_spec", "import_module")
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in lookups:
                asked = ast.unparse(node.args[0]) if node.args else ""
                assert not re.search(r"method|options|predictor|definition", asked, re.I), (
                    f"{path}:{node.lineno} looks {asked} up by name"
                )


def test_evaluations_know_no_command_line():
    """Typed options in, results out: flags are the verb's affair."""
    for path in (ROOT / "evals").rglob("*.py"):
        known = imported_modules(path)
        alien = [
            m for m in known if re.match(r"argparse|sys$|jaxdesc\.(\w+_)?flags|jaxdesc\.cli", m)
        ]
        assert not alien, f"{path} imports {alien[0]}"
        assert "Namespace" not in path.read_text(), path


def test_nobody_asks_which_method_it_is():
    """No comparison with a method's name outside methods/, where "caps:RUN" is no such name: it is
    the kind of a spec of weights to start from."""
    known = {path.name for path in (ROOT / "methods").iterdir() if path.is_dir()}
    for path in ROOT.rglob("*.py"):
        inside = path.relative_to(ROOT).as_posix()
        if inside.startswith("methods/") or inside in ("store/pretrained.py", "nets/resnet.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare | ast.MatchValue):
                words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                assert not words & known, f"{path}:{node.lineno} asks for {words & known}"


def kind_asked_for(node: ast.AST, kinds: set[str]) -> str | None:
    """The name of a kind of pair that a node compares with, looks up or reads of `data`."""
    if isinstance(node, ast.Compare | ast.MatchValue):
        words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
    elif isinstance(node, ast.Subscript):
        words = {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        looked_up = node.func.attr in ("get", "pop", "setdefault")
        words = {a.value for a in node.args[:1] if looked_up and isinstance(a, ast.Constant)}
    elif isinstance(node, ast.Attribute):
        owner = node.value
        name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        words = {node.attr} if name == "data" else set()
    else:
        words = set()
    return next(iter(words & kinds), None)


def test_generic_code_does_not_ask_which_kind_a_pair_is():
    """Only the file of a kind and the methods know its name; in rooms that see no batch the same
    words mean other things, as keypoints in a file of features do."""
    rooms = {"config", "types", "method", "data", "training", "predict", "train"}
    rooms |= {"cli/benchmark", "cli/sweep", "cli/train"}
    package = ROOT / "data" / "kinds"
    kinds = {path.stem for path in package.glob("*.py")} - {"__init__", "formats"}
    assert len(kinds) > 3
    for path in ROOT.rglob("*.py"):
        room, *inside = path.relative_to(ROOT).with_suffix("").parts
        if path.is_relative_to(package) or room == "methods":
            continue
        for kind in kinds:
            assert f"jaxdesc.data.kinds.{kind}" not in imported_modules(path), path
        seen = {room, "/".join([room, *inside[:1]])} & rooms
        for node in ast.walk(ast.parse(path.read_text())) if seen else ():
            assert not kind_asked_for(node, kinds), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "code",
    [
        'if kind == "posed": pass',
        'x = kind in ("homography", "posed")',
        'match kind:\n    case "keypoints": pass',
        'batch["unlabelled"]',
        'raw.get("posed")',
        "cfg.data.posed",
        "data.keypoints.image_px",
    ],
)
def test_the_guard_of_the_kinds_sees(code):
    kinds = {"homography", "unlabelled", "posed", "keypoints"}
    assert any(kind_asked_for(node, kinds) for node in ast.walk(ast.parse(code)))
    innocent = ast.parse('batch[name], kinds["x"], cfg.draw.posed, pair.keypoints, f("posed")')
    assert not any(kind_asked_for(node, kinds) for node in ast.walk(innocent))


def test_methods_do_not_know_each_other():
    for folder in (
        p for p in (ROOT / "methods").iterdir() if p.is_dir() and p.name != "__pycache__"
    ):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.ImportFrom)
                    and node.module
                    and node.module.startswith("jaxdesc.methods")
                ):
                    assert node.module.split(".")[2:3] in ([], [folder.name]), path


def test_importing_the_package_loads_no_io_library_and_never_tensorflow():
    code = "import sys, jaxdesc; print([m for m in ('cv2', 'h5py', 'tensorflow_datasets', 'tensorflow', 'matplotlib', 'orbax') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_one_paper_is_one_folder():
    """No module of ops/ or nets/ serves a single method alone, by itself or through others."""
    users: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        user = "/".join(parts[:2]) if parts[0] in ("methods", "ops", "nets") else parts[0]
        for module in imported_modules(path):
            if module.split(".")[:2] in (["jaxdesc", "ops"], ["jaxdesc", "nets"]):
                users.setdefault("/".join(module.split(".")[1:3]), set()).add(user)
    served = dict(users)
    while True:  # what a module of ops/ or nets/ serves, its own modules serve too
        wider = {
            name: set().union(*(served.get(user, {user}) for user in users[name])) for name in users
        }
        if wider == served:
            break
        served = wider
    for path in (*ROOT.glob("ops/*.py"), *ROOT.glob("nets/*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        if path.stem == "__init__":
            continue
        methods = served.get(name, set())
        alone = len(methods) < 2 and all(user.startswith("methods/") for user in methods)
        assert not alone, f"{name} serves {', '.join(methods) or 'nobody'} alone: move it there"
