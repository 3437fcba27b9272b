"""Flags and config files: read, with each mistake in one line that names what was meant."""

import dataclasses
import pathlib
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from absl import flags

from isara_jax import config
from isara_jax.shell import endings


def parse(argv: list[str]) -> list[str]:
    """The positional arguments; flags get their values. For `absl.app.run`.

    Raises:
      config.UserError: an unknown flag or field, a value of the wrong type, or a config file that
        cannot be used.
    """
    file = None
    if "config" in flags.FLAGS:
        _check_fields(argv)
        file = _config_file(argv)
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        _refuse(f"--{error.flagname}", _known())
    except Exception as error:
        # A TypeError in a config file comes inside of absl's own, with its traceback as text.
        found = error
        while isinstance(found.__context__, TypeError):
            found = found.__context__
        if isinstance(found, flags.Error):
            raise config.UserError(endings.one_line(found)) from error
        if file is None:
            raise
        raise config.UserError(_raised(file, found)) from error


def check(
    module: str, given: Sequence[str], positional: Sequence[str], needs: Iterable[str]
) -> None:
    """Raises `config.UserError` where an argument is missing or too many."""
    if len(given) != len(positional):
        usage = " ".join(["python -m", module, *positional, "[--flag=value ...]"])
        raise config.UserError(f"found {list(given) or 'no arguments'}; usage: {usage}")
    for name in needs:
        if flags.FLAGS[name].value in (None, ""):
            _miss(name)


def _miss(name: str) -> NoReturn:
    raise config.UserError(f"--{name} is missing. It is: {flags.FLAGS[name].help}")


def _flags_of(argv: Sequence[str]) -> Iterator[tuple[str, str | None, str]]:
    """Name, value if it stands in the same argument, and the argument after it, of each flag."""
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        if argument == "--":
            return
        if found := re.fullmatch(r"--?([^-=][^=]*)(?:=(.*))?", argument, re.DOTALL):
            yield found[1], found[2], following


def _config_file(argv: Sequence[str]) -> str | None:
    """The file that `--config` names, which is there; what stands behind a colon is for it."""
    found = list(_flags_of(argv))
    given = [
        following if value is None else value for n, value, following in found if n == "config"
    ]
    if not any(given):
        if given or any(n.startswith(("config.", "noconfig.")) for n, _, _ in found):
            _miss("config")
        return None
    name = given[-1].split(":", 1)[0]
    path = pathlib.Path(name)
    if path.is_file():
        return name
    there = [
        str(p) for folder in (path.parent, "configs") for p in pathlib.Path(folder).glob("*.py")
    ]
    raise config.UserError(
        f"--config={name}: {'a folder' if path.is_dir() else 'no such file'}; looked at "
        f"{path.absolute()}" + (config.nearest(name, there) or "; give the path of a config file")
    )


def _fields(cls: type, prefix: str) -> Iterator[str]:
    """The names of a configuration's fields, and of its groups of fields, behind a prefix."""
    for field in dataclasses.fields(cls):
        yield f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.default):
            yield from _fields(type(field.default), f"{prefix}{field.name}.")


def _known() -> list[str]:
    names = [f"--{name}" for name in flags.FLAGS if "." not in name]
    return names + (list(_fields(config.Config, "--config.")) if "config" in flags.FLAGS else [])


def _check_fields(argv: Sequence[str]) -> None:
    known = set(_fields(config.Config, "config."))
    for name, _, _ in _flags_of(argv):
        if not name.startswith(("config.", "noconfig.")):
            continue
        plain = name.removeprefix("no")
        field = re.sub(r"(\[[^]]*\])+$", "", plain)
        if field not in known:
            _refuse(f"--{plain}", sorted(f"--{name}" for name in known))
        if field != plain:
            _refuse_index(argv, plain, field)


def _refuse_index(argv: Sequence[str], plain: str, field: str) -> NoReturn:
    """Says of a flag with an index how its field is given: no field has elements of its own."""
    path = field.removeprefix("config.")
    default = config.field(config.Config(), path)
    if dataclasses.is_dataclass(default):
        first = next(_fields(type(default), f"{field}."))
        cure = f"{field} is a group of fields; give one of them, such as --{first}=VALUE"
    elif isinstance(default, tuple):
        given = [
            following if value is None else value
            for name, value, following in _flags_of(argv)
            if name.startswith(f"{field}[")
        ]
        example = config.flag(path, default or given)  # empty ones are of texts
        cure = f"a tuple is given as a whole, such as {example}"
    else:
        cure = f"{field} has one value; give it without an index: --{field}=VALUE"
    raise config.UserError(f"--{plain}: {cure}")


def _refuse(name: str, known: Sequence[str]) -> NoReturn:
    same = [k for k in known if k.split(".")[-1] == name.removeprefix("--").split(".")[-1]]
    hint = f"; did you mean {' or '.join(same)}?" if same else config.nearest(name, known)
    raise config.UserError(f"{name}: no such flag" + (hint or "; --help lists them"))


def _raised(file: str, error: Exception) -> str:
    """What is said of an error in a config file: where it is, and what."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    path = pathlib.Path(file).absolute()
    for frame in traceback.extract_tb(error.__traceback__):
        if pathlib.Path(frame.filename).absolute() == path:
            line = frame.lineno
    what = error.msg if isinstance(error, SyntaxError) else endings.one_line(error)
    where = file if line is None else f"{file}:{line}"
    return f"{where}: {type(error).__name__}: {what}; mend the config file"
