"""The command: `python -m isara_jax.export --workdir=runs/safety --format=peft --output=DIR`.

Writes the result of a finished run as a folder that other programs load unchanged: `peft`, the
adapter, for PEFT and vLLM; `merged`, all weights, for transformers and vLLM. The tokenizer and a
model card are beside it.
"""

from isara_jax.shell import command  # isort: skip, sets the environment of what follows

import jax
from absl import flags

from isara_jax.files import remote
from isara_jax.publish import hub
from isara_jax.shell import terminal

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a finished run.")
_FORMAT = flags.DEFINE_enum("format", None, ["peft", "merged"], "An adapter, or all weights.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write; new, or empty.")
_MODEL = flags.DEFINE_string("model", "", "The base model's folder, if it has moved since.")
_BASE_NAME = flags.DEFINE_string(
    "base_name", "", "The base model's name on the hub, to be written into config and card."
)


def export() -> None:
    """Exports as the flags say."""
    jax.config.update("jax_platforms", "cpu")  # it only reads, adds and writes
    with (
        remote.reading(_WORKDIR.value, "adapter", "model") as workdir,
        remote.writing(_OUTPUT.value) as output,
    ):
        hub.export(workdir, _FORMAT.value, output, _MODEL.value, _BASE_NAME.value)
    terminal.show(f"{remote.path(_OUTPUT.value)}: how to load it stands in its README.md")


main = command.of(export, needs=("workdir", "format", "output"))

if __name__ == "__main__":
    command.run(main)
