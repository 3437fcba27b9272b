"""The command: `python -m isara_jax.convert`, from other forms of a model to the one that is read.

| given | written |
|---|---|
| `DIR` with pickled weights (`.bin`) | safetensors beside them (`from_pickle`); needs torch |
| `FILE.gguf --output=DIR` | the Hugging Face folder of the same model, in bf16 (`from_gguf`) |

What is written appears whole or not at all, and nothing that is there is overwritten.
"""

import pathlib

from isara_jax import command  # isort: skip, sets the environment of what follows

from absl import flags

from isara_jax import config, from_gguf, from_pickle

_OUTPUT = flags.DEFINE_string("output", "", "The folder to write, of a GGUF file.")


def run(name: str) -> None:
    """Converts a folder or a file, and says what was written."""
    source, output = pathlib.Path(name).expanduser(), pathlib.Path(_OUTPUT.value).expanduser()
    with config.user_errors():
        if source.suffix == ".gguf" or source.is_file():
            if not _OUTPUT.value:
                raise config.UserError(f"{source}: say where its folder goes: --output=DIR")
            written, folder, origin = from_gguf.convert(source, output), output, "GGUF file is"
        else:
            if _OUTPUT.value:
                raise config.UserError(
                    f"--output={output} goes with a GGUF file; the weights of a folder are written "
                    "beside the .bin files"
                )
            written, folder, origin = from_pickle.convert(source), source, ".bin files are"
    for path in written:
        print(f"{path}: {path.stat().st_size / 1e9:.2f} GB")
    print(
        f"The {origin} no longer needed. Now: "
        f'python -m isara_jax.generate --model={folder} --prompt="..."'
    )


main = command.of(run, "DIR|FILE.gguf")

if __name__ == "__main__":
    command.run(main)
