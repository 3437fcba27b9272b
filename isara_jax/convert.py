"""The command: `python -m isara_jax.convert`, from other forms of a model to the one that is read.

| given | written |
|---|---|
| `DIR` with pickled weights (`.bin`) | safetensors beside them (`from_pickle`); needs torch |
| `FILE.gguf --output=DIR` | the Hugging Face folder of the same model, in bf16 (`from_gguf`) |

What is written appears whole or not at all, and nothing that is there is overwritten.
"""

import pathlib

from isara_jax.shell import command  # isort: skip, sets the environment of what follows

from absl import flags

from isara_jax import config
from isara_jax.formats import from_pickle
from isara_jax.formats.from_gguf import conversion
from isara_jax.shell import terminal


def define_flags() -> None:
    """Not done on import: the tests import more than one command."""
    flags.DEFINE_string("output", "", "The folder to write, of a GGUF file; new, or empty.")


def run(name: str, output: str = "") -> None:
    """Converts a folder or a file, and says what was written.

    Raises:
      config.UserError: it cannot be; the message says why.
    """
    source = pathlib.Path(name).expanduser()
    packed = source.suffix == ".gguf" or source.is_file()
    with config.user_errors():
        if packed and not output:
            raise config.UserError(f"{source}: say where its folder goes: --output=DIR")
        if output and not packed:
            raise config.UserError(
                f"--output={output} goes with a GGUF file; the weights of a folder are written "
                "beside its .bin files"
            )
        folder = pathlib.Path(output).expanduser() if packed else source
        written = conversion.convert(source, folder) if packed else from_pickle.convert(source)
    for path in written:
        terminal.show(f"{path}: {path.stat().st_size / 1e9:.2f} GB")
    origin = "GGUF file is" if packed else ".bin files are"
    terminal.show(
        f"The {origin} no longer needed. Now: "
        f'python -m isara_jax.generate --model={folder} --prompt="..."'
    )


def convert(name: str) -> None:
    """Converts as the arguments and flags say."""
    run(name, flags.FLAGS.output)


main = command.of(convert, "DIR|FILE.gguf")

if __name__ == "__main__":
    define_flags()
    command.run(main)
