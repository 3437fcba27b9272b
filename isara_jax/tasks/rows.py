"""The rows of somebody's own files, of any format: lines of JSON, JSON, tables, parquet.

They are read strictly: what is wrong is an error that names its line or row. What is merely another
habit is read: a table with other separators, names in capitals, blanks around them.
"""

import codecs
import csv
import io
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from isara_jax.files import confined, remote, storage
from isara_jax.shell.terminal import visible
from isara_jax.tasks import parquet

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_KINDS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
_SEPARATORS = ",;\t|"
# Of a file, and of a line of JSON in it; a text that a model can read is shorter by far. Published
# sets of a million rows have 500 MB: of what is to be read here, a part is enough.
MOST_BYTES, _MOST_LINE = 256 << 20, 16 << 20
# What each of them costs in memory does not depend on how short it is: half a kilobyte.
_MOST_LINES, _MOST_BRACKETS = 4_000_000, 8_000_000
_PARQUET_SECONDS, _PARQUET_BYTES = 120, 4 << 30
_JSON_FORMS = (
    "a list of objects, an object with one such list, or one with a list of equal length a column"
)


class SeedError(ValueError):
    """A file cannot be used; the message says where, why and what to do."""


class Row(NamedTuple):
    """A row, and where it stands.

    Attributes:
      file: the path, as messages have it.
      number: of the row's line, or its own from 1 in a format without lines.
      unit: `line` or `row`, what `number` counts.
      names: of the fields as they are spelt.
      fields: the values by their names without capitals and the blanks around them.
    """

    file: str
    number: int
    unit: str
    names: tuple[str, ...]
    fields: dict[str, Any]

    @property
    def place(self) -> str:
        """Line or row."""
        return f"{self.unit} {self.number}"

    @property
    def where(self) -> str:
        """File and line or row, as messages begin."""
        return f"{self.file}:{'' if self.unit == 'line' else ' row '}{self.number}"


class Rows(NamedTuple):
    """The rows of a file, in its order.

    Attributes:
      names: of the columns, else of the first row's fields; without capitals and the blanks around
        them, and as often as they are there. None in an empty file.
      where: these names stand, as messages begin.
      columns: whether the names are those of columns, which every row has.
      rows: the rows.
    """

    names: tuple[str, ...]
    where: str
    columns: bool
    rows: tuple[Row, ...]


def read(path: str | remote.Path, fit: Callable[[Sequence[str]], float], example: str) -> Rows:
    """Reads a file in the format that its suffix names.

    Args:
      path: the file: `.jsonl` with one object a line; `.json` with a list of objects, alone or in
        an object, with the columns of pandas, or with lines; `.csv` or `.tsv` with a header row and
        commas, semicolons, tabs or bars between the cells; `.parquet`.
      fit: how well the names of columns suit what is wanted, which tells a table's separator.
      example: of a line of JSON, for messages.

    Raises:
      SeedError: there is no such file, or it is not of that format.
    """
    path = _existing(path)
    match path.suffix.lower():
        case ".jsonl":
            return _objects(str(path), [*_lines(path, example)])
        case ".json":
            return _objects(str(path), [*_json(path, example)])
        case ".parquet":
            return _parquet(path)
        case _:
            return _table(path, fit)


def plain(name: str) -> str:
    """A field's name without capitals and the blanks around it."""
    return name.strip().casefold()


def shown(value: object) -> str:
    """A value as its file has it and its kind, for a message, cut to a readable length."""
    is_text = isinstance(value, str)
    if is_text:
        text = repr(value[:60]) + value[60:61]  # which makes it too long
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    text = visible(text if len(text) <= 60 else f"{text[:59]}…")
    if value is None or is_text:
        return text
    return f"{text} ({'object' if isinstance(value, dict) else type(value).__name__})"


def _existing(path: str | remote.Path) -> remote.Path:
    """`path`, if it is a file with one of the suffixes."""
    path = remote.path(path)
    if isinstance(path, pathlib.Path) and path.is_dir():
        raise SeedError(f"{path}: found a directory; give a {_KINDS} file")
    if isinstance(path, pathlib.Path) and not path.exists():
        what = "a link that leads to no file" if path.is_symlink() else "no such file"
        raise SeedError(f"{path}: {what}; check the path (it is relative to {path.cwd()})")
    if path.suffix.lower() not in SUFFIXES:
        raise SeedError(
            f"{path}: found the suffix {path.suffix!r}, expected {_KINDS}; convert or rename the "
            "file"
        )
    return path


def _read_bytes(path: remote.Path) -> bytes:
    """The content of a file, which must be an ordinary one of a likely size."""
    try:
        if isinstance(path, pathlib.Path):
            storage.ordinary(path)
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise SeedError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if len(data) > MOST_BYTES:
        raise SeedError(
            f"{path}: found more than {MOST_BYTES >> 20} MB; give a part of it, such as its first "
            "rows"
        )
    return data


def _read_text(path: remote.Path) -> str:
    data = _read_bytes(path).removeprefix(codecs.BOM_UTF8)
    lines, brackets = data.count(b"\n"), data.count(b"{") + data.count(b"[")
    if lines > _MOST_LINES or brackets > _MOST_BRACKETS:
        raise SeedError(
            f"{path}: found {lines:,} lines with {brackets:,} brackets, expected at most "
            f"{_MOST_LINES:,} with {_MOST_BRACKETS:,}; give a part of it, such as its first rows"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SeedError(
            f"{path}:{line}: found the byte 0x{data[error.start]:02x}, which is no UTF-8; "
            "save the file as UTF-8"
        ) from error


# --- JSON ----------------------------------------------------------------------------------------


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
            f"{example}; write such lines, or call a file of seeds, prompts or choices .json"
        )
    yield from _parsed_lines(path, text, example)


def _parsed_lines(
    path: remote.Path, text: str, example: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(): JSON strings may hold other line separators, such as U+2028, as they are.
    for line, source in enumerate(text.split("\n"), 1):
        if not source.strip():
            continue
        if len(source) > _MOST_LINE:
            raise SeedError(
                f"{path}:{line}: found a line of {len(source):,} characters, expected at most "
                f"{_MOST_LINE:,}; write one object a line, or remove it"
            )
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


def _lines(path: remote.Path, example: str) -> Iterator[Row]:
    for line, row in json_rows(path, example):
        yield _row(path, line, "line", row)


def _row(path: remote.Path, number: int, unit: str, row: dict[str, Any]) -> Row:
    fields = {plain(name): value for name, value in row.items()}
    return Row(str(path), number, unit, tuple(row), fields)


def _objects(path: str, found: Sequence[Row]) -> Rows:
    """Rows with fields of their own; the first one's stand for all."""
    if not found:
        return Rows((), path, False, ())
    return Rows(tuple(map(plain, found[0].names)), found[0].where, False, tuple(found))


def _json(path: remote.Path, example: str) -> Iterator[Row]:
    """The rows of one JSON value, or of lines that are called `.json`."""
    text = _read_text(path)
    try:
        value = storage.parse_json(text) if text.strip() else []
    except storage.AmbiguousError as error:
        raise SeedError(f"{path}: {error}") from error
    except RecursionError as error:
        raise SeedError(f"{path}: malformed JSON ({error}); write {_JSON_FORMS}") from error
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise SeedError(
                f"{path}:{error.lineno}: malformed JSON at column {error.colno} ({error.msg}); "
                f"write {_JSON_FORMS}"
            ) from error
        for line, row in _parsed_lines(path, text, example):
            yield _row(path, line, "line", row)
        return
    except ValueError as error:  # a number of too many digits
        raise SeedError(f"{path}: malformed JSON ({error}); write {_JSON_FORMS}") from error
    for number, row in enumerate(_listed(path, value), 1):
        if not isinstance(row, dict):
            raise SeedError(
                f"{path}: row {number}: found {shown(row)}, expected an object; write {example}"
            )
        yield _row(path, number, "row", row)


def _listed(path: remote.Path, value: Any) -> Sequence[Any]:
    """The rows that a JSON value holds, in whichever of the usual forms."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        columns = [*value.values()]
        if len(columns) > 1 and _alike(columns, list, len):
            return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
        if columns and _alike(columns, dict, tuple):  # the values by the rows' index, as of pandas
            return [{name: value[name][i] for name in value} for i in columns[0]]
        lists = [one for one in columns if isinstance(one, list) and one]
        of_objects = [one for one in lists if all(isinstance(row, dict) for row in one)]
        if len(of_objects) == 1:
            return of_objects[0]
        if not lists:
            return [value]
    fields = f" with the fields {sorted(value)[:12]}" if isinstance(value, dict) else ""
    raise SeedError(f"{path}: found {shown(value)}{fields}; write {_JSON_FORMS}")


def _alike(columns: Sequence[Any], kind: type, size: Callable[[Any], Any]) -> bool:
    """Whether all are of a kind, and their sizes the same."""
    return all(isinstance(one, kind) for one in columns) and len({*map(size, columns)}) == 1


# --- parquet -------------------------------------------------------------------------------------


def _parquet(path: remote.Path) -> Rows:
    """The rows, which a process of its own has read."""
    data = _read_bytes(path)
    with storage.scratch() as folder:
        copy = folder / "rows.parquet"
        copy.write_bytes(data)
        try:
            said = confined.run(
                pathlib.Path(parquet.__file__), str(copy), str(MOST_BYTES),
                seconds=_PARQUET_SECONDS, n_bytes=_PARQUET_BYTES,
            )  # fmt: skip
        except confined.RefusedError as error:
            raise SeedError(
                f"{path}: no parquet file that can be read ({error}); fetch or write it again, or "
                "convert it to .jsonl"
            ) from error
    header, *lines = said.decode().split("\n")[:-1]
    names = tuple(json.loads(header))
    spelt = tuple(map(plain, names))
    rows = []
    for line in lines:
        fields = dict(zip(spelt, json.loads(line, object_hook=_value), strict=True))
        rows.append(Row(str(path), len(rows) + 1, "row", names, fields))
    return Rows(spelt, str(path), True, tuple(rows))


def _value(fields: dict[str, Any]) -> Any:
    """An object of a cell, or a value of a kind that JSON does not have."""
    if [*fields] != [parquet.OTHER]:
        return fields
    kind, text = fields[parquet.OTHER]
    return type(kind, (), {"__str__": lambda self: text})()


# --- tables --------------------------------------------------------------------------------------


def _table(path: remote.Path, fit: Callable[[Sequence[str]], float]) -> Rows:
    """The rows of a table behind its header, by the separator that makes columns of the header."""
    text = _read_text(path)
    line, separator, header = _header(path, text, fit)
    rows = []
    for number, cells in _cells(path, text, separator):
        if number == line or not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise SeedError(
                f"{path}:{number}: found {len(cells)} cell(s), expected {len(header)} "
                f"({', '.join(header)}); put texts that hold {_named(separator)} or line breaks in "
                "double quotes, the first of which comes right behind the separator"
            )
        fields = dict(zip(header, cells, strict=True))
        rows.append(Row(str(path), number, "line", header, fields))
    return Rows(header, f"{path}:{line}", True, tuple(rows))


def _header(
    path: remote.Path, text: str, fit: Callable[[Sequence[str]], float]
) -> tuple[int, str, tuple[str, ...]]:
    """Line, separator and plain names of a table's first row that is not blank."""
    found = []
    ordinary = "\t" if path.suffix.lower() == ".tsv" else ","  # of one column any will do
    for separator in sorted(_SEPARATORS, key=lambda one: one != ordinary):
        try:
            line, cells = next(_cells(path, text, separator), (1, []))
        except SeedError:  # quotes that end before another separator
            continue
        header = tuple(map(plain, cells))
        found.append(((fit(header), len(header)), line, separator, header))
    if not found:
        next(_cells(path, text, ordinary))  # raises
    return max(found, key=lambda one: one[0])[1:]


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
