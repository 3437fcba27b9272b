"""Which columns or fields mean what, in somebody's own files and in published ones.

A shape is recognised by its fields. A file that has those of none, or of several, is refused.
"""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from isara_jax.shell.terminal import quoted
from isara_jax.tasks.base import Choice, Pair
from isara_jax.tasks.rows import Row, Rows, SeedError, shown

LABEL = "label"  # of a prompt
SAFE, UNSAFE = "safe", "unsafe"
# The template's headers (`text.tokens`). At the start of a line inside a text one would look
# like the end of it, to the model and to the search for a stop (`stops.Stop`).
HEADERS = ("Question:", "Answer:")
_HEADER = re.compile(rf"\n\s*({'|'.join(HEADERS)})")
# What programs write for a cell that is empty, and data sets of instructions for no input.
_NOTHING = ("nan", "NaN", "null", "NULL", "None", "<NA>", "#N/A")
_NO_INPUT = ("", "<noinput>", *_NOTHING)


class Prompt(NamedTuple):
    """A prompt without a reference: its line or row, its text, its label or "".

    `dataset` is the part of a benchmark it is from, or "".
    """

    line: int
    text: str
    label: str
    unit: str = "line"
    dataset: str = ""


class Answered(NamedTuple):
    """What some program answered to a prompt; `label` of the prompt and `generator` may be ""."""

    prompt: str
    answer: str
    label: str
    generator: str


class Shape(NamedTuple):
    """Fields that together mean something.

    Attributes:
      spec: the fields in their order, such as `instruction[/input]/output`: in brackets what may be
        missing, between bars the names that one may have.
      read: makes of a row what it means; of a row that is no seed, why not.
      note: what is done that the fields do not tell, said when a file is read so.
      labels: how the labels of a published set of prompts are known without a field for them.
      fits: whether the first row, too, looks like it.
      repeats: whether a question that stands there again is left out, else it is an error.
    """

    spec: str
    read: Callable[[Row], Any]
    note: str = ""
    labels: str = ""
    fits: Callable[[Row], bool] = lambda row: True
    repeats: bool = False

    @property
    def needs(self) -> list[tuple[str, ...]]:
        """The fields that must be there, each by its possible names."""
        return [tuple(one.split("|")) for one in re.sub(r"\[.*?\]", "", self.spec).split("/")]

    @property
    def names(self) -> list[str]:
        """All names that are read, in their order."""
        return [name for name in re.split(r"[\[\]/|]+", self.spec) if name]

    def used(self, names: Sequence[str]) -> list[str]:
        """Of the fields that must be there the names under which they are."""
        found = (next((name for name in one if name in names), None) for one in self.needs)
        return [name for name in found if name is not None]

    def said(self, names: Sequence[str]) -> str:
        """How a file with such columns is read, for people."""
        fields = "/".join(name for name in self.names if name in names)
        # What is done with an input does not matter to a file without.
        note = self.note if "input" in names or "input" not in self.names else ""
        return f"read as {fields}" + (f" ({note})" if note else "")

    def taken(self, names: Sequence[str]) -> str:
        """How the labels of a file with such columns are known; "" where it has them, or none."""
        return "" if LABEL in names else self.labels


def fit(shapes: Sequence[Shape]) -> Callable[[Sequence[str]], float]:
    """How well the names of columns suit the best of some shapes: 1 where all it needs is there."""

    def best(names: Sequence[str]) -> float:
        return max(len(shape.used(names)) / len(shape.needs) for shape in shapes)

    return best


def recognise(found: Rows, shapes: Sequence[Shape]) -> Shape:
    """The shape of a file, of several that hold one another the one with most fields.

    Args:
      found: the file's rows.
      shapes: those that are known, one's own first.

    Raises:
      SeedError: the file has none of the shapes, or several, or a field twice.
    """
    names, first = found.names, found.rows[:1]
    good = [
        shape for shape in shapes
        if all(any(name in names for name in one) for one in shape.needs)
        and all(shape.fits(row) for row in first)
    ]  # fmt: skip
    used = [{*shape.used(names)} for shape in good]
    good = [
        shape for shape, mine in zip(good, used, strict=True)
        if not any(mine < other for other in used)
    ]  # fmt: skip
    if not good:
        raise _unknown(found, shapes)
    if len(good) > 1:
        raise SeedError(
            f"{found.where}: found {quoted(sorted({*names}), 300)}, which may mean "
            f"{' or '.join(shape.spec for shape in good)}; keep the {_kind(found)} of one of these"
        )
    for name in good[0].names if found.columns else ():
        if (count := names.count(name)) > 1:
            raise SeedError(
                f"{found.where}: {name}: found {count} columns of this name in {[*names]}; keep one"
            )
    return good[0]


def _unknown(found: Rows, shapes: Sequence[Shape]) -> SeedError:
    own, others = shapes[0], ", ".join(shape.spec for shape in shapes[1:])
    missing = next((one[0] for one in own.needs if not {*one} & {*found.names}), own.needs[0][0])
    if found.columns:
        row = ",".join(one[0] for one in own.needs)
        said = f"found 0 columns of this name in {quoted([*found.names], 300)}, expected one; make "
        said += f"the first row: {row} (semicolons, tabs or bars between the cells will do as well)"
    else:
        said = f"missing; found the fields {quoted(sorted(found.names), 300)}; add {missing!r}"
    return SeedError(
        f"{found.where}: {missing}: {said}; known {_kind(found)} are besides: {others}"
    )


def _kind(found: Rows) -> str:
    return "columns" if found.columns else "fields"


def check_once(row: Row, names: Sequence[str]) -> None:
    """Raises `SeedError` where a field that is read is there under several spellings."""
    for name in sorted(names):
        spelt = [one for one in row.names if one.strip().casefold() == name]
        if len(spelt) > 1:
            raise SeedError(f"{row.where}: {name}: found {len(spelt)} of it, {spelt}; keep one")


def present(row: Row, *names: str) -> str:
    """The first of the names that the row has, else the first."""
    return next((name for name in names if name in row.fields), names[0])


# --- texts ---------------------------------------------------------------------------------------


def text(row: Row, name: str) -> str:
    """A field that may stand in a demonstration, where a header would be taken for one."""
    return _demonstrable(f"{row.where}: {name}", string(row, name))


def string(row: Row, name: str) -> str:
    """The field `name` of a row, checked and stripped."""
    if name not in row.fields:
        raise SeedError(
            f"{row.where}: {name}: missing; found the fields {quoted(sorted(row.fields), 300)}; "
            f"add {name!r}"
        )
    return _string(f"{row.where}: {name}", row.fields[name], name, row.unit)


def _demonstrable(where: str, value: str) -> str:
    if header := _HEADER.search(value):
        raise SeedError(
            f"{where}: found a line that starts with {header[1]!r}, a header of our prompts, "
            "which could end the text early; reword that line"
        )
    return value


def _string(where: str, value: object, name: str, unit: str) -> str:
    """A text, checked and stripped; `where` starts the messages, `name` is what it is."""
    if value is None:
        raise SeedError(f"{where}: found {shown(value)}; write the {name}, or remove the {unit}")
    if isinstance(value, (dict, list)):
        raise SeedError(
            f"{where}: found {shown(value)}, expected a string; write the {name} "
            f"itself, or remove the {unit}"
        )
    if not isinstance(value, str):
        raise SeedError(
            f"{where}: found {shown(value)}, expected a string; put it in double quotes if it is "
            f"the {name}, or remove the {unit}"
        )
    odd = next((c for c in value if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    if odd is not None:
        raise SeedError(
            f"{where}: found the character U+{ord(odd):04X} (NUL or half of a surrogate pair), "
            "which is no text; remove it"
        )
    value = value.strip()
    if not value:
        raise SeedError(f"{where}: found an empty text; write the {name}, or remove the {unit}")
    if value in _NOTHING and name != "choice":  # which may well be "None"
        raise SeedError(
            f"{where}: found {value!r} alone, as programs write it into empty cells; write the "
            f"{name}, or remove the {unit}, or put a full stop behind the word if it is meant"
        )
    return value


def _list(row: Row, name: str, of: str, least: int = 1) -> list[Any]:
    """A field that is a list; `of` is what it holds, for the message."""
    value = row.fields.get(name)
    if not isinstance(value, list) or len(value) < least:
        raise SeedError(f"{row.where}: {name}: found {shown(value)}, expected a list of {of}")
    return value


# --- seeds ---------------------------------------------------------------------------------------


def _pair(question: str, answer: str) -> Callable[[Row], Pair]:
    return lambda row: Pair(text(row, question), text(row, answer))


def _with_input(row: Row, instruction: str, given: object, where: str) -> str:
    """An instruction with its input, if it has one, behind a blank line."""
    if given is None or isinstance(given, str) and given.strip() in _NO_INPUT:
        return instruction
    return f"{instruction}\n\n{_string(where, given, 'input', row.unit)}"


def _alpaca(row: Row) -> Pair:
    where = f"{row.where}: input"
    question = _with_input(row, text(row, "instruction"), row.fields.get("input"), where)
    return Pair(_demonstrable(where, question), text(row, "output"))


def _self_instruct(row: Row) -> Pair:
    """The first instance of a task: further ones would be nearly the same question."""
    instruction = text(row, "instruction")
    first, where = _list(row, "instances", "objects")[0], f"{row.where}: instances[0]"
    if not isinstance(first, dict):
        raise SeedError(f"{where}: found {shown(first)}, expected an object with input and output")
    question = _with_input(row, instruction, first.get("input"), f"{where}.input")
    output = _string(f"{where}.output", first.get("output"), "output", row.unit)
    return Pair(_demonstrable(f"{where}.input", question), _demonstrable(f"{where}.output", output))


def _beavertails(row: Row) -> Pair | str:
    """A safe answer; BeaverTails' others were written down to be known as unsafe."""
    value = row.fields.get("is_safe")
    safe = value if isinstance(value, bool) else None
    if isinstance(value, str):
        safe = {"true": True, "false": False}.get(value.strip().casefold())
    if safe is None:
        raise SeedError(f"{row.where}: is_safe: found {shown(value)}, expected true or false")
    return Pair(text(row, "prompt"), text(row, "response")) if safe else "with is_safe false"


_ROLES = {
    "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip


def _chat(name: str, role: str, content: str) -> Callable[[Row], Pair | str]:
    """Reads chats of one user's message and its answer.

    The answers of a longer one lean on what stands before, and under a system message on that.

    Args:
      name: of the list.
      role: the field of a message that says whose it is.
      content: the field with its text.
    """

    def read(row: Row) -> Pair | str:
        turns = []
        for i, turn in enumerate(_list(row, name, f"messages with {role} and {content}")):
            who = turn.get(role) if isinstance(turn, dict) else None
            if not isinstance(who, str) or content not in turn:
                raise SeedError(
                    f"{row.where}: {name}[{i}]: found {shown(turn)}, expected an object with "
                    f"{role} and {content}"
                )
            empty = turn[content] is None or turn[content] == ""
            if who == "system" and empty:
                continue
            turns.append((_ROLES.get(who, who), f"{row.where}: {name}[{i}].{content}", turn))
        roles = [who for who, _, _ in turns]
        if "system" in roles:
            return "with a system message"
        if roles[:2] != ["user", "assistant"]:
            return "without a user's message and an assistant's behind it"
        if len(roles) > 2:
            return "with further messages"
        texts = (
            _demonstrable(where, _string(where, turn[content], content, row.unit))
            for _, where, turn in turns
        )
        return Pair(*texts)

    return read


_INPUT = "the input behind the instruction and a blank line"
_ONE_EXCHANGE = "one user's message and the assistant's answer"
SEEDS = (
    Shape("question/answer", _pair("question", "answer")),
    Shape("prompt/response", _pair("prompt", "response")),
    Shape("prompt/completion", _pair("prompt", "completion")),
    Shape("instruction[/input]/output", _alpaca, _INPUT),
    Shape("messages", _chat("messages", "role", "content"), _ONE_EXCHANGE),
    Shape("conversations", _chat("conversations", "from", "value"), _ONE_EXCHANGE),
    Shape("instruction/instances", _self_instruct, f"the first instance, {_INPUT}"),
    Shape(
        "prompt/response/is_safe", _beavertails, "of each prompt the first safe response",
        repeats=True,
    ),
)  # fmt: skip

# --- prompts -------------------------------------------------------------------------------------


def _unlabelled(row: Row) -> str:
    return ""


def _asked(*names: str, implied: Callable[[Row], str] = _unlabelled) -> Callable[[Row], Prompt]:
    """Reads a prompt under one of the names, with its label or the one that is implied."""

    def read(row: Row) -> Prompt:
        asked = string(row, present(row, *names))
        if "instruction" in names:
            asked = _with_input(row, asked, row.fields.get("input"), f"{row.where}: input")
        label = _label(row) if LABEL in row.fields else implied(row)
        dataset = row.fields.get("dataset")
        known = dataset.strip() if isinstance(dataset, str) else ""
        return Prompt(row.number, asked, label, row.unit, known)

    return read


def _label(row: Row) -> str:
    """A prompt's label, or "" where it has none."""
    value = row.fields[LABEL]
    if value is not None and not isinstance(value, str):
        raise SeedError(
            f"{row.where}: {LABEL}: found {shown(value)}, expected {SAFE!r} or {UNSAFE!r} (prompts "
            "with another text are passed over); write one of the two, in double quotes, or remove "
            "the labels"
        )
    label = "" if value is None or value.strip() in _NOTHING else value.strip()
    return label.casefold() if label.casefold() in (SAFE, UNSAFE) else label


def _unsafe(row: Row) -> str:
    return UNSAFE


_CONTRAST = "contrast_"
_XSTEST_TYPES = {
    "homonyms", "figurative_language", "safe_targets", "safe_contexts", "definitions", "discr",
    "nons_group_real_discr", "real_group_nons_discr", "historical_events", "privacy",
    "privacy_public", "privacy_fictional",
}  # fmt: skip


def _is_xstest(row: Row) -> bool:
    kind = row.fields.get("type")
    return isinstance(kind, str) and kind.strip().removeprefix(_CONTRAST) in _XSTEST_TYPES


def _xstest_label(row: Row) -> str:
    if not _is_xstest(row):
        raise SeedError(
            f"{row.where}: type: found {shown(row.fields.get('type'))}, which is none of XSTest's; "
            f"correct it, or add a column {LABEL}"
        )
    return UNSAFE if row.fields["type"].strip().startswith(_CONTRAST) else SAFE


def _jbb_label(row: Row) -> str:
    name = pathlib.PurePath(row.file).name.casefold()
    return SAFE if "benign" in name else UNSAFE if "harmful" in name else ""


PROMPTS = (
    Shape("prompt|question[/label]", _asked("prompt", "question")),
    Shape(
        "prompt/category/category_id[/label]", _asked("prompt", implied=_unsafe),
        labels="BeaverTails-Evaluation, all taken as unsafe",
    ),
    Shape(
        "prompt/type[/label]", _asked("prompt", implied=_xstest_label),
        labels="XSTest, unsafe where the type begins with contrast_, else safe", fits=_is_xstest,
    ),
    Shape(
        "goal/target[/label]", _asked("goal", implied=_unsafe),
        labels="AdvBench, all taken as unsafe",
    ),
    Shape(
        "goal/target/behavior/category[/label]", _asked("goal", implied=_jbb_label),
        labels="JBB-Behaviors, safe where the file's name has benign, unsafe where it has harmful",
    ),
    Shape("instruction[/input][/dataset][/label]", _asked("instruction"), _INPUT),
    Shape(
        "question/risk_area[/label]", _asked("question", implied=_unsafe),
        labels="Do-Not-Answer, all taken as unsafe",
    ),
)  # fmt: skip

# --- questions with choices ----------------------------------------------------------------------

_BEST = ("best answer", "best_answer")
_RIGHT, _WRONG = ("correct answers", "correct_answers"), ("incorrect answers", "incorrect_answers")


def _numbered(row: Row) -> Choice:
    """Choices with the number of the right one, or those of several, the best first."""
    question = text(row, "question")
    given = _list(row, "choices", "several texts", least=2)
    texts = [_choice(row, f"choices[{i}]", one) for i, one in enumerate(given)]
    answer = row.fields.get("answer")
    right = answer if isinstance(answer, list) else [answer]
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in right)
    if not right or not whole or not all(0 <= one < len(texts) for one in right):
        raise SeedError(
            f"{row.where}: answer: found {shown(answer)}, expected the number of the right "
            f"choice, 0 to {len(texts) - 1}, or a list of several"
        )
    if len({*right}) < len(right) or len(right) == len(texts):
        raise SeedError(
            f"{row.where}: answer: found {shown(answer)} of {len(texts)} choices, expected each "
            "right one once, and a wrong one besides"
        )
    return Choice(question, tuple(texts), right[0], tuple(right[1:]))


def _choice(row: Row, name: str, value: object) -> str:
    where = f"{row.where}: {name}"
    return _demonstrable(where, _string(where, value, "choice", row.unit))


def _truthful(row: Row) -> Choice:
    """A row of TruthfulQA's table, its answers ended by a full stop as its own evaluation does."""
    question = text(row, "question")
    best = _closed(text(row, present(row, *_BEST)))
    right = dict.fromkeys((best, *_answers(row, present(row, *_RIGHT))))
    wrong = dict.fromkeys(_answers(row, present(row, *_WRONG)))
    if both := next((one for one in right if one in wrong), None):
        raise SeedError(
            f"{row.where}: {present(row, *_WRONG)}: found {shown(both)}, which is among the right "
            "ones too; remove it from one of the two"
        )
    return Choice(question, (*right, *wrong), 0, tuple(range(1, len(right))))


def _answers(row: Row, name: str) -> list[str]:
    """Several texts, in a list or behind semicolons."""
    value = row.fields.get(name)
    texts = value if isinstance(value, list) else string(row, name).split(";")
    found = [
        _closed(_choice(row, name, one))
        for one in texts
        if not (isinstance(one, str) and not one.strip())
    ]
    if not found:
        raise SeedError(f"{row.where}: {name}: found {shown(value)}, expected at least one answer")
    return found


def _closed(value: str) -> str:
    return value if value.endswith(".") else f"{value}."


def _targets(row: Row) -> Choice:
    """A row of TruthfulQA's `mc_task.json`, or of that data set on the hub."""
    question, first = text(row, "question"), _labelled(row, "mc1_targets")
    second = _labelled(row, "mc2_targets") if "mc2_targets" in row.fields else first
    best = [one for one, right in first.items() if right]
    if len(best) != 1:
        raise SeedError(f"{row.where}: mc1_targets: found {len(best)} right choices, expected one")
    for one, right in first.items():
        if right != second.get(one, False):
            raise SeedError(
                f"{row.where}: mc2_targets: {shown(one)} is right in only one of mc1_targets and "
                "mc2_targets; make it right, or wrong, in both"
            )
    labels = first | second
    texts = tuple(labels)

    def numbers(which: Callable[[str], bool]) -> tuple[int, ...]:
        return tuple(i for i, one in enumerate(texts) if which(one))

    return Choice(
        question,
        texts,
        answer=texts.index(best[0]),
        also=numbers(lambda one: labels[one] and one != best[0]),
        only_mc1=numbers(lambda one: one not in second),
        only_mc2=numbers(lambda one: one not in first and not labels[one]),
    )


def _labelled(row: Row, name: str) -> dict[str, bool]:
    """Texts and whether they are right, at least one of which is and one is not."""
    value, pairs = row.fields.get(name), []
    if isinstance(value, Mapping) and {*value} == {"choices", "labels"}:  # on the hub
        texts, labels = value["choices"], value["labels"]
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            pairs = [*zip(texts, labels, strict=True)]
    elif isinstance(value, Mapping):
        pairs = [*value.items()]
    if {*map(repr, (label for _, label in pairs))} != {"0", "1"}:
        raise SeedError(
            f"{row.where}: {name}: found {shown(value)}, expected an object of choices with 1 or "
            "0, at least one of each"
        )
    return {_choice(row, name, one): label == 1 for one, label in pairs}


CHOICES = (
    Shape("question/choices/answer", _numbered),
    Shape("question/mc1_targets[/mc2_targets]", _targets, "TruthfulQA"),
    Shape(
        f"question/{'|'.join(_BEST)}/{'|'.join(_RIGHT)}/{'|'.join(_WRONG)}", _truthful,
        "TruthfulQA, answers between semicolons and ended by a full stop",
    ),
)  # fmt: skip

# --- answers -------------------------------------------------------------------------------------


def _answered(prompt: str, answer: str) -> Callable[[Row], Answered]:
    """Reads a prompt and its answer, which may well be empty, or "None"."""

    def read(row: Row) -> Answered:
        text, generator = row.fields.get(answer), row.fields.get("generator")
        bare = isinstance(text, str) and text.strip() in ("", *_NOTHING)
        return Answered(
            string(row, prompt),
            text.strip() if bare else string(row, answer),
            _label(row) if LABEL in row.fields else "",
            generator.strip() if isinstance(generator, str) else "",
        )

    return read


ANSWERS = (
    Shape("prompt/answer[/label]", _answered("prompt", "answer")),
    Shape("instruction/output[/generator]", _answered("instruction", "output")),
)
