r"""Text to tokens and back, on the host: the template and the vocabulary.

A prompt is a series of demonstrations and the start of one more, and holds nothing else:

    Question: {q}\nAnswer: {a}\n\nQuestion: {q}\nAnswer: {a}\n\nQuestion: {q}\nAnswer:

That is the `PLAIN` form; a chat model's own is another (`text.chat`), of which the same holds.

Token space is entered text by text, each encoded with what stands before and behind it, so that
prompts packed on the device by concatenation (`packing`) are, id for id, what the tokenizer makes
of the rendered text: what a model has read. Pieces are cut behind a header's colon, where a space
follows and no tokenizer used here joins the two; `Vocabulary.spellings` checks it for every text:

    Question:| {q}\nAnswer:| {a}\n\nQuestion:| {q}\nAnswer:

Text that looks like more than text cannot end an answer early:

| looks like | what happens |
|---|---|
| a special token ("</s>") | spelled with ordinary tokens, never packed as the token |
| a header inside a line ("see Question: 3") | text like any other |
| a header at the start of a line | refused where seeds are read (`tasks.files`) |
| either, while generated | special tokens but EOS are never drawn; the stop string ends the text |
"""

import functools
import re
import time
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from isara_jax.shell.terminal import line, quoted
from isara_jax.text import marked, special_tokens

# For some texts at once; a hundred times what tokenizers take.
_SECONDS, _SECONDS_A_CHARACTER = 20.0, 1e-4
QUESTION, ANSWER, SEPARATOR = "Question:", "Answer:", "\n\n"


class Place(NamedTuple):
    """Where a text stands in a template.

    Attributes:
      header: before it, up to where the tokenizer joins nothing with the text.
      seam: behind it, up to the next text's own such place.
      lead: the rest of the header: blanks, which go with the text.
      end: what a sequence that stops behind this text ends with, up to and with the token that
        ends texts; empty: that token alone.
    """

    header: str
    seam: str
    lead: str = " "
    end: str = ""


class Form(NamedTuple):
    """A template as text.

    Attributes:
      question, answer: places. The question's header is the first one's, and holds whatever else
        a prompt begins with.
      alone: that of a question among questions without answers; None: there is no such place.
      special: names of the special tokens in it.
    """

    question: Place
    answer: Place
    alone: Place | None
    special: tuple[str, ...] = ()


IN_QUESTION = Place(QUESTION, f"\n{ANSWER}")
IN_ANSWER = Place(ANSWER, SEPARATOR + QUESTION)
ALONE = Place(QUESTION, SEPARATOR + QUESTION)  # a question among questions without answers
PLAIN = Form(IN_QUESTION, IN_ANSWER, ALONE)


def render(
    pairs: Sequence[tuple[str, str]], question: str | None = None, form: Form = PLAIN
) -> str:
    """The text of demonstrations and of the prompt for a question's answer or for a new question.

    Without `question` the text ends with the header of the next one.
    """

    def placed(text: str, place: Place) -> str:
        return f"{place.lead}{text}{place.seam}"

    shown = "".join(placed(q, form.question) + placed(a, form.answer) for q, a in pairs)
    asked = "" if question is None else placed(question, form.question)
    return f"{form.question.header}{shown}{asked}"


@functools.cache
def _byte_of_character() -> dict[int, int]:
    """The byte-level BPE alphabet of GPT-2, as `str.translate` wants it, to Latin-1.

    Printable bytes stand for themselves, the others for characters from U+0100 on. A character of
    Latin-1 outside the alphabet goes where Latin-1 ends.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    return dict.fromkeys(others, 0x100) | {0x100 + i: b for i, b in enumerate(others)}


def _byte_level(token: str) -> bytes:
    """The bytes of a byte-level token; one outside the alphabet is written as it reads."""
    try:
        return token.translate(_byte_of_character()).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def _byte_fallback(token: str) -> bytes:
    """The bytes of a SentencePiece token, `<0x0A>` or text with "▁" for a space."""
    byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
    return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()


def _same(spelled: bytes, texts: Sequence[str]) -> bool:
    """Whether bytes are those of a text, or of its composed form, as Qwen's normalizer has it.

    Args:
      spelled: without special tokens.
      texts: what stands between special tokens. There tokenizers leave blanks out, or write one.
    """
    if len(texts) == 1:
        return spelled in (texts[0].encode(), unicodedata.normalize("NFC", texts[0]).encode())
    first, *others, last = texts
    inner = [first.rstrip(), *(text.strip() for text in others), last.lstrip()]

    def written(texts: Sequence[str]) -> bool:
        return bool(re.fullmatch(rb"\s*".join(re.escape(t.encode()) for t in texts), spelled))

    return written(inner) or written([unicodedata.normalize("NFC", text) for text in inner])


class Spelling(NamedTuple):
    """A text as token ids, with the space behind its header.

    Attributes:
      bare: where nothing follows.
      joined: with the seam that its place puts behind it, up to the next header's colon. It need
        not begin with `bare`: "." and a blank line, or spaces and a newline, may be one token.
    """

    bare: list[int]
    joined: list[int]


class UnspellableError(ValueError):
    """A text that the tokenizer changes, or joins with its header; `text` is it."""

    def __init__(self, source: str, text: str) -> None:
        super().__init__(
            f"{source}: {text[:60]!r} does not survive tokenization; remove the characters that "
            "the tokenizer changes (one that is lossy, or joins the colon of a header with what "
            "follows, is not supported)"
        )
        self.text = text


class Vocabulary:
    """A tokenizer seen as what the device needs: ids, their bytes, and texts in the template.

    Args:
      tokenizer: any Hugging Face fast tokenizer, byte-level or SentencePiece with byte fallback.
      size: rows of the model's embedding.
      source: the tokenizer's folder, for messages.
      special: how texts begin and end; None for what the tokenizer alone says.
      form: the template of questions and answers.
      question_end: a token that ends a question, beside what ends any text; or None.

    Raises:
      ValueError: the tokenizer does not fit the model, or its tokens cannot be read as bytes.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, size: int, source: str,
        special: special_tokens.SpecialTokens | None = None, form: Form = PLAIN,
        question_end: int | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer, self.size, self.source, self.form = tokenizer, size, source, form
        self._marked = marked.Marked(tokenizer, form.special)
        needed = 1 + max(tokenizer.get_vocab().values())  # more than tokens, where ids have gaps
        if needed > size:
            raise ValueError(
                f"{source}: the tokenizer has {needed} tokens, the model's embedding {size} rows; "
                "they do not belong together"
            )
        self.bos, self.eos, self.ends = special or special_tokens.of(tokenizer, source)
        more = () if question_end is None else (question_end,)
        self.question_ends = tuple(sorted({*self.ends, *more}))
        self.bytes = self._token_bytes()

    @property
    def begin(self) -> tuple[int, ...]:
        """What a text begins with: one token, or none."""
        return () if self.bos is None else (self.bos,)

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokenizer's own ids of whole texts, without special tokens.

        What looks like a special token is text: "</s>" in a seed never ends a sequence.
        """
        return self._timed(self.tokenizer, texts)

    def prompt(self, pairs: Sequence[tuple[str, str]], question: str | None = None) -> list[int]:
        """Token ids of what `render` writes in this form, with what a text begins with."""
        special = self.form._replace(
            question=self._mark(self.form.question), answer=self._mark(self.form.answer)
        )
        shown = [(self._clean(q), self._clean(a)) for q, a in pairs]
        text = render(shown, None if question is None else self._clean(question), special)
        return [*self.begin, *self._in_form([text])[0]]

    def _mark(self, place: Place) -> Place:
        """A place with its special tokens marked as such."""
        return Place(*map(self._marked.mark, place))

    def _clean(self, text: str) -> str:
        """A text in which nothing is marked."""
        return text.replace(marked.MARK, "\ufffd") if self.form.special else text

    def _spelled(self, text: str, place: Place, end: str) -> list[str]:
        """What is to be read of a text in its place, between the form's special tokens."""
        special = marked.pattern(self.form.special)
        first, *others = special.split(getattr(place, end))
        before = [""] if special.split(place.header)[-1].strip() == "" else []
        return [*before, f"{place.lead}{text}{first}", *others]

    def _in_form(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts in which the form's special tokens are marked."""
        return [self._marked.ids(row) for row in self._timed(self._marked.tokenizer, texts)]

    def _timed(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        while rest := texts[len(ids) :]:
            # One, two, four ... at once: a tokenizer that takes hours is noticed before.
            now, since = list(rest[: len(ids) + 1]), time.monotonic()
            ids += self._ids(tokenizer, now)
            if time.monotonic() - since > _SECONDS + _SECONDS_A_CHARACTER * sum(map(len, now)):
                raise ValueError(
                    f"{self.source}: the tokenizer takes {time.monotonic() - since:.0f} s for "
                    f"texts such as {quoted(now[0])}; a pattern in it backtracks: get it again "
                    "from a source that you trust"
                )
        return ids

    def _ids(self, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
        try:
            return tokenizer(
                texts, add_special_tokens=False, split_special_tokens=True,
                return_attention_mask=False, verbose=False,
            )["input_ids"]  # fmt: skip
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust libraries, no `Exception`
                raise
            raise ValueError(
                f"{self.source}: the tokenizer fails ({line(str(error))}) on texts such as "
                f"{quoted(texts[0])}; get it again from a source that you trust"
            ) from error

    def head(self, place: Place) -> list[int]:
        """Ids of a place's header."""
        return self._in_form([self._marked.mark(place.header)])[0]

    def try_spellings(self, texts: Sequence[str], place: Place) -> list[Spelling | None]:
        """Token ids of `texts` as they stand in the template.

        None for a text that does not decode to itself, or merges with its header.
        """
        at, head = self._mark(place), self.head(place)
        rows = [(text, end) for text in texts for end in ("end", "seam")]
        ids = self._in_form([
            f"{at.header}{at.lead}{self._clean(text)}{getattr(at, end)}" for text, end in rows
        ])  # fmt: skip
        good = [
            row[: len(head)] == head
            and _same(self.spell(row[len(head) :]), self._spelled(text, place, end))
            for (text, end), row in zip(rows, ids, strict=True)
        ]
        cut = [row[len(head) :] for row in ids]
        if place.end:  # whose last token is added wherever a sequence ends
            cut[::2] = [row[:-1] for row in cut[::2]]
        return [
            Spelling(*cut[i : i + 2]) if all(good[i : i + 2]) else None
            for i in range(0, len(rows), 2)
        ]

    def spellings(self, texts: Sequence[str], place: Place) -> list[Spelling]:
        """As `try_spellings`.

        Raises:
          UnspellableError: a text cannot be spelled there.
        """
        found = self.try_spellings(texts, place)
        if None in found:
            raise UnspellableError(self.source, texts[found.index(None)])
        return found

    def spell(self, ids: Sequence[int]) -> bytes:
        """The bytes of token ids; special tokens spell nothing."""
        return b"".join(self.bytes[int(i)] for i in ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 are shown as U+FFFD."""
        return self.spell(ids).decode("utf-8", errors="replace")

    def _token_bytes(self) -> list[bytes]:
        spell = self._speller()
        added = self.tokenizer.added_tokens_decoder
        special = {*self.tokenizer.all_special_ids, *self.begin, *self.ends} | {
            i for i, t in added.items() if t.special
        }
        result = [b""] * self.size
        for token, index in self.tokenizer.get_vocab().items():
            if index in added:  # written as it reads, in neither alphabet
                result[index] = b"" if index in special else token.encode()
            elif index not in special:
                result[index] = spell(token)
        return result

    def _speller(self) -> Callable[[str], bytes]:
        """How the tokens are written, by what the tokenizer decodes them with."""
        decoder = repr(self.tokenizer.backend_tokenizer.decoder) if self.tokenizer.is_fast else ""
        if "ByteLevel" in decoder:
            return _byte_level
        if "ByteFallback" in decoder:
            return _byte_fallback
        raise ValueError(
            f"{self.source}: neither a byte-level nor a byte-fallback tokenizer; the bytes of its "
            "tokens are not known, so stop strings cannot be tracked"
        )
