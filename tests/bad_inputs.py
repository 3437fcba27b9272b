"""What was tried as bad input, and the line that each gets: `python -m tests.bad_inputs`.

Writes docs/bad_inputs.md, which a test compares with what is said now. The folder that an input
lies in is called `F`, so that the lines are the same on every machine.
"""

import contextlib
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator

from isara_jax import config
from isara_jax.shell import endings
from tests.bad_input_cases import CASES, Case

TABLE = pathlib.Path(__file__).parents[1] / "docs" / "bad_inputs.md"


@contextlib.contextmanager
def _own_cache(folder: pathlib.Path) -> Iterator[None]:
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def said(case: Case) -> str:
    """The line that a command ends with, or what is made of the input."""
    with tempfile.TemporaryDirectory() as home, _own_cache(pathlib.Path(home)):
        folder = pathlib.Path(home) / "F"
        folder.mkdir()
        try:
            with config.user_errors():
                case.use(folder)
        except Exception as error:
            sentence, status = endings.told(error)
            assert status == endings.MISTAKE, (case.what, sentence)
            return sentence.replace(f"{home}/", "")
    return "(is read)"


def row(case: Case) -> str:
    """A case's row of the table."""
    text = said(case).replace("|", "\\|").replace("<", "&lt;")
    return f"| {case.what} | {text} |"


def main() -> None:
    """Writes the table, and says what took longest."""
    lines, kind, times = [__doc__.split("\n\n")[0].split(":")[0] + ".", ""], "", []
    lines += ["Made by `python -m tests.bad_inputs`; `F` is the folder that the input lies in."]
    for case in CASES:
        if case.kind != kind:
            lines += ["", f"## {case.kind}", "", "| input | what is said |", "| --- | --- |"]
            kind = case.kind
        since = time.monotonic()
        lines.append(row(case))
        times.append((time.monotonic() - since, case.what))
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for seconds, what in sorted(times, reverse=True)[:5]:
        print(f"{seconds:6.1f} s  {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
