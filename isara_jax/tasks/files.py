"""Somebody's own files: seeds, questions with choices, lines of JSON.

They are read strictly: what is wrong is an error that names its line.
"""

import codecs
import csv
import functools
import io
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from isara_jax import remote, tokens
from isara_jax.tasks.base import Choice, Pair

FIELDS = ("question", "answer")
_A_PAIR = '{"question": "…", "answer": "…"}'
_A_CHOICE = '{"question": "…", "choices": ["…", "…"], "answer": 0}'
MINIMUM = 2
# At the start of a line inside a text a header would look like the end of it, to the model and to
# the search for a stop (`stops.Stop`).
_HEADER = re.compile(rf"\n\s*({tokens.QUESTION}|{tokens.ANSWER})")


class SeedError(ValueError):
    """A file cannot be used; the message says where, why and what to do."""


def read_pairs(path: str | remote.Path) -> tuple[Pair, ...]:
    """Reads question–answer pairs, stripped at both ends, in the order of the file.

    Args:
      path: a `.jsonl` file with one object a line, or a `.csv` file with a header row; both with
        `question` and `answer`. Further fields, such as an id, are ignored.

    Raises:
      SeedError: the file or one of its pairs is unusable, or there are fewer than two pairs.
    """
    path = _existing(path, tuple(_READERS))
    pairs: list[Pair] = []
    lines: dict[str, int] = {}  # line of each question, by what makes two questions the same
    for line, row in _rows(path):
        pair = Pair(*(_text(f"{path}:{line}: {name}", row, name) for name in FIELDS))
        first = lines.setdefault(" ".join(pair.question.split()).casefold(), line)
        if first != line:
            raise SeedError(
                f"{path}:{line}: question: found the question of line {first} again "
                f"({_shown(pair.question)}); remove one of the two"
            )
        pairs.append(pair)
    if len(pairs) < MINIMUM:
        raise SeedError(
            f"{path}: found {len(pairs)} pair(s), expected at least {MINIMUM}; "
            "prompts are made of demonstrations, so add more"
        )
    return tuple(pairs)


def read_choices(path: str | remote.Path) -> tuple[Choice, ...]:
    """Reads questions with choices.

    Args:
      path: a `.jsonl` file with `question`, `choices` (a list of texts) and `answer` (the number of
        the right one, from 0) a line. Further fields are ignored.

    Raises:
      SeedError: the file or one of its lines is unusable.
    """
    path = _existing(path, (".jsonl",))
    found = []
    for line, row in json_rows(path, _A_CHOICE):
        question = _text(f"{path}:{line}: question", row, "question")
        given, answer = row.get("choices"), row.get("answer")
        if not isinstance(given, list) or len(given) < 2:
            raise SeedError(
                f"{path}:{line}: choices: found {_shown(given)}, expected a list of several texts"
            )
        texts = tuple(
            _text(f"{path}:{line}: choices[{i}]", {"text": text}, "text")
            for i, text in enumerate(given)
        )
        whole = isinstance(answer, int) and not isinstance(answer, bool)
        if not whole or not 0 <= answer < len(texts):
            raise SeedError(
                f"{path}:{line}: answer: found {_shown(answer)}, expected the number of the right "
                f"choice, 0 to {len(texts) - 1}"
            )
        found.append(Choice(question, texts, answer))
    if not found:
        raise SeedError(f"{path}: no question in it; write one {_A_CHOICE} a line")
    return tuple(found)


def json_rows(path: remote.Path, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines and the numbers of their lines; blank ones are skipped.

    Args:
      path: the file.
      example: of a line, for messages.

    Raises:
      SeedError: the file or one of its lines is not of this kind.
    """
    # Not splitlines(): JSON strings may hold other line separators, such as U+2028, as they are.
    for line, source in enumerate(_read_text(path).split("\n"), 1):
        if not source.strip():
            continue
        try:
            row = json.loads(source)
        except json.JSONDecodeError as error:
            raise SeedError(
                f"{path}:{line}: malformed JSON at column {error.colno} ({error.msg}): found "
                f"{_shown(source)}; write one whole object a line, with line breaks as \\n"
            ) from error
        if not isinstance(row, dict):
            raise SeedError(
                f"{path}:{line}: found {_shown(row)} ({type(row).__name__}), expected an object; "
                f"write {example}"
            )
        yield line, row


def locate(path: str | remote.Path, question: str) -> str:
    """`file:line` of a question that `read_pairs` has read, for messages."""
    path = remote.path(path)
    lines = (line for line, row in _rows(path) if row["question"].strip() == question)
    return f"{path}:{next(lines)}"


def _existing(path: str | remote.Path, suffixes: tuple[str, ...]) -> remote.Path:
    """`path`, if it is a file with one of the suffixes."""
    path, kinds = remote.path(path), " or ".join(suffixes)
    if isinstance(path, pathlib.Path) and path.is_dir():
        raise SeedError(f"{path}: found a directory; give a {kinds} file")
    if isinstance(path, pathlib.Path) and not path.exists():
        raise SeedError(f"{path}: no such file; check the path (it is relative to {path.cwd()})")
    if path.suffix.lower() not in suffixes:
        raise SeedError(
            f"{path}: found the suffix {path.suffix!r}, expected {kinds}; "
            "convert or rename the file"
        )
    return path


def _rows(path: remote.Path) -> Iterator[tuple[int, dict]]:
    return _READERS[path.suffix.lower()](path)


def _read_text(path: remote.Path) -> str:
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise SeedError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SeedError(
            f"{path}:{line}: found the byte 0x{data[error.start]:02x}, which is no UTF-8; "
            "save the file as UTF-8"
        ) from error


def _csv_rows(path: remote.Path) -> Iterator[tuple[int, dict]]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1  # where the row starts: a quoted cell may span many lines
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise SeedError(
                f"{path}:{line}: malformed CSV ({error}) in the row that starts here; "
                'close every quote, and write a quote inside a cell as ""'
            ) from error
        if cells is None:
            return
        if not cells:
            continue
        if header:
            if len(cells) != len(header):
                raise SeedError(
                    f"{path}:{line}: found {len(cells)} cell(s), expected {len(header)} "
                    f"({', '.join(header)}); put texts with commas or line breaks in double quotes"
                )
            yield line, dict(zip(header, cells, strict=True))
            continue
        header = [cell.strip() for cell in cells]
        for name in FIELDS:
            if header.count(name) != 1:
                raise SeedError(
                    f"{path}:{line}: {name}: found {header.count(name)} columns of this name in "
                    f"{header}, expected one; make the first row: question,answer"
                )


_READERS = {".jsonl": functools.partial(json_rows, example=_A_PAIR), ".csv": _csv_rows}


def _text(where: str, row: dict, name: str) -> str:
    """The field `name` of a row, checked and stripped; `where` starts the messages."""
    if name not in row:
        raise SeedError(f"{where}: missing; found the fields {sorted(row)}; add {name!r}")
    value = row[name]
    if not isinstance(value, str):
        raise SeedError(
            f"{where}: found {_shown(value)} ({type(value).__name__}), expected a string; "
            "put it in double quotes"
        )
    odd = next((c for c in value if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    if odd is not None:
        raise SeedError(
            f"{where}: found the character U+{ord(odd):04X} (NUL or half of a surrogate pair), "
            "which is no text; remove it"
        )
    value = value.strip()
    if not value:
        raise SeedError(f"{where}: found an empty text; fill it in or remove the line")
    if header := _HEADER.search(value):
        raise SeedError(
            f"{where}: found a line that starts with {header[1]!r}, a header of our prompts, "
            "which could end the text early; reword that line"
        )
    return value


def _shown(value: object) -> str:
    """A value for a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
