r"""What may be shown of texts that others wrote: models, files, the names of folders.

A terminal obeys some characters: an escape sequence can clear it, rename its window or, in some,
type into it; a carriage return writes over what stood there; a bidirectional override shows a line
in another order than it is read. Whatever is printed or shown in a report goes through `visible`,
which writes them as JSON does, `\u001b`: a line of JSON means the same afterwards.
"""

import re
from typing import TextIO

# C0 but tab and newline, DEL, C1; line separators; bidirectional embeddings, overrides, isolates;
# halves of surrogate pairs. Joiners and marks of direction stay: scripts and emoji need them.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_LONGEST = 2000  # characters of a message


def visible(text: str) -> str:
    """A text in which every character that a terminal would obey is written out."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def quoted(value: object, room: int = 80) -> str:
    """A value of somebody's file for a message, as Python writes it, cut to a readable length."""
    text = repr(value[:room] if isinstance(value, str | bytes) else value)
    cut = len(text) > room or isinstance(value, str | bytes) and len(value) > room
    return f"{text[: room - 1]}…" if cut else text


def line(text: str) -> str:
    """A message in one line that can be read; of a very long one its beginning and its end."""
    text = visible(" ".join(text.split()))
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST * 3 // 4]} … {text[-_LONGEST // 4 :]}"


def show(text: str, stream: TextIO | None = None) -> None:
    """Prints lines, at once; on stdout where no stream is named."""
    print(visible(text), file=stream, flush=True)
