"""The command that converts: what it is given, and what it says where it cannot."""

import subprocess
import sys

import environment
import gguf
import pytest

from isara_jax import config, convert
from isara_jax.formats.from_gguf.architectures import ARCHITECTURES


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_wrong_arguments_show_the_usage(arguments):
    """One folder or file is expected."""
    with pytest.raises(SystemExit, match=r"usage: python -m isara_jax.convert DIR\|FILE.gguf"):
        convert.main(["convert", *arguments])


def test_a_gguf_file_needs_a_folder_and_a_folder_does_not(tmp_path):
    """`--output` goes with the one and not with the other."""
    with pytest.raises(config.UserError, match="a.gguf: say where .*--output=DIR"):
        convert.run(str(tmp_path / "a.gguf"))
    with pytest.raises(config.UserError, match="--output=there goes with a GGUF file"):
        convert.run(str(tmp_path), "there")


def test_a_mistake_is_one_line(tmp_path):
    """From the command line: flag and file go where they belong, the exit status is 1."""
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "bloom")
    for write in (
        writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file
    ):  # fmt: skip
        write()
    writer.close()
    done = subprocess.run(
        [sys.executable, "-m", "isara_jax.convert", str(path), f"--output={tmp_path / 'out'}"],
        env=environment.of(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == (
        f"isara_jax: {path}: general.architecture is 'bloom'; supported: "
        f"{', '.join(ARCHITECTURES)}\n"
    )
    assert list(tmp_path.iterdir()) == [path]
