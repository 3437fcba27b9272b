"""Somebody's own files: seeds, prompts, questions with choices, lines of JSON, tables.

They are read strictly: what is wrong is an error that names its line. What is merely another habit
is read: a table with other separators, names in capitals, blanks around them, further columns.
"""

import codecs
import csv
import io
import json
import pathlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from isara_jax.files import remote, storage
from isara_jax.tasks.base import Choice, Pair

FIELDS = ("question", "answer")
PROMPT = ("prompt", "question")  # either
LABEL = "label"  # of a prompt
SAFE, UNSAFE = "safe", "unsafe"
_A_PAIR = '{"question": "…", "answer": "…"}'
_A_PROMPT = '{"prompt": "…", "label": "unsafe"}'
_A_CHOICE = '{"question": "…", "choices": ["…", "…"], "answer": 0}'
_SEPARATORS = ",;\t|"
_REWRITE = (
    "write one object a line: python -c 'import json, sys; "
    "[print(json.dumps(row)) for row in json.load(sys.stdin)]' < FILE.json > FILE.jsonl"
)
MINIMUM = 2
# What programs write for a cell that is empty.
_NOTHING = ("nan", "NaN", "null", "NULL", "None", "<NA>", "#N/A")
# The template's headers (`text.tokens`). At the start of a line inside a text one would look
# like the end of it, to the model and to the search for a stop (`stops.Stop`).
HEADERS = ("Question:", "Answer:")
_HEADER = re.compile(rf"\n\s*({'|'.join(HEADERS)})")


class SeedError(ValueError):
    """A file cannot be used; the message says where, why and what to do."""


class Prompt(NamedTuple):
    """A prompt without a reference: its line in the file, its text, and its label or ""."""

    line: int
    text: str
    label: str


def read_pairs(path: str | remote.Path) -> tuple[Pair, ...]:
    """Reads question–answer pairs, stripped at both ends, in the order of the file.

    Args:
      path: a `.jsonl` file with one object a line, or a `.csv` or `.tsv` file with a header row
        and commas, semicolons, tabs or bars between the cells; with `question` and `answer`, in
        capitals or not. Further fields, such as an id, are ignored.

    Raises:
      SeedError: the file or one of its pairs is unusable, or there are fewer than two pairs.
    """
    path = _existing(path, _SUFFIXES)
    pairs: list[Pair] = []
    lines: dict[str, int] = {}  # line of each question, by what makes two questions the same
    for line, row in _rows(path, tuple((name,) for name in FIELDS), _A_PAIR):
        pair = Pair(*(_text(f"{path}:{line}: {name}", row, name) for name in FIELDS))
        first = lines.setdefault(" ".join(pair.question.split()).casefold(), line)
        if first != line:
            raise SeedError(
                f"{path}:{line}: question: found the question of line {first} again "
                f"({shown(pair.question)}); remove one of the two"
            )
        pairs.append(pair)
    if len(pairs) < MINIMUM:
        raise SeedError(
            f"{path}: found {len(pairs)} pair(s), expected at least {MINIMUM}; "
            "prompts are made of demonstrations, so add more"
        )
    return tuple(pairs)


def read_prompts(path: str | remote.Path) -> tuple[Prompt, ...]:
    """Reads prompts without references, in the order of the file.

    Args:
      path: a file as for `read_pairs`, with `prompt` (or `question`) and perhaps `label`, `safe` or
        `unsafe`, in capitals or not; other labels come back as they are. Further fields are
        ignored.

    Raises:
      SeedError: the file or a prompt is unusable, or it has labels and none is one of the two.
    """
    path = _existing(path, _SUFFIXES)
    found = []
    for line, row in _rows(path, (PROMPT,), _A_PROMPT, also=(LABEL,)):
        name = next((name for name in PROMPT if name in row), PROMPT[0])
        text = _string(f"{path}:{line}: {name}", row, name)
        found.append(Prompt(line, text, _label(f"{path}:{line}: {LABEL}", row.get(LABEL))))
    if not found:
        raise SeedError(f"{path}: no prompt in it; write one {_A_PROMPT} a line")
    odd = next((prompt for prompt in found if prompt.label), None)
    if odd and not any(prompt.label in (SAFE, UNSAFE) for prompt in found):
        raise SeedError(
            f"{path}:{odd.line}: label: found {shown(odd.label)}, and no {SAFE!r} or {UNSAFE!r} "
            "in the file; write one of the two, or remove the labels"
        )
    return tuple(found)


def _label(where: str, value: object) -> str:
    """A prompt's label, or "" where it has none; `where` starts the message."""
    if value is not None and not isinstance(value, str):
        raise SeedError(
            f"{where}: found {shown(value)}, expected {SAFE!r} or {UNSAFE!r} (prompts with another "
            "text are passed over); write one of the two, in double quotes, or remove the labels"
        )
    label = "" if value is None or value.strip() in _NOTHING else value.strip()
    return label.casefold() if label.casefold() in (SAFE, UNSAFE) else label


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
                f"{path}:{line}: choices: found {shown(given)}, expected a list of several texts"
            )
        texts = tuple(
            _text(f"{path}:{line}: choices[{i}]", {"choice": text}, "choice")
            for i, text in enumerate(given)
        )
        whole = isinstance(answer, int) and not isinstance(answer, bool)
        if not whole or not 0 <= answer < len(texts):
            raise SeedError(
                f"{path}:{line}: answer: found {shown(answer)}, expected the number of the right "
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
    text = _read_text(path)
    if text.lstrip().startswith("["):
        line = 1 + text[: text.index("[")].count("\n")
        raise SeedError(
            f"{path}:{line}: found a JSON array, expected one whole object a line, such as "
            f"{example}; {_REWRITE}"
        )
    # Not splitlines(): JSON strings may hold other line separators, such as U+2028, as they are.
    for line, source in enumerate(text.split("\n"), 1):
        if not source.strip():
            continue
        try:
            row = storage.parse_json(source)
        except storage.AmbiguousError as error:
            raise SeedError(f"{path}:{line}: {error}") from error
        except (ValueError, RecursionError) as error:
            where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise SeedError(
                f"{path}:{line}: malformed JSON{where} ({getattr(error, 'msg', error)}): found "
                f"{shown(source)}; write one whole object a line, with line breaks as \\n"
            ) from error
        if not isinstance(row, dict):
            raise SeedError(
                f"{path}:{line}: found {shown(row)}, expected an object; write {example}"
            )
        yield line, row


def locate(path: str | remote.Path, question: str) -> str:
    """`file:line` of a question that `read_pairs` has read, for messages."""
    path = remote.path(path)
    rows = _rows(path, tuple((name,) for name in FIELDS), _A_PAIR)
    return f"{path}:{next(line for line, row in rows if row['question'].strip() == question)}"


def _existing(path: str | remote.Path, suffixes: tuple[str, ...]) -> remote.Path:
    """`path`, if it is a file with one of the suffixes."""
    path, kinds = remote.path(path), ", ".join(suffixes[:-1]) + " or " * (len(suffixes) > 1)
    kinds += suffixes[-1]
    if isinstance(path, pathlib.Path) and path.is_dir():
        raise SeedError(f"{path}: found a directory; give a {kinds} file")
    if isinstance(path, pathlib.Path) and not path.exists():
        what = "a link that leads to no file" if path.is_symlink() else "no such file"
        raise SeedError(f"{path}: {what}; check the path (it is relative to {path.cwd()})")
    if path.suffix.lower() not in suffixes:
        cure = "convert or rename the file"
        if path.suffix.lower() == ".json":
            cure = f"rename it if it has one object a line, and of an array {_REWRITE}"
        raise SeedError(f"{path}: found the suffix {path.suffix!r}, expected {kinds}; {cure}")
    return path


def _rows(
    path: remote.Path, wanted: Sequence[Sequence[str]], example: str, also: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines and fields by their names in lower case, of a file of either kind.

    Args:
      path: the file.
      wanted: the columns of a table that must be there, each by its possible names.
      example: of a line of JSON, for messages.
      also: further fields that are read where they are there.
    """
    read = {*also, *(name for names in wanted for name in names)}
    if path.suffix.lower() != ".jsonl":
        yield from _table_rows(path, wanted, read)
        return
    for line, row in json_rows(path, example):
        _check_once(f"{path}:{line}", list(row), read)
        yield line, {_plain(name): value for name, value in row.items()}


def _check_once(where: str, names: Sequence[str], read: Collection[str]) -> None:
    """Raises `SeedError` where a field that is read is there under several spellings."""
    for name in sorted(read):
        if len(found := [spelt for spelt in names if _plain(spelt) == name]) > 1:
            raise SeedError(f"{where}: {name}: found {len(found)} of it, {found}; keep one")


def _plain(name: str) -> str:
    """A field's name without capitals and the blanks around it."""
    return name.strip().casefold()


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


def _table_rows(
    path: remote.Path, wanted: Sequence[Sequence[str]], read: Collection[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table behind its header, by the separator that makes columns of the header."""
    text = _read_text(path)
    line, separator, header = _header(path, text, wanted)
    _check_once(f"{path}:{line}", header, read)
    for number, cells in _cells(path, text, separator):
        if number == line or not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise SeedError(
                f"{path}:{number}: found {len(cells)} cell(s), expected {len(header)} "
                f"({', '.join(header)}); put texts that hold {_named(separator)} or line breaks in "
                "double quotes, the first of which comes right behind the separator"
            )
        yield number, dict(zip(header, cells, strict=True))


def _header(
    path: remote.Path, text: str, wanted: Sequence[Sequence[str]]
) -> tuple[int, str, list[str]]:
    """Line, separator and names of a table's first row that is not blank.

    Raises:
      SeedError: no separator gives all the columns that are wanted, each once.
    """
    found = []
    ordinary = "\t" if path.suffix.lower() == ".tsv" else ","  # of one column any will do
    for separator in sorted(_SEPARATORS, key=lambda one: one != ordinary):
        try:
            line, cells = next(_cells(path, text, separator), (1, []))
        except SeedError:  # quotes that end before another separator
            continue
        header = [_plain(cell) for cell in cells]
        counts = [sum(header.count(name) for name in names) for names in wanted]
        found.append(((counts.count(1), len(header)), line, separator, header, counts))
    if not found:
        _, cells = next(_cells(path, text, _SEPARATORS[0]))  # raises
    good, line, separator, header, counts = max(found, key=lambda one: one[0])
    if not header or good[0] == len(wanted):
        return line, separator, header
    names, count = next((n, c) for n, c in zip(wanted, counts, strict=True) if c != 1)
    raise SeedError(
        f"{path}:{line}: {names[0]}: found {count} columns of this name in {header}, expected one; "
        f"make the first row: {','.join(names[0] for names in wanted)} (semicolons, tabs or bars "
        "between the cells will do as well)"
    )


def _cells(path: remote.Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, and the lines where they start; blank lines are skipped."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    stream = io.StringIO(text, newline="")
    # People write blanks behind a comma, also before a quote.
    reader = csv.reader(stream, delimiter=separator, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1  # where the row starts: a quoted cell may span many lines
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise SeedError(
                f"{path}:{line}: malformed CSV ({error}) in the row that starts here; "
                "close every quote, right before the separator, and write a quote inside a cell "
                'as ""'
            ) from error
        if cells is None:
            return
        # Excel may say first what separates the cells: "sep=;".
        if cells and not re.fullmatch("sep=.", separator.join(cells)):
            yield line, cells


def _named(separator: str) -> str:
    return {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}[separator]


_SUFFIXES = (".jsonl", ".csv", ".tsv")


def _text(where: str, row: dict, name: str) -> str:
    """A string that may stand in a demonstration, where a header would be taken for one."""
    value = _string(where, row, name)
    if header := _HEADER.search(value):
        raise SeedError(
            f"{where}: found a line that starts with {header[1]!r}, a header of our prompts, "
            "which could end the text early; reword that line"
        )
    return value


def _string(where: str, row: dict, name: str) -> str:
    """The field `name` of a row, checked and stripped; `where` starts the messages."""
    if name not in row:
        raise SeedError(f"{where}: missing; found the fields {sorted(row)}; add {name!r}")
    value = row[name]
    if value is None:
        raise SeedError(f"{where}: found {shown(value)}; write the {name}, or remove the line")
    if isinstance(value, (dict, list)):
        raise SeedError(
            f"{where}: found {shown(value)}, expected a string; write the {name} "
            "itself, or remove the line"
        )
    if not isinstance(value, str):
        raise SeedError(
            f"{where}: found {shown(value)}, expected a string; put it in double quotes if it is "
            f"the {name}, or remove the line"
        )
    odd = next((c for c in value if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    if odd is not None:
        raise SeedError(
            f"{where}: found the character U+{ord(odd):04X} (NUL or half of a surrogate pair), "
            "which is no text; remove it"
        )
    value = value.strip()
    if not value:
        raise SeedError(f"{where}: found an empty text; write the {name}, or remove the line")
    if value in _NOTHING and name != "choice":  # which may well be "None"
        raise SeedError(
            f"{where}: found {value!r} alone, as programs write it into empty cells; write the "
            f"{name}, or remove the line, or put a full stop behind the word if it is meant"
        )
    return value


def shown(value: object) -> str:
    """A value as its file has it and its kind, for a message, cut to a readable length."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= 60 else f"{text[:59]}…"
    if value is None or isinstance(value, str):
        return text
    return f"{text} ({'object' if isinstance(value, dict) else type(value).__name__})"
