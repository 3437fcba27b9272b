"""Renders conversations in a chat's template; run by `files.confined`, imports nothing of ours.

A template is a program by whoever made the model. transformers compiles and runs it in jinja2's
immutable sandbox, which keeps it from objects that are not its own, but not from going on for ever.

Standard input is JSON: `template`, `special` (the tokenizer's names for its special tokens), and
`conversations`, each a list of texts, by turns a user's and the assistant's, or of a user alone
where `alone`. Each is rendered with the header of an answer behind it. Standard output is JSON:
`texts`, with `{"error": ...}` for one that the template refuses, and `day`, whether it asks for it.
"""

import datetime
import json
import sys
from typing import Any

# What the template is told the day is, so that a run is the same on all of them: what Llama 3's
# writes where nobody tells.
DAY = datetime.datetime(2024, 7, 26)
_MOST_CHARACTERS = 1 << 20


class _Clock:
    """Stands for `datetime` in transformers, where templates get `strftime_now` from."""

    asked = False

    @classmethod
    def now(cls) -> datetime.datetime:
        cls.asked = True
        return DAY


def _messages(texts: list[str], alone: bool) -> list[dict[str, str]]:
    roles = ("user", "user" if alone else "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def _render(given: dict[str, Any], conversation: dict[str, Any]) -> str | dict[str, str]:
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = _Clock
    messages = _messages(conversation["texts"], conversation["alone"])
    try:
        (text,), _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=given["template"], add_generation_prompt=True,
            **given["special"],
        )  # fmt: skip
    except MemoryError:
        raise
    except Exception as error:  # whatever an expression can do
        return {"error": str(error) or type(error).__name__}
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it writes {len(text):,} characters for a few words")
    return text


def rendered(given: dict[str, Any]) -> dict[str, Any]:
    """What is written, of what is read."""
    texts = [_render(given, conversation) for conversation in given["conversations"]]
    return {"texts": texts, "day": _Clock.asked}


if __name__ == "__main__":
    json.dump(rendered(json.load(sys.stdin)), sys.stdout)
