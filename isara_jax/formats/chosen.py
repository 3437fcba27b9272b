"""Which modules an adapter's fields choose, by PEFT's rules (`check_target_module_exists`).

Fields may be patterns. Python's engine backtracks without a limit, so with patterns this file is
run by `files.confined`, as PEFT would run them, and imports nothing of ours.
"""

import json
import re
import sys
from typing import Any


def has_patterns(fields: dict[str, Any]) -> bool:
    """Whether some field is a pattern."""
    texts = (fields.get("target_modules"), fields.get("exclude_modules"))
    whole = any(isinstance(text, str) and text != "all-linear" for text in texts)
    return whole or bool(fields.get("layers_pattern"))


def is_chosen(module: str, fields: dict[str, Any]) -> bool:
    """Whether the fields choose a module.

    Raises:
      TypeError, re.error: they are none that PEFT would read.
    """
    if _is_among(module, fields.get("exclude_modules")):
        return False
    targets = fields.get("target_modules")
    if isinstance(targets, str):
        return targets == "all-linear" or _is_among(module, targets)
    if not (targets is None or _is_among(module, targets)):
        return False
    blocks = fields.get("layers_to_transform")
    if blocks is None or blocks == []:
        return True
    blocks, lists = [blocks] if isinstance(blocks, int) else blocks, fields.get("layers_pattern")
    for name in [lists] if isinstance(lists, str) else lists or [r"[^.]*"]:
        if number := re.match(rf".*\.{name}\.(\d+)\.", module):
            return int(number[1]) in blocks
    return False


def _is_among(module: str, names: Any) -> bool:
    """Whether a pattern is that of a module, or names in a list end it."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names or ())


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print(json.dumps([is_chosen(module, given["fields"]) for module in given["modules"]]))
