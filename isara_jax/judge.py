r"""The command: `python -m isara_jax.judge --workdir=runs/safety --judges=DIR`.

Models, or a rule, judge what a finished run has answered, on devices of their own: the verdicts go
into its `answers/`, the metrics into its table, as if the run had had these judges
(`evaluation.judges`). One judge is loaded at a time. Started again, it judges what is missing.

| judge | says |
|---|---|
| the folder of a classifier of several labels | whether an answer is flagged |
| the folder of a score model, or a classifier of one label | a score |
| the folder of a language model | yes or no |
| the word `rule` | whether an answer begins as refusals do |

`--answers=FILE` judges any other answers: rows with `prompt` and `answer`, or AlpacaEval's outputs;
the metrics are printed, and `FILE.judged.jsonl` has the verdicts.
"""

import contextlib
import re
from collections.abc import Iterator

from isara_jax.shell import command  # isort: skip, sets the environment of what follows

from absl import flags

from isara_jax import config
from isara_jax.devices import compilation_cache, mesh
from isara_jax.evaluate.judges import RULE
from isara_jax.files import remote
from isara_jax.host import judge_file, judge_run, lock, panel

_DEFAULT = config.Config()
_WORKDIR = flags.DEFINE_string("workdir", "", "The folder of a finished run.")
_ANSWERS = flags.DEFINE_string("answers", "", "Or a file of answers (.jsonl, .json, .csv, …).")
_JUDGES = flags.DEFINE_list("judges", [], "Folders of models, between commas; or the word rule.")
_PROMPTS = flags.DEFINE_multi_string(
    "judge_prompts", [],
    "What a judge reads, with {question} and {answer}: given for none, or once for each model.",
)  # fmt: skip
_TOKENS = flags.DEFINE_integer(
    "judge_tokens", _DEFAULT.evaluation.judge_tokens, "Tokens of what a judge reads.", 1
)
_AT_ONCE = flags.DEFINE_integer("slots", _DEFAULT.slots, "Answers judged at once.", 1)
_MESH = flags.DEFINE_string("mesh", "auto", "Devices along data x fsdp x model, such as 4x1x2.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "auto: f32 on a CPU, bf16 elsewhere."
)


def judge() -> None:
    """Judges as the flags say."""
    compilation_cache.keep_compiled_programs()
    with _named_by_flags(), config.user_errors():
        if not _JUDGES.value:
            raise config.UserError(f"--judges is missing. It is: {flags.FLAGS['judges'].help}")
        if bool(_WORKDIR.value) == bool(_ANSWERS.value):
            raise config.UserError("give one of --workdir and --answers")
        mesh.check_platforms()
        members = panel.read(_config(), _JUDGES.value)
        if _ANSWERS.value:
            judge_file.judge(_ANSWERS.value, members)
            return
        with (
            lock.held(remote.path(_WORKDIR.value)),
            remote.finished(_WORKDIR.value, "answers") as place,
        ):
            judge_run.judge(place, members)


def _config() -> config.Config:
    """What the flags mean, as a run has it."""
    c = config.default()
    c.evaluation.judges = tuple(name for name in _JUDGES.value if name != RULE)
    c.evaluation.judge_prompts = tuple(_PROMPTS.value)
    c.evaluation.judge_tokens, c.mesh, c.model.dtype = _TOKENS.value, _MESH.value, _DTYPE.value
    c.slots = c.train.batch_size = _AT_ONCE.value  # nothing is trained
    return config.resolve(c)


@contextlib.contextmanager
def _named_by_flags() -> Iterator[None]:
    """Messages that name a field of the configuration name its flag here."""
    try:
        yield
    except config.UserError as error:
        known = "judges|judge_prompts|judge_tokens|slots|mesh|dtype"
        said = re.sub(rf"\bconfig\.(?:evaluation\.|model\.)?({known})\b", r"--\1", str(error))
        raise config.UserError(said) from error


main = command.of(judge)

if __name__ == "__main__":
    command.run(main)
