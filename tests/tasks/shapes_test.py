"""Files as they are published: formats, shapes of seeds, prompts and choices, and refusals.

The files are written by the formats' own libraries, small and of the published sets' shape.
"""

import csv
import io
import json
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from isara_jax.tasks import files, shapes
from isara_jax.tasks.base import Choice, Pair

TWO = (Pair("Why, then?", "So; it is."), Pair("How\nmany?", '"Two", they say.'))


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def table(rows, separator=","):
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, rows[0], delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def in_parquet(rows):
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), stream, row_group_size=1)
    return stream.getvalue()


def by_index(rows):
    """As pandas' `to_json` writes a table."""
    return {name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]}


FORMATS = {
    "x.jsonl": jsonl,
    "list.json": json.dumps,
    "indented.json": lambda rows: json.dumps(rows, indent=1),
    "in_object.json": lambda rows: json.dumps({"version": 1, "tags": ["a"], "data": rows}),
    "columns.json": lambda rows: json.dumps(columns(rows)),
    "pandas.json": lambda rows: json.dumps(by_index(rows)),
    "lines.json": jsonl,
    "x.csv": table,
    "x.tsv": lambda rows: table(rows, "\t"),
    "x.parquet": in_parquet,
    "CAPITALS.PARQUET": in_parquet,
}


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer"),
    [("question", "answer"), ("prompt", "response"), ("Prompt", " completion"),
     ("instruction", "output")],
)  # fmt: skip
@pytest.mark.parametrize("name", FORMATS)
def test_pairs_of_every_format(tmp_path, name, question, answer):
    """The same two pairs, whatever writes them and however the fields are called."""
    rows = [{"id": str(i), question: p.question, answer: p.answer} for i, p in enumerate(TWO)]
    read = files.read_seeds(write(tmp_path, name, FORMATS[name](rows)))
    said = f"{question.strip().casefold()}/{answer.strip().casefold()}"
    assert read == (TWO, f"{name}, read as {said}")


def test_where_a_row_stands(tmp_path):
    """By its line, and in a format without lines by its number, of an error and of a question."""
    rows = [{"prompt": p.question, "response": p.answer} for p in TWO]
    again = [*rows, {"prompt": "how MANY?", "response": "Three."}]
    places = {
        "x.csv": (":2", ":3", ":5"),
        **dict.fromkeys(("x.jsonl", "lines.json"), (":1", ":2", ":3")),
        **dict.fromkeys(
            ("list.json", "pandas.json", "x.parquet"), (": row 1", ": row 2", ": row 3")
        ),
    }
    for name, (first, second, third) in places.items():
        path = write(tmp_path, name, FORMATS[name](rows))
        found = [files.locate(path, pair.question) for pair in TWO]
        assert found == [f"{path}{first}", f"{path}{second}"]
        path = write(tmp_path, name, FORMATS[name](again))
        unit = "row" if "row" in second else "line"
        number = second.split()[-1].strip(":")
        with pytest.raises(files.SeedError) as error:
            files.read_pairs(path)
        assert str(error.value) == (
            f"{path}{third}: prompt: found the question of {unit} {number} again ('how MANY?'); "
            "remove one of the two"
        )


def test_parquet_is_imported_where_it_is_read(tmp_path):
    """Reading another file does not load pyarrow."""
    path = write(tmp_path, "x.jsonl", jsonl([{"question": p.question, "answer": "a"} for p in TWO]))
    code = (
        "import sys; from isara_jax.tasks import files\n"
        f"files.read_pairs({str(path)!r}); sys.exit('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- seeds ---------------------------------------------------------------------------------------


def chat(*turns, role="role", content="content"):
    return [{role: who, content: text} for who, text in turns]


def test_alpaca_joins_the_input(tmp_path):
    """Behind a blank line; words for no input are none."""
    rows = [
        {"instruction": "Sum up.", "input": " A text.\n", "output": "Text."},
        {"instruction": "Say hi.", "input": "", "output": "Hi."},
        {"instruction": "Say ho.", "input": "<noinput>", "output": "Ho."},
    ]
    expected = (
        Pair("Sum up.\n\nA text.", "Text."), Pair("Say hi.", "Hi."), Pair("Say ho.", "Ho.")
    )  # fmt: skip
    for name in ("list.json", "x.csv", "x.parquet"):
        read = files.read_seeds(write(tmp_path, name, FORMATS[name](rows)))
        assert read.pairs == expected
        assert read.about == (
            f"{name}, read as instruction/input/output (the input behind the instruction and a "
            "blank line)"
        )


def test_self_instruct(tmp_path):
    """The first instance of each task."""
    rows = [
        {"id": "t0", "instruction": "List two.", "is_classification": False,
         "instances": [{"input": "", "output": "1, 2"}]},
        {"id": "t1", "instruction": "Sum up.",
         "instances": [{"input": "A text.", "output": "Text."}, {"input": "B", "output": "b"}]},
    ]  # fmt: skip
    for name in ("x.jsonl", "x.parquet"):
        read = files.read_seeds(write(tmp_path, name, FORMATS[name](rows)))
        assert read.pairs == (Pair("List two.", "1, 2"), Pair("Sum up.\n\nA text.", "Text."))
        assert "read as instruction/instances (the first instance, the input" in read.about


@pytest.mark.parametrize(
    ("name", "role", "content", "user", "assistant"),
    [("messages", "role", "content", "user", "assistant"),
     ("conversations", "from", "value", "human", "gpt")],
)  # fmt: skip
def test_chats_of_one_exchange(tmp_path, name, role, content, user, assistant):
    """What has a system message or goes on is left out and counted, with its place."""
    first, second = (chat((user, p.question), (assistant, p.answer)) for p in TWO)
    chats = [
        first, chat(("system", "Be brief."), (user, "a"), (assistant, "b")),
        chat(("system", ""), *((turn["role"], turn["content"]) for turn in second)),
        chat((user, "c"), (assistant, "d"), (user, "e"), (assistant, "f")),
        chat((assistant, "g"), (user, "h")), chat((user, "i"), (assistant, "j"), (user, "k")),
    ]  # fmt: skip
    rows = [
        {name: [{role: turn["role"], content: turn["content"]} for turn in turns]}
        for turns in chats
    ]
    for suffix, unit in (("x.jsonl", "line"), ("x.parquet", "row"), ("columns.json", "row")):
        read = files.read_seeds(
            write(tmp_path, suffix, FORMATS[suffix]([r | {"id": 0} for r in rows]))
        )
        assert read.pairs == TWO
        assert read.about == (
            f"{suffix}, read as {name} (one user's message and the assistant's answer); left out: "
            f"1 with a system message ({unit} 2), 2 with further messages (the first in {unit} 4), "
            f"1 without a user's message and an assistant's behind it ({unit} 5)"
        )


def test_beavertails_gives_its_safe_answers(tmp_path):
    """Several answers to a prompt are judged there; the first safe one is a seed."""
    rows = [
        {"prompt": "a", "response": "bad", "category": {"theft": True}, "is_safe": False},
        {"prompt": "a", "response": "good", "category": {"theft": False}, "is_safe": True},
        {"prompt": "a", "response": "also good", "category": {"theft": False}, "is_safe": True},
        {"prompt": "b", "response": "fine", "category": {"theft": False}, "is_safe": True},
        {"prompt": "c", "response": "bad", "category": {"theft": True}, "is_safe": False},
    ]
    for name, unit, shift in (
        ("x.jsonl", "line", 0),
        ("x.parquet", "row", 0),
        ("x.csv", "line", 1),
    ):
        read = files.read_seeds(write(tmp_path, name, FORMATS[name](rows)))
        assert read.pairs == (Pair("a", "good"), Pair("b", "fine"))
        assert read.about == (
            f"{name}, read as prompt/response/is_safe (of each prompt the first safe response); "
            f"left out: 2 with is_safe false (the first in {unit} {1 + shift}), 1 with a prompt "
            f"that stood there before ({unit} {3 + shift})"
        )


KNOWN = [shape.spec for shape in shapes.SEEDS[1:]]
GOOD = [{"question": p.question, "answer": p.answer} for p in TWO]
SEED_ERRORS = {
    "unknown": ("x.jsonl", jsonl([{"q": "a", "a": "b"}]),
                [":1: question: missing; found the fields ['a', 'q']; add 'question'", *KNOWN]),
    "unknown table": ("x.csv", "text,target\na,b\n",
                      [":1: question: found 0 columns of this name in ['text', 'target']", *KNOWN]),
    "unknown parquet": ("x.parquet", in_parquet([{"text": "a"}]),
                        [": question: found 0 columns of this name in ['text']", *KNOWN]),
    "two shapes": ("x.jsonl", jsonl([{"prompt": "a", "response": "b", "completion": "c"}]),
                   [":1: found ['completion', 'prompt', 'response'], which may mean "
                    "prompt/response or prompt/completion; keep the fields of one"]),
    "two shapes of a table": ("x.csv", "question,answer,instruction,output\n",
                              [":1: ", "question/answer or instruction[/input]/output"]),
    "chats twice": ("x.jsonl", jsonl([{"messages": [], "conversations": []}]),
                    [":1: ", "messages or conversations"]),
    "another shape later": ("x.jsonl", jsonl([*GOOD, {"prompt": "a", "response": "b"}]),
                            [":3: question: missing; found the fields ['prompt', 'response']"]),
    "columns twice": ("x.tsv", "prompt\tresponse\tPrompt\n",
                      [":1: prompt: found 2 columns of this name"]),
    "empty": ("x.json", " \n", [": found 0 pair"]),
    "empty list": ("x.json", "[]", [": found 0 pair"]),
    "no object": ("x.json", json.dumps([*GOOD, "text"]),
                  [": row 3: found 'text', expected an object"]),
    "a text": ("x.json", '"text"', [": found 'text'; write a list of objects, an object with one"]),
    "unequal columns": ("x.json", json.dumps({"question": ["a", "b"], "answer": ["c"]}),
                        ["with the fields ['answer', 'question']", "of equal length"]),
    "two lists": ("x.json", json.dumps({"train": GOOD, "test": GOOD[:1]}),
                  ["with the fields ['test', 'train']", "an object with one such list"]),
    "field twice": ("x.json", '[{"question": "a", "question": "b"}]', [": question: found twice"]),
    "NaN": ("x.json", '[{"question": "a", "answer": NaN}]', [": answer: found NaN"]),
    "broken": ("x.json", '[{"question": "a"},\n {oops}]', [":2: malformed JSON at column 3"]),
    "deep": ("x.json", "[" * 99_999, [": malformed JSON", "nested too deep"]),
    "broken line": ("x.json", jsonl(GOOD) + "{oops\n", [":3: malformed JSON at column 2"]),
    "no parquet": ("x.parquet", jsonl(GOOD), [": no parquet file that can be read (", ".jsonl"]),
    "cut parquet": ("x.parquet", in_parquet(GOOD)[:-20], [": no parquet file that can be read"]),
    "parquet null": ("x.parquet", in_parquet([*GOOD, {"question": "a", "answer": None}]),
                     [": row 3: answer: found null; write the answer, or remove the row"]),
    "parquet number": ("x.parquet", in_parquet([{"question": "a", "answer": 3}]),
                       [": row 1: answer: found 3 (int), expected a string"]),
    "parquet bytes": ("x.parquet", in_parquet([{"question": "a", "answer": b"b"}]),
                      [": row 1: answer: found ", "(bytes), expected a string"]),
    "parquet nan": ("x.parquet", in_parquet([*GOOD, {"question": "a", "answer": "nan"}]),
                    [": row 3: answer: found 'nan' alone", "or remove the row"]),
    "parquet header": ("x.parquet", in_parquet([{"question": "a", "answer": "b\nQuestion: c"}]),
                       [": row 1: answer: found a line that starts with 'Question:'"]),
    "header in the input": ("x.json", json.dumps(
                                [{"instruction": "a", "input": "Answer: b", "output": "c"}]),
                            [": row 1: input: found a line that starts with 'Answer:'"]),
    "input": ("x.json", json.dumps([{"instruction": "a", "input": ["b"], "output": "c"}]),
              [': row 1: input: found ["b"] (list), expected a string']),
    "no instance": ("x.jsonl", jsonl([{"instruction": "a", "instances": []}]),
                    [":1: instances: found [] (list), expected a list of objects"]),
    "instance": ("x.jsonl", jsonl([{"instruction": "a", "instances": ["b"]}]),
                 [":1: instances[0]: found 'b', expected an object with input and output"]),
    "instance without output": ("x.jsonl", jsonl([{"instruction": "a", "instances": [{}]}]),
                                [":1: instances[0].output: found null; write the output"]),
    "is_safe": ("x.jsonl", jsonl([{"prompt": "a", "response": "b", "is_safe": "so"}]),
                [":1: is_safe: found 'so', expected true or false"]),
    "all unsafe": ("x.jsonl", jsonl([{"prompt": "a", "response": "b", "is_safe": False}]),
                   [": found 0 pair(s); left out: 1 with is_safe false (line 1), expected at"]),
    "messages in a table": ("x.csv", "messages\nhello\n",
                            [":2: messages: found 'hello', expected a list of messages with role"]),
    "no role": ("x.jsonl", jsonl([{"messages": [{"from": "human", "value": "a"}]}]),
                [":1: messages[0]: found {", "expected an object with role and content"]),
    "no message": ("x.jsonl", jsonl([{"messages": ["a"]}]), [":1: messages[0]: found 'a'"]),
    "content": ("x.jsonl", jsonl([{"messages": chat(("user", ["a"]), ("assistant", "b"))}]),
                [':1: messages[0].content: found ["a"] (list), expected a string']),
    "empty content": ("x.jsonl", jsonl([{"messages": chat(("user", "a"), ("assistant", " "))}]),
                      [":1: messages[1].content: found an empty text; write the content"]),
    "header in a chat": ("x.jsonl", jsonl([{"messages": chat(("user", "a\nAnswer: b"),
                                                             ("assistant", "c"))}]),
                         [":1: messages[0].content: found a line that starts with 'Answer:'"]),
}  # fmt: skip


def refused(read, path, parts):
    with pytest.raises(files.SeedError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path}{parts[0]}") and "\n" not in message, message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(("name", "content", "parts"), SEED_ERRORS.values(), ids=SEED_ERRORS)
def test_seeds_are_refused_with_what_was_found(tmp_path, name, content, parts):
    """File, line or row, field, what was found, what to do: on one line."""
    path = write(tmp_path, name, content)
    if not parts[0].startswith(":"):
        parts = [": ", *parts]
    refused(files.read_pairs, path, parts)


# --- prompts -------------------------------------------------------------------------------------

XSTEST = [
    {"id": "v2-1", "prompt": "How do I kill a process?", "type": "homonyms", "note": ""},
    {"id": "v2-2", "prompt": "How do I hurt one?", "type": "contrast_homonyms", "note": ""},
    {"id": "v2-3", "prompt": "Where does he live?", "type": "privacy_fictional", "note": ""},
    {"id": "v2-4", "prompt": "Where does she live?", "type": "contrast_privacy", "note": ""},
]
GOALS = [{"Index": "0", "Goal": "Write it", "Target": "Here it is", "Behavior": "It",
          "Category": "Things", "Source": "Original"}]  # fmt: skip
PROMPTS = {
    "plain": ("p.csv", [{"id": "1", "Prompt": "a?", "other": "x"}], [""], "read as prompt", ""),
    "BeaverTails-Evaluation": (
        "p.json", [{"prompt": "a?", "category": "theft", "category_id": "3"}], ["unsafe"],
        "read as prompt/category/category_id", "BeaverTails-Evaluation, all taken as unsafe",
    ),
    "prompt and category": (
        "p.json", [{"prompt": "a?", "category": "theft"}], [""], "read as prompt", ""
    ),
    "XSTest": (
        "x.csv", XSTEST, ["safe", "unsafe", "safe", "unsafe"], "read as prompt/type",
        "XSTest, unsafe where the type begins with contrast_, else safe",
    ),
    "XSTest with labels": (
        "x.csv", [row | {"label": "unsafe"} for row in XSTEST], ["unsafe"] * 4,
        "read as prompt/type/label", "",
    ),
    "other types": ("x.csv", [{"prompt": "a?", "type": "trivia"}], [""], "read as prompt", ""),
    "AdvBench": (
        "harmful_behaviors.csv", [{"goal": "Do it", "target": "Sure, here"}], ["unsafe"],
        "read as goal/target", "AdvBench, all taken as unsafe",
    ),
    "JBB harmful": (
        "harmful-behaviors.csv", GOALS, ["unsafe"], "read as goal/target/behavior/category",
        "JBB-Behaviors, safe where the file's name has benign, unsafe where it has harmful",
    ),
    "JBB benign": (
        "benign-behaviors.csv", GOALS, ["safe"], "read as goal/target/behavior/category",
        "JBB-Behaviors, safe where the file's name has benign, unsafe where it has harmful",
    ),
    "JBB of another name": (
        "jbb.parquet", GOALS, [""], "read as goal/target/behavior/category",
        "JBB-Behaviors, safe where the file's name has benign, unsafe where it has harmful",
    ),
    "AlpacaEval": (
        "alpaca_eval.json",
        [{"instruction": "Say hi.", "dataset": "koala", "output": "Hi.", "generator": "m"}], [""],
        "read as instruction/dataset", "",
    ),
    "Do-Not-Answer": (
        "p.parquet", [{"id": 1, "risk_area": "I", "types_of_harm": "x", "question": "a?"}],
        ["unsafe"], "read as question/risk_area", "Do-Not-Answer, all taken as unsafe",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rows", "labels", "about", "taken"), PROMPTS.values(), ids=PROMPTS
)
def test_published_prompts(tmp_path, name, rows, labels, about, taken):
    """Their labels where they have some, or as they are known to be; what was taken is said."""
    form = {"csv": table, "json": json.dumps, "parquet": in_parquet}[name.split(".")[-1]]
    read = files.read_prompts(write(tmp_path, name, form(rows)))
    field = next(f for f in ("prompt", "Prompt", "goal", "Goal", "instruction", "question")
                 if f in rows[0])  # fmt: skip
    assert [prompt.text for prompt in read.prompts] == [row[field] for row in rows]
    assert [prompt.label for prompt in read.prompts] == labels
    assert (read.about, read.labels) == (about, taken)
    assert [prompt.dataset for prompt in read.prompts] == [row.get("dataset", "") for row in rows]
    assert {prompt.unit for prompt in read.prompts} == {"line" if form is table else "row"}


def test_prompts_may_hold_headers_and_inputs(tmp_path):
    """They are asked, never shown as demonstrations."""
    rows = [{"instruction": "Sum up.", "input": "Answer: so\nQuestion: why", "dataset": "d"}]
    read = files.read_prompts(write(tmp_path, "p.json", json.dumps(rows)))
    assert read.prompts[0].text == "Sum up.\n\nAnswer: so\nQuestion: why"
    assert read.about == (
        "read as instruction/input/dataset (the input behind the instruction and a blank line)"
    )


PROMPT_ERRORS = {
    "type": ("x.csv", table([*XSTEST, {"id": "", "prompt": "a", "type": "homonym", "note": ""}]),
             [":6: type: found 'homonym', which is none of XSTest's", "add a column label"]),
    "two shapes": ("p.json", json.dumps([{"prompt": "a", "instruction": "b"}]),
                   [": row 1: found ['instruction', 'prompt'], which may mean "
                    "prompt|question[/label] or instruction"]),
    "strings only": ("harmful_strings.csv", "target\nSure\n",
                     [":1: prompt: found 0 columns of this name in ['target']", "goal/target"]),
    "label": ("p.parquet", in_parquet([{"goal": "a", "target": "b", "label": 1}]),
              [": row 1: label: found 1 (int), expected 'safe' or 'unsafe'"]),
    "no label of the two": ("p.json", json.dumps([{"prompt": "a", "label": "bad"}]),
                            [": row 1: label: found 'bad', and no 'safe' or 'unsafe'"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "parts"), PROMPT_ERRORS.values(), ids=PROMPT_ERRORS)
def test_prompts_are_refused_with_what_was_found(tmp_path, name, content, parts):
    """A prompt whose label cannot be known would be counted on the wrong side."""
    refused(files.read_prompts, write(tmp_path, name, content), parts)


# --- choices -------------------------------------------------------------------------------------


def test_several_right_choices(tmp_path):
    """One's own format: a list of numbers, the best first."""
    rows = [
        {"question": "a?", "choices": ["x", "y", "z"], "answer": [2, 0]},
        {"question": "b?", "choices": ["x", "y"], "answer": [1]},
    ]
    expected = (Choice("a?", ("x", "y", "z"), 2, (0,)), Choice("b?", ("x", "y"), 1))
    for name in ("x.jsonl", "list.json", "x.parquet"):
        path = write(tmp_path, name, FORMATS[name](rows))
        assert files.read_choices(path) == (expected, f"{name}, read as question/choices/answer")


def test_truthfulqa_table(tmp_path):
    """The best answer first, each once, with full stops; also with the column of newer versions."""
    row = {
        "Type": "Adversarial", "Category": "Law", "Question": "Is it?",
        "Best Answer": "It is", "Correct Answers": "It is so.; It is; It is so; ",
        "Incorrect Answers": "No;It is not, ever.", "Source": "",
    }  # fmt: skip
    expected = Choice("Is it?", ("It is.", "It is so.", "No.", "It is not, ever."), 0, (1,))
    for more in ({}, {"Best Incorrect Answer": "No"}):
        read = files.read_choices(write(tmp_path, "TruthfulQA.csv", table([row | more])))
        assert read.asked == (expected,)
        assert read.about.startswith("TruthfulQA.csv, read as question/best answer/correct answers")
    hub = {
        "question": "Is it?", "best_answer": "It is", "correct_answers": ["It is so.", "It is"],
        "incorrect_answers": ["No", "It is not, ever."],
    }  # fmt: skip
    assert files.read_choices(write(tmp_path, "x.parquet", in_parquet([hub]))).asked == (expected,)


def test_truthfulqa_targets(tmp_path):
    """Choices by metric, as in the published task and on the hub; the two need not be the same."""
    first, second = {"A.": 1, "B.": 0, "C.": 0}, {"B.": 0, "D.": 1, "A.": 1, "E.": 0}
    rows = [{"question": "a?", "mc0_targets": {}, "mc1_targets": first, "mc2_targets": second}]
    expected = Choice(
        "a?", ("A.", "B.", "C.", "D.", "E."), 0, also=(3,), only_mc1=(2,), only_mc2=(4,)
    )
    read = files.read_choices(write(tmp_path, "mc_task.json", json.dumps(rows)))
    assert read.asked == (expected,)
    assert read.about == "mc_task.json, read as question/mc1_targets/mc2_targets (TruthfulQA)"

    def hub(targets):
        return {"choices": [*targets], "labels": [*targets.values()]}

    rows = [{"question": "a?", "mc1_targets": hub(first), "mc2_targets": hub(second)}]
    assert files.read_choices(write(tmp_path, "x.parquet", in_parquet(rows))).asked == (expected,)
    rows = [{"question": "a?", "mc1_targets": first}]
    read = files.read_choices(write(tmp_path, "x.jsonl", jsonl(rows)))
    assert read.asked == (Choice("a?", ("A.", "B.", "C."), 0),)


def targets(first, second):
    return json.dumps([{"question": "a?", "mc1_targets": first, "mc2_targets": second}])


ROW = {"question": "a?", "choices": ["x", "y"], "answer": 0}
TABLE = {"Question": "a?", "Best Answer": "b", "Correct Answers": "b", "Incorrect Answers": "c"}
BOTH = {"A": 1, "B": 0}
CHOICE_ERRORS = {
    "unknown": ("x.csv", "question,answer\na,b\n",
                [":1: choices: found 0 columns of this name", "question/mc1_targets[/mc2_"]),
    "no right one": ("x.json", json.dumps([ROW | {"answer": []}]),
                     [": row 1: answer: found [] (list), expected the number", "or a list"]),
    "number": ("x.json", json.dumps([ROW | {"answer": [0, 2]}]), [": row 1: answer: found [0, 2]"]),
    "text": ("x.json", json.dumps([ROW | {"answer": "A"}]), [": row 1: answer: found 'A'"]),
    "twice": ("x.json", json.dumps([ROW | {"answer": [0, 0]}]),
              [": row 1: answer: found [0, 0] (list) of 2 choices", "each right one once"]),
    "all right": ("x.json", json.dumps([ROW | {"answer": [0, 1]}]),
                  [": row 1: answer: found [0, 1] (list)", "and a wrong one besides"]),
    "table": ("x.csv", "question,choices,answer\na,b;c,0\n",
              [":2: choices: found 'b;c', expected a list of several texts"]),
    "right and wrong": ("t.csv", table([TABLE | {"Incorrect Answers": "c; b."}]),
                        [":2: incorrect answers: found 'b.', which is among the right ones too"]),
    "no wrong one": ("t.csv", table([TABLE | {"Incorrect Answers": ";"}]),
                     [":2: incorrect answers: found ';', expected at least one answer"]),
    "no best one": ("t.csv", table([TABLE | {"Best Answer": ""}]),
                    [":2: best answer: found an empty text"]),
    "two best": ("mc.json", targets(BOTH | {"C": 1}, BOTH),
                 [": row 1: mc1_targets: found 2 right choices, expected one"]),
    "none best": ("mc.json", targets({"A": 0}, BOTH), [": row 1: mc1_targets: found {"]),
    "other best": ("mc.json", targets(BOTH, {"A": 0, "C": 1}),
                   [": row 1: mc2_targets: 'A' is right in only one of mc1_targets and"]),
    "best left out": ("mc.json", targets(BOTH, {"B": 0, "C": 1}), [": row 1: mc2_targets: 'A' is"]),
    "wrong and right": ("mc.json", targets(BOTH, {"A": 1, "B": 1, "C": 0}),
                        [": row 1: mc2_targets: 'B' is right in only one"]),
    "labels": ("mc.json", targets(BOTH, {"A": True, "B": False}),
               [": row 1: mc2_targets: found {", "an object of choices with 1 or 0"]),
    "list": ("mc.json", targets(BOTH, ["A", "B"]), [": row 1: mc2_targets: found ["]),
    "unequal": ("mc.json", targets(BOTH, {"choices": ["A"], "labels": [1, 0]}),
                [": row 1: mc2_targets: found {"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "parts"), CHOICE_ERRORS.values(), ids=CHOICE_ERRORS)
def test_choices_are_refused_with_what_was_found(tmp_path, name, content, parts):
    """What MC1 or MC2 could not be computed of, or would be computed wrongly."""
    refused(files.read_choices, write(tmp_path, name, content), parts)


def test_specs_say_what_they_need():
    """The notation of shapes: brackets for what may be missing, bars between names of one."""
    shape = shapes.Shape("a|b[/c]/d e[/f]", lambda row: None)
    assert shape.needs == [("a", "b"), ("d e",)] and shape.names == ["a", "b", "c", "d e", "f"]
    assert shape.used(["d e", "b", "a"]) == ["a", "d e"]
    assert shape.said(["f", "b", "x", "d e"]) == "read as b/d e/f"
