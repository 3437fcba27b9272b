"""The scripts people start from: they exist, are executable, and refuse what cannot work."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ("launch/local.sh", "launch/test.sh", ".ci/run")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_parse(script):
    """A script that git stored without its mode, or that has a syntax error."""
    path = ROOT / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)


def test_an_unsupported_python_is_named(tmp_path):
    """An old interpreter ends in one sentence, before anything is installed."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit\nexit 1\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", ". launch/environment.sh requirements.txt"],
        cwd=ROOT, env=os.environ | {"PYTHON": str(fake)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs Python 3.11 to 3.13" in done.stderr and "Python 3.9.1" in done.stderr


def test_the_readme_names_the_two_commands():
    """What CI runs is what the README tells a newcomer to run."""
    readme = (ROOT / "README.md").read_text()
    assert "./launch/local.sh" in readme and "./launch/test.sh" in readme
    assert "./launch/test.sh" in (ROOT / ".ci" / "run").read_text()
