"""Texts continued and scored by one model: rows of tokens in, answers out.

Prompts are tokenized, and tokens drawn, as transformers' `generate` does, but for this: of the
tokens that spell nothing (padding, unknown, begin of text) only those that end a text are drawn.
The sampling defaults of a `generation_config.json` are not read.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from isara_jax import config
from isara_jax.devices import mesh as mesh_lib
from isara_jax.files import remote
from isara_jax.formats import adapters, pretrained
from isara_jax.method import train
from isara_jax.models import decoder, lora
from isara_jax.sampler import decode, sampling, scheduling
from isara_jax.tasks import rows
from isara_jax.text import encoding, packing, stops, tokens

_MULTIPLE = 64  # rows are padded to a multiple of it, so that few shapes are compiled
_A_PROMPT = '{"prompt": "..."}'
_QUESTION_TOKENS = 256  # room that demonstrations leave for a question and its headers


class Answer(NamedTuple):
    """What a model wrote.

    Attributes:
      text: what follows the prompt, without the stop string.
      tokens: ids of the text. Where a stop string begins inside a token, the bytes before it are
        spelled by other tokens.
      finish_reason: "stop" (the model ended the text, or wrote a stop string) or "length".
    """

    text: str
    tokens: list[int]
    finish_reason: str


class Writer(NamedTuple):
    """A model on the mesh: `variables` are those of `Module.apply`, with adapter or without."""

    base: pretrained.Pretrained
    model: decoder.Decoder
    variables: dict[str, Any]
    mesh: Mesh


def load(base: pretrained.Pretrained, adapter: str, dtype: str) -> Writer:
    """Places a model on the first device.

    Args:
      base: the model.
      adapter: a PEFT folder, here or at a URL, or empty.
      dtype: as for `pretrained.choose_dtype`.

    Raises:
      ValueError: weights or adapter are damaged or of another model.
    """
    mesh = mesh_lib.make()
    trainable, train = None, config.Train()
    if adapter:  # read first: it is small
        found, settings = adapters.load(adapters.locate(adapter), base.network)
        trainable = jax.device_put(found, mesh_lib.replicated(mesh))
        train = config.Train(lora=settings)
    model, params = base.load(dtype, mesh)
    return Writer(base, model, lora.variables(params, trainable, train), mesh)


# --- prompts -------------------------------------------------------------------------------------


class Prompt(NamedTuple):
    """A text, and where it comes from, for messages."""

    text: str
    where: str


def read_prompts(path: remote.Path) -> list[Prompt]:
    """Reads a file of JSON lines, each an object with `prompt`; other fields are ignored.

    Raises:
      ValueError: the file or a line of it is unusable; the message says where.
    """
    prompts = []
    for line, row in rows.json_rows(path, _A_PROMPT):
        text, where = row.get("prompt"), f"{path}:{line}"
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: prompt: found {rows.shown(text)}, a text is expected; write {_A_PROMPT}"
            )
        prompts.append(Prompt(text, where))
    if not prompts:
        raise ValueError(f"{path}: no prompt in it; write one {_A_PROMPT} a line")
    return prompts


def encode(base: pretrained.Pretrained, prompt: Prompt, max_new_tokens: int) -> list[int]:
    """Token ids of a prompt, with the special tokens that transformers adds; at least one.

    Raises:
      ValueError: it is no text, has no token, or leaves no room for the answer.
    """
    tokenizer, limit = base.vocabulary.tokenizer, base.network.max_length
    try:
        prompt.text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{prompt.where}: the prompt is no text ({error.reason})") from error
    ids = tokenizer.encode(prompt.text)
    if not ids and tokenizer.bos_token_id is None:
        raise ValueError(
            f"{prompt.where}: the prompt is empty, and the tokenizer has no token that begins a "
            "text; write something"
        )
    if len(ids) + max_new_tokens > limit:
        raise ValueError(
            f"{prompt.where}: the prompt has {len(ids)} tokens, with --max_new_tokens="
            f"{max_new_tokens} more than the model's {limit} positions; shorten it or ask for fewer"
        )
    return ids or [tokenizer.bos_token_id]


def capacity(rows: Iterable[Sequence[int]], limit: int) -> int:
    """Columns for `rows`, none of which is longer than `limit`."""
    longest = max(len(row) for row in rows)
    return min(encoding.round_up(longest, _MULTIPLE), limit)


class Conversation:
    """Questions in the template behind demonstrations, each a prompt of at most `capacity` tokens.

    Args:
      vocabulary: the tokenizer.
      pairs: questions and answers to show, the first ones first; what does not fit is left out
        whole.
      room: tokens that prompts may have.
    """

    def __init__(
        self, vocabulary: tokens.Vocabulary, pairs: Sequence[tuple[str, str]], room: int
    ) -> None:
        self._vocabulary, self.pairs = vocabulary, []
        kept = min(_QUESTION_TOKENS, room // 2)
        shown = self._encode(None)
        for pair in pairs:
            self.pairs.append(pair)
            longer = self._encode(None)
            if len(longer) + kept <= room:
                shown = longer
            else:
                self.pairs.pop()
        self.capacity = min(encoding.round_up(len(shown) + kept, _MULTIPLE), room)

    def _encode(self, question: str | None) -> list[int]:
        return self._vocabulary.prompt(self.pairs, question)

    def prompt(self, question: str) -> list[int]:
        """Token ids of what `tokens.render` writes for a question.

        Raises:
          ValueError: it is too long.
        """
        ids = self._encode(question)
        if len(ids) > self.capacity:
            room = self.capacity - len(self._encode(None))
            found = len(ids) - len(self._encode(None))
            raise ValueError(f"the question has {found} tokens, {room} fit; shorten it")
        return ids


# --- answers -------------------------------------------------------------------------------------


class Completer:
    """Continues rows of tokens; compiles once for each shape.

    Args:
      writer: the model.
      slots: rows decoded at once.
      max_new_tokens: the most tokens of an answer.
      how: how tokens are drawn.
      ended: what ends an answer, beside what ends it by the model's own files.
    """

    def __init__(
        self, writer: Writer, slots: int, max_new_tokens: int, how: config.Sampling,
        ended: Sequence[stops.Stop],
    ) -> None:  # fmt: skip
        self._writer, self._whole = writer, mesh_lib.replicated(writer.mesh)
        self._ended, vocabulary = tuple(ended), writer.base.vocabulary
        sampler = decode.Sampler(
            model=writer.model,
            slots=slots,
            refill=scheduling.refill(slots),
            max_tokens=max_new_tokens,
            steps_per_check=scheduling.steps_per_check(writer.mesh),
            mesh=writer.mesh,
        )
        self.generate = jax.jit(
            functools.partial(decode.generate, sampler),
            compiler_options=mesh_lib.compiler_options(sampler.mesh),
        )
        table = stops.stop_table(vocabulary.bytes, vocabulary.ends, self._ended)
        self._drawing = jax.device_put(
            (config.traced(sampling.SamplingParams, how), table), self._whole
        )

    def __call__(self, rows: Sequence[Sequence[int]], columns: int, key: jax.Array) -> list[Answer]:
        """Answers in the order of `rows`, which are padded to `columns`."""
        prompts, key = jax.device_put(
            (packing.Prompts(*packing.pad(rows, columns)), key), self._whole
        )
        out = jax.device_get(self.generate(self._writer.variables, prompts, key, *self._drawing))
        found = zip(rows, out.tokens, out.lengths, out.finish, strict=True)
        return [self._answer(row, ids[:n].tolist(), int(how)) for row, ids, n, how in found]

    def _answer(self, prompt: Sequence[int], drawn: list[int], finish: int) -> Answer:
        vocabulary = self._writer.base.vocabulary
        spelled = stops.text_before(vocabulary.bytes, drawn, finish, self._ended)
        text = spelled.decode("utf-8", errors="replace")
        if not vocabulary.spell(prompt):
            text = text.removeprefix(_before_texts(vocabulary))
        reason = "length" if finish == stops.UNFINISHED else "stop"
        return Answer(text, _tokens_of(spelled, drawn, vocabulary.bytes), reason)


def _tokens_of(text: bytes, drawn: Sequence[int], spelled: Sequence[bytes]) -> list[int]:
    """The tokens drawn of a text; what it has of the last one, by the longest that spell it."""
    kept: list[int] = []
    for token in drawn:
        if not text.startswith(spelled[token]) or not text:
            break
        kept.append(token)
        text = text[len(spelled[token]) :]
    while text:
        best = max(
            (i for i, piece in enumerate(spelled) if piece and text.startswith(piece)),
            key=lambda i: len(spelled[i]), default=None,
        )  # fmt: skip
        if best is None:
            break  # a byte no token spells: the text before it is kept
        kept.append(best)
        text = text[len(spelled[best]) :]
    return kept


def _before_texts(vocabulary: tokens.Vocabulary) -> str:
    """What the tokenizer writes before a text, and leaves out again of what it decodes."""
    ids = vocabulary.tokenizer.encode("a", add_special_tokens=False)
    return vocabulary.decode(ids).removesuffix(vocabulary.tokenizer.decode(ids))


# --- scores --------------------------------------------------------------------------------------


def log_probabilities(
    writer: Writer, rows: Sequence[Sequence[int]], columns: int, rows_at_once: int
) -> list[list[float | None]]:
    """Natural log-probability of each token given those before it, at temperature 1.

    The softmax is over the whole vocabulary: of tokens that are never drawn, too.

    Args:
      writer: the model.
      rows: at least one token each.
      columns: tokens that each is padded to, at most the model's positions.
      rows_at_once: how many are read at once.

    Returns:
      As many numbers a row as tokens; the first, which has nothing before it, is None.
    """
    ids = jax.device_put(packing.pad(rows, columns).ids, mesh_lib.replicated(writer.mesh))
    losses = jax.device_get(_losses(writer.model, writer.mesh, rows_at_once, writer.variables, ids))
    found = 0.0 - losses  # so that none is -0
    return [[None, *f[: len(row) - 1].tolist()] for f, row in zip(found, rows, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _losses(
    model: decoder.Decoder, mesh: Mesh, rows_at_once: int, variables: dict, ids: jax.Array
) -> jax.Array:
    """Cross-entropy of `ids [N, T]` from the second on, in nats, `[N, T - 1]`."""

    def score(rows: jax.Array) -> jax.Array:
        hidden, _ = model.apply(variables, rows)
        return train.token_losses(model, variables, hidden[:, :-1], rows[:, 1:])

    return mesh_lib.map_rows(score, ids, rows_at_once, mesh)
