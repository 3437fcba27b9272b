"""The table of bad inputs says what is said."""

import pytest

from tests import bad_inputs
from tests.bad_input_cases import CASES

# Those that are ended by a limit of time or memory, or write a large file.
SLOW = ("backtracks", "40", "MB", "million")
SOME = [case for case in CASES if not any(word in case.what for word in SLOW)]


@pytest.mark.parametrize("part", range(0, len(SOME), 24))
def test_the_table_is_what_is_said(part):
    """A message of the documents that nobody gets any more; some of each kind are tried."""
    rows = bad_inputs.TABLE.read_text(encoding="utf-8").split("\n")
    for case in SOME[part : part + 24 : 3]:
        assert bad_inputs.row(case) in rows


def test_every_case_is_in_the_table():
    """A case that was added without running the command."""
    text = bad_inputs.TABLE.read_text(encoding="utf-8")
    assert len(CASES) >= 60
    assert all(f"| {case.what} |" in text for case in CASES)
