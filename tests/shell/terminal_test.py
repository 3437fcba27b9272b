"""What models and files write obeys nobody's terminal, report or card."""

import io
import json
import unicodedata

import yaml
from hypothesis import given
from hypothesis import strategies as st

from isara_jax.files import storage
from isara_jax.method.progress import Progress
from isara_jax.publish import card
from isara_jax.report import html, table
from isara_jax.shell import endings, terminal

# Clears the screen, renames the window, writes over the line, reverses what follows.
EVIL = "\x1b[2J\x1b]0;x\x07\x9b31m\r‮⁦\u2028\x7f\x85"


def is_obeyed(character):
    """Control characters but tab and newline, and what reorders text, by Unicode's own tables."""
    bidi = unicodedata.bidirectional(character)
    control = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    reorders = bidi in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return (control and character not in "\t\n") or reorders


def test_exactly_what_a_terminal_obeys_is_written_out():
    """A character that is missing in the list, or letters, emoji and accents that are lost."""
    for number in range(0x110000):
        character = chr(number)
        assert (terminal.visible(character) != character) == is_obeyed(character), hex(number)


@given(st.text())
def test_lines_of_json_mean_the_same(text):
    """An answer's file that other programs read as another text."""
    line = storage.json_line({"text": text})
    assert json.loads(line) == {"text": text}
    assert not any(map(is_obeyed, line))


def test_a_run_prints_nothing_that_is_obeyed(capsys):
    """A generated question that clears the terminal, or writes over the table."""
    Progress().say(f"  e.g. Q {EVIL}\n       A b")
    endings.say(EVIL)
    shown = capsys.readouterr()
    assert "\\u001b[2J" in shown.out and "\n       A b\n" in shown.out
    assert not any(map(is_obeyed, shown.out + shown.err))


def test_tables_and_reports_show_texts_of_models():
    """Markup or control characters of an answer in the report."""
    example = {"question": f"<script>{EVIL}", "before": EVIL, "after": "a", "after_label": EVIL}
    summary = {"rows": [], "examples": [example], "task": EVIL, "model": EVIL}
    page, text = html.render(summary), table.text(summary)
    assert not any(map(is_obeyed, page + text))
    assert "<script>" not in page and "&lt;script&gt;\\u001b[2J" in page


def test_long_messages_keep_their_beginning_and_end():
    """A message of megabytes, or one whose cure is cut off."""
    line = terminal.line("model/config.json: " + "x\n" * 5_000_000 + "; mend it")
    assert len(line) < 2100 and line.startswith("model/config.json: x")
    assert line.endswith("; mend it")
    assert len(terminal.quoted("y" * 10**7)) <= 80


def test_a_card_holds_names_as_texts():
    """A licence, a folder or a token whose text is markup, HTML or code."""
    name = 'a](http://x) <script> `b`\n# c"\n```\nimport os'
    assert card._prose(name).count("\\") >= 8 and "\n" not in card._prose(name)
    assert card._code(name).count("`") == 2 and "\n" not in card._code(name)
    quoted = card._quoted(name)
    assert eval(quoted, {"__builtins__": {}}) == name  # what Python reads
    assert "`" not in quoted and "\n" not in quoted
    assert yaml.safe_load(io.StringIO(quoted)) == name
