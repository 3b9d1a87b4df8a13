"""`jaxdesc VERB`, and the package as pip installs it, in an empty folder."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxdesc
from jaxdesc import __main__ as face
from jaxdesc import config
from jaxdesc.errors import UserError

ROOT = Path(__file__).parents[1]


def test_without_a_verb_all_are_listed(capsys):
    face.called([])
    listed = capsys.readouterr().out
    face.called(["--help"])
    assert capsys.readouterr().out == listed
    files = {path.stem for path in (ROOT / "jaxdesc/cli").glob("*.py") if "\ndef main(" in path.read_text()}
    assert set(face.VERBS) == files
    assert all(f"  {verb} " in listed for verb in face.VERBS)


def test_version(capsys):
    face.called(["--version"])
    assert capsys.readouterr().out == f"jaxdesc {jaxdesc.__version__}\n"


def test_an_unknown_verb_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"no verb 'mach'; do you mean match\?"):
        face.called(["mach"])
    with pytest.raises(UserError, match=r"no verb 'xyz'; there are train, match"):
        face.called(["xyz"])


@pytest.mark.parametrize("verb", face.VERBS)
def test_help_names_the_command_that_was_typed(verb, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxdesc", verb, "--help"])
    with pytest.raises(SystemExit) as end:
        face.called([verb, "--help"])
    assert end.value.code == 0
    assert f"usage: jaxdesc {verb}" in capsys.readouterr().out


def test_configurations_go_by_name_too():
    assert config.load("pump:paper") == config.load("configs/pump.py:paper")
    assert set(config.shipped_configs()) == {"pump", "caps", "cold", "gsf"}
    with pytest.raises(UserError, match=r"no configuration 'pum'; there are caps, cold, gsf, pump, or name a file"):
        config.load("pum")
    with pytest.raises(UserError, match=r"no configuration file mine\.py"):
        config.load("mine.py")


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "jaxdesc").rglob("*.py")}
    assert set(listed) == folders | {"jaxdesc.configs"}


def installed(site, folder, *words):
    env = {**os.environ, "PYTHONPATH": str(site), "JAXDESC_CACHE": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-m", "jaxdesc", *words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_wheel_works_in_an_empty_folder(site, tmp_path):
    assert (site / "jaxdesc" / "py.typed").exists() and (site / "jaxdesc/weights/pump.md").exists()
    assert (site / "bin" / "jaxdesc").exists()
    version = installed(site, tmp_path, "--version").split()[1]
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    out = installed(site, tmp_path, "train", "--config", "pump:smoke")
    assert "runs/pump-smoke: " in out and (tmp_path / "runs/pump-smoke/checkpoints/2").is_dir()
