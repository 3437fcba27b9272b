r"""The command: `python -m isara_jax.generate --model=tiny_llama --prompt="Once upon a time"`.

One JSON line an answer on stdout, in the order of the prompts and in portions of at most 256;
everything else on stderr.

| field | what |
|---|---|
| `prompt`, `text` | as given; what the model wrote after it, without the stop string |
| `tokens` | ids of `text`; of a token that a stop string begins in, the rest is spelled anew |
| `finish_reason` | `stop` (end of text, or a stop string) or `length` (`--max_new_tokens`) |
| `prompt_tokens` | with `--logprobs`: ids of the prompt, as transformers tokenizes it |
| `prompt_logprobs`, `logprobs` | with `--logprobs`: one number a token; null for the first |

`--max_new_tokens=0 --logprobs` scores texts. `--chat` talks: each question stands alone in the
template that models are aligned in, behind the demonstrations of `--seeds`.
"""

import math
import sys
from collections.abc import Iterator

from isara_jax.shell import command  # isort: skip, sets the environment of what follows

import jax
from absl import flags

from isara_jax import config
from isara_jax.devices import compilation_cache, mesh
from isara_jax.files import remote, storage
from isara_jax.formats import pretrained
from isara_jax.host import completion
from isara_jax.sampler import scheduling
from isara_jax.shell import terminal
from isara_jax.tasks import files
from isara_jax.text import stops

_MODEL = flags.DEFINE_string("model", None, "tiny_llama, tiny_opt, or a Hugging Face directory.")
_ADAPTER = flags.DEFINE_string("adapter", "", "A PEFT folder, such as a run's adapter/.")
_PROMPT = flags.DEFINE_string("prompt", None, "A text to continue.")
_PROMPTS = flags.DEFINE_string("prompts", None, 'A file with a {"prompt": "..."} a line.')
_CHAT = flags.DEFINE_bool("chat", False, "Answers questions of stdin until an empty line.")
_SEEDS = flags.DEFINE_string(
    "seeds", "", "With --chat: pairs to show as examples (.jsonl, .csv, …)."
)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: the most probable token.", 0.0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the most probable that make this share.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from so many most probable; 0: from all.", 0)
_SEED = flags.DEFINE_integer("seed", 0, "Of what is drawn.", 0, 2**32 - 1)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "The longest answer.", 0)
_STOP = flags.DEFINE_multi_string("stop", [], "A string that ends answers; may be given again.")
_LOGPROBS = flags.DEFINE_bool("logprobs", False, "Add log-probabilities (natural, temperature 1).")
_BOS = flags.DEFINE_enum(
    "bos", "auto", ["auto", "always", "never"], "With --chat: as model.bos of the run."
)
_TEMPLATE = flags.DEFINE_enum(
    "template", "plain", ["plain", "chat", "chat_with_system"],
    "With --chat: as model.template of the run.",
)  # fmt: skip
_SLOTS = flags.DEFINE_integer("slots", 16, "Sequences decoded at once.", 1)
_DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "auto: f32 on a CPU, bf16 elsewhere."
)
_BATCH = 256  # prompts answered before the first line is written


def generate() -> None:
    """Answers as the flags say."""
    # Whatever the terminal's: JSON is UTF-8, and says of what is no text what its bytes are.
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    compilation_cache.keep_compiled_programs()
    with config.user_errors():
        _check_flags()
        mesh.check_platforms()
        job = (_Chat if _CHAT.value else _Lines)(
            pretrained.read_language_model(_MODEL.value, _BOS.value, _TEMPLATE.value)
        )
    job.run()


def _check_flags() -> None:
    """Raises `config.UserError` where flags do not go together."""
    kinds = (_PROMPT.value is not None, _PROMPTS.value is not None, _CHAT.value)
    if sum(kinds) != 1:
        raise config.UserError("give one of --prompt, --prompts and --chat")
    if _SEEDS.value and not _CHAT.value:
        raise config.UserError("--seeds are shown in the --chat; write them into the prompt itself")
    for name in ("bos", "template"):
        if flags.FLAGS[name].present and not _CHAT.value:
            raise config.UserError(
                f"--{name} goes with --chat; prompts are tokenized as transformers does it"
            )
    if _TEMPLATE.value != "plain" and _BOS.value != "auto":
        raise config.UserError(
            f"--template={_TEMPLATE.value} says what texts begin with; drop --bos"
        )
    if _LOGPROBS.value and _CHAT.value:
        raise config.UserError("--logprobs does not go with --chat; use --prompt or --prompts")
    if not _MAX_NEW_TOKENS.value and not _LOGPROBS.value:
        raise config.UserError("--max_new_tokens=0 writes nothing; --logprobs would score the text")
    if not 0 < _TOP_P.value <= 1:
        raise config.UserError(f"--top_p={_TOP_P.value}: must lie in (0, 1]; 1 is off")
    if "" in _STOP.value:
        raise config.UserError("--stop is an empty string, with which every answer would end")


def _completer(writer: completion.Writer, slots: int, *ended: stops.Stop) -> completion.Completer:
    how = config.Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    asked = (*ended, *map(stops.Stop, _STOP.value))
    return completion.Completer(writer, slots, _MAX_NEW_TOKENS.value, how, asked)


class _Lines:
    """Answers to prompts, as JSON lines."""

    def __init__(self, base: pretrained.Pretrained) -> None:
        self._prompts = [completion.Prompt(_PROMPT.value, "--prompt")]
        if _PROMPTS.value is not None:
            self._prompts = completion.read_prompts(remote.path(_PROMPTS.value))
        n_new = _MAX_NEW_TOKENS.value
        self._rows = [completion.encode(base, prompt, n_new) for prompt in self._prompts]
        self._columns = completion.capacity(self._rows, base.network.max_length - n_new)
        # All of one size, so that one executable does them, with few rows of padding.
        n_batches = math.ceil(len(self._rows) / _BATCH)
        self._batch = math.ceil(len(self._rows) / n_batches)
        self._writer = completion.load(base, _ADAPTER.value, _DTYPE.value)
        self._slots = min(_SLOTS.value, self._batch)
        self._complete = _completer(self._writer, self._slots) if n_new else None

    def run(self) -> None:
        """Prints each batch as soon as it is done: what ends the command loses one at most."""
        for first in range(0, len(self._rows), self._batch):
            batch = slice(first, first + self._batch)
            prompts, rows = self._prompts[batch], self._rows[batch]
            padded = rows + rows[-1:] * (self._batch - len(rows))
            answers = self._answers(padded, first)
            scores = self._scores(padded, answers) if _LOGPROBS.value else [{}] * len(padded)
            # Not strict: answers to padding are left out.
            for prompt, answer, score in zip(prompts, answers, scores, strict=False):
                line = {"prompt": prompt.text} | answer._asdict() | score
                terminal.show(storage.json_line(line))

    def _answers(self, rows: list[list[int]], first: int) -> list[completion.Answer]:
        if self._complete is None:
            return [completion.Answer("", [], "length")] * len(rows)
        # Of its own for each batch: a prompt that comes again is drawn again.
        key = jax.random.fold_in(jax.random.key(_SEED.value), first)
        return self._complete(rows, self._columns, key)

    def _scores(
        self, rows: list[list[int]], answers: list[completion.Answer]
    ) -> list[dict[str, list]]:
        """What `--logprobs` adds to each line."""
        whole = [row + answer.tokens for row, answer in zip(rows, answers, strict=True)]
        columns = self._columns + _MAX_NEW_TOKENS.value
        at_once = scheduling.refill(self._slots)
        found = completion.log_probabilities(self._writer, whole, columns, at_once)
        return [
            {
                "prompt_tokens": row,
                "prompt_logprobs": numbers[: len(row)],
                "logprobs": numbers[len(row) :],
            }
            for row, numbers in zip(rows, found, strict=True)
        ]


class _Chat:
    """Answers to questions of stdin, as text."""

    def __init__(self, base: pretrained.Pretrained) -> None:
        room = base.network.max_length - _MAX_NEW_TOKENS.value
        if room < 1:
            raise config.UserError(
                f"--max_new_tokens={_MAX_NEW_TOKENS.value} leaves no room for a question among the "
                f"model's {base.network.max_length} positions; lower it"
            )
        pairs = _read_seeds()
        self._conversation = completion.Conversation(base.vocabulary, pairs, room)
        if pairs:
            _tell(f"{len(self._conversation.pairs)} of {len(pairs)} pairs fit and are shown")
        writer = completion.load(base, _ADAPTER.value, _DTYPE.value)
        # As in a run's answers: a model that does not end goes on with another header.
        self._complete = _completer(writer, 1, *stops.of_answer(base.vocabulary.form))

    def run(self) -> None:
        key = jax.random.key(_SEED.value)
        _tell("Ask; an empty line or Ctrl-D ends")
        for turn, question in enumerate(_questions()):
            try:
                row = self._conversation.prompt(question)
            except ValueError as error:
                _tell(str(error))
                continue
            drawn = jax.random.fold_in(key, turn)  # the same question again: another answer
            (answer,) = self._complete([row], self._conversation.capacity, drawn)
            terminal.show(answer.text.strip())
            if answer.finish_reason == "length":
                _tell(f"(cut at --max_new_tokens={_MAX_NEW_TOKENS.value})")


def _read_seeds() -> list[tuple[str, str]]:
    if not _SEEDS.value:
        return []
    pairs = files.read_pairs(_SEEDS.value)
    return [(pair.question, pair.answer) for pair in pairs]


def _questions() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        question = sys.stdin.readline().strip()
        if not question:
            return
        yield question


def _tell(text: str) -> None:
    terminal.show(text, sys.stderr)


main = command.of(generate, needs=("model",))

if __name__ == "__main__":
    command.run(main)
