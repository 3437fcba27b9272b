r"""A chat model's own template as a `tokens.Form`, taken from conversations that it has rendered.

A template is a program (`rendering`), and what it writes is nearly always a few fixed pieces around
texts. They are found by markers in place of texts, and tried: on real texts the pieces must give
what the template does, to the character and, as tokens, to the id. Of ChatML:

    <|im_start|>user\n|q|<|im_end|>\n<|im_start|>assistant\n|a|<|im_end|>\n<|im_start|>user\n|q| ...
    the first header     seam behind a question              seam behind an answer

An answer ends with the first special token behind it; where there is none, with EOS. Blanks at the
end of a header go with the text, as in `PLAIN`.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from isara_jax import config
from isara_jax.files import confined
from isara_jax.shell import terminal
from isara_jax.text import marked, rendering, special_tokens, tokens

Kind = Literal["plain", "chat", "chat_with_system"]
_MARKERS = [f"zq{n}vx{n}zq" for n in range(5)]
_SECONDS, _MEMORY = 20, 2 << 30  # what rendering may take; real templates: 2 s, all of imports
_SHOWN = 120  # characters of what a template inserts
# Conversations that the pieces are tried on: of several scripts, lines, and ends that merge.
_TRIED = (
    ("Why is the sky blue?", "Air scatters blue light more than red."),
    ("a", "1. One\n2. Two\n\n* three"),
    ("What is 7 * 6", "42"),
    ("¿Qué es «esto»?", "Nada…"),
    ("漢字は何ですか。", "文字です"),
    ("def f(x):\n    return x", "It returns `x`:\n\n    f(1)  # 1"),
    ("Tell me: yes or no?", '"No!" 😀'),
)
_LAST = "And then?"


class Chat(NamedTuple):
    """What a chat's template says, as `tokens.Vocabulary` takes it.

    Attributes:
      special: how texts begin and end in it.
      form: the template as text.
      question_end: the token behind a question, None if there is none.
    """

    special: special_tokens.SpecialTokens
    form: tokens.Form
    question_end: int | None


class _Rendered(NamedTuple):
    """Conversations as the template writes them, each with the header of an answer behind it.

    Attributes:
      marked: of markers; `alone`: of two questions, None where the template refuses that.
      tried: of `_TRIED`.
      day: whether it asked for the day.
    """

    marked: str
    alone: str | None
    tried: str
    day: bool


def read(
    tokenizer: PreTrainedTokenizerBase, special: special_tokens.SpecialTokens, source: str,
    kind: Kind,
) -> Chat:  # fmt: skip
    """Finds the pieces, and tries them.

    Args:
      tokenizer: the model's; tokens that the template holds become special in it, so that they
        stay text in somebody's text.
      special: how texts begin and end without the template.
      source: the tokenizer's folder, for messages.
      kind: whether it may insert texts of its own.

    Raises:
      config.ConfigError: it inserts a system turn, or the date, and `kind` does not say so.
      ValueError: there is no template, it cannot be rendered, or it is not made of fixed pieces.
    """
    found = _ask(tokenizer, source)
    pieces = _pieces(found.marked, source)
    names = _make_special(tokenizer, "".join(pieces))
    if kind != "chat_with_system":
        _check_inserted(pieces, names, found.day, source)
    form = _form(pieces, found.alone, names)
    wanted = tokens.render(_TRIED, _LAST, form)
    if found.tried.rstrip(" ") != wanted.rstrip(" "):
        raise ValueError(_refused(source, "changes texts, or goes by what they say"))
    behind = (_end(place.seam, names) for place in (form.question, form.answer))
    asked, answered = (tokenizer.convert_tokens_to_ids(end.name) if end else None for end in behind)
    eos = special.eos if answered is None else answered
    ends = tuple(sorted({*special.ends, eos}))
    return Chat(special_tokens.SpecialTokens(None, eos, ends), form, asked)


def check(vocabulary: tokens.Vocabulary) -> None:
    """Raises `ValueError` where prompts are not, id for id, what the tokenizer makes of their text.

    Texts that the tokenizer changes are left out: where they are seeds, they are refused by line.
    """
    form, tokenizer = vocabulary.form, vocabulary.tokenizer
    asked, said = zip(*_TRIED, strict=True)
    places = ((asked, form.question), (said, form.answer))
    spelled = [vocabulary.try_spellings(texts, place) for texts, place in places]
    kept = [i for i, pair in enumerate(zip(*spelled, strict=True)) if all(pair)]
    (last,) = vocabulary.try_spellings([_LAST], form.question)
    if not kept or last is None:
        raise ValueError(
            _refused(vocabulary.source, "has headers that the tokenizer joins to texts")
        )
    ours = vocabulary.head(form.question)
    ours += [token for i in kept for part in spelled for token in part[i].joined] + last.joined
    text = tokens.render([_TRIED[i] for i in kept], _LAST, form)
    theirs = tokenizer.encode(text, add_special_tokens=False)
    if ours != theirs:
        same = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        at = next(same, min(len(ours), len(theirs)))
        near = terminal.quoted(tokenizer.decode(theirs[max(at - 4, 0) : at + 4]))
        raise ValueError(
            _refused(vocabulary.source, f"has tokens that reach over an end of a text ({near})")
        )


def _refused(source: str, why: str) -> str:
    return f"{source}: its chat template {why}; use template=plain, or a model with another one"


def _ask(tokenizer: PreTrainedTokenizerBase, source: str) -> _Rendered:
    """Renders all that is to be seen of the template, in a process of its own."""
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if not isinstance(template, str):
        raise ValueError(
            f"{source}: there is no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json), or none that is the default; use template=plain"
        )
    trial = [text for pair in _TRIED for text in pair]
    asked = [(_MARKERS, False), (_MARKERS[:2], True), ([*trial, _LAST], False)]
    given = {
        "template": template, "special": tokenizer.special_tokens_map,
        "conversations": [{"texts": texts, "alone": alone} for texts, alone in asked],
    }  # fmt: skip
    try:
        answer = confined.run(
            pathlib.Path(rendering.__file__), given=json.dumps(given, default=str).encode(),
            seconds=_SECONDS, n_bytes=_MEMORY,
        )  # fmt: skip
    except confined.RefusedError as error:
        raise ValueError(_refused(source, f"cannot be rendered ({error})")) from error
    found = json.loads(answer)
    for text in (found["texts"][0], found["texts"][2]):
        if not isinstance(text, str):
            said = terminal.line(text["error"])[:300]
            raise ValueError(_refused(source, f"refuses questions and answers by turns ({said})"))
    alone = found["texts"][1]
    found["texts"][1] = alone if isinstance(alone, str) else None
    return _Rendered(*found["texts"], found["day"])


def _pieces(text: str, source: str) -> list[str]:
    """What stands before, between and behind the markers.

    Raises:
      ValueError: a marker is missing, or the pieces do not repeat.
    """
    pieces = re.split("|".join(_MARKERS), text)
    if re.findall("|".join(_MARKERS), text) != _MARKERS:
        raise ValueError(_refused(source, "does not write each text once, as it is"))
    first, to_answer, to_question, again, once_more, last = pieces
    alike = (to_answer, again), (to_question, once_more), (to_answer.rstrip(" "), last.rstrip(" "))
    for one, other in (*alike, (_lead(first), _lead(to_question))):
        if one != other:
            said = " then ".join(terminal.quoted(piece, _SHOWN) for piece in (one, other))
            raise ValueError(_refused(source, f"does not write every turn alike ({said})"))
    if not (to_answer.strip() and to_question.strip()):
        raise ValueError(_refused(source, "writes nothing between texts that could end one"))
    return pieces


def _lead(piece: str) -> str:
    """The blanks at its end."""
    return piece[len(piece.rstrip(" ")) :]


def _make_special(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, ...]:
    """The added tokens that a template holds, special from now on; blanks are just text."""
    added = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.content.strip()}
    names = sorted(set(marked.pattern(added).findall(text)))
    special_tokens.make_special(tokenizer, [added[name] for name in names])
    return tuple(names)


def _check_inserted(pieces: list[str], names: Sequence[str], day: bool, source: str) -> None:
    """Raises `config.ConfigError` where something but special tokens precedes the first header."""
    first, later = (_atoms(piece, names) for piece in (pieces[0], pieces[2]))
    while first and later and first[-1] == later[-1]:
        first, later = first[:-1], later[:-1]
    if not day and not any(atom.strip() and atom not in names for atom in first):
        return
    also = f" and asks for the day, which would be {rendering.DAY:%d %B %Y}" if day else ""
    raise config.ConfigError(
        f"config.model.template='chat': {source}: its chat template begins with "
        f"{terminal.quoted(''.join(first), _SHOWN)}{also}; prompts hold demonstrations and nothing "
        "else, so say so aloud, --config.model.template=chat_with_system, or use plain"
    )


def _atoms(text: str, names: Sequence[str]) -> list[str]:
    """Special tokens, and single characters."""
    return re.findall(f"{marked.pattern(names).pattern}|(?s:.)", text)


class _End(NamedTuple):
    """The special token behind a text, and all up to its end."""

    name: str
    whole: str


def _end(seam: str, names: Sequence[str]) -> _End | None:
    """What ends a text, if it is a special token with nothing but blanks before it."""
    found = marked.pattern(names).search(seam)
    if found is None or seam[: found.start()].strip():
        return None
    return _End(found[0], seam[: found.end()])


def _form(pieces: list[str], alone: str | None, names: tuple[str, ...]) -> tokens.Form:
    first, to_answer, to_question, *_ = pieces
    bare = [piece.rstrip(" ") for piece in (first, to_answer, to_question)]
    end = _end(to_question, names)
    question = tokens.Place(bare[0], bare[1], _lead(first))
    answer = tokens.Place(bare[1], bare[2], _lead(to_answer), end.whole if end else "")
    cut = re.split("|".join(_MARKERS[:2]), alone or "")
    known = len(cut) == 3 and cut[0] == first and cut[2].rstrip(" ") == bare[1]
    lonely = question._replace(seam=cut[1].rstrip(" ")) if known else None
    return tokens.Form(question, answer, lonely, names)
