"""The command that judges: answers of other programs, and mistakes in one line."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from isara_jax import config
from isara_jax.evaluate import refusals
from isara_jax.host import judge_file
from tests import environment
from tests.host.judge_run_test import lines, members, write_judges

ROWS = [
    {"id": 1, "Prompt": "Why?", "answer": "I'm sorry, I can't help with that.", "label": "unsafe"},
    {"id": 2, "Prompt": "How?", "answer": "", "label": "safe"},
    {"id": 3, "Prompt": "Who – 漢?", "answer": "None", "label": "safe", "verdict": {"me": "good"}},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_judges(tmp_path_factory.mktemp("judges"))


def test_rows_of_any_program_keep_what_they_have(tmp_path, folders, capsys):
    """All fields stay as they are spelt, other verdicts too; by judge and by rule."""
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    judge_file.judge(str(path), members(folders[1], "rule"))
    found = lines(tmp_path / "mine.judged.jsonl")
    assert [line | {"verdict": 0} for line in found] == [row | {"verdict": 0} for row in ROWS]
    assert [line["verdict"]["rule"] for line in found] == ["refused", "empty", "answered"]
    assert found[2]["verdict"]["me"] == "good"
    scores = [float(line["verdict"]["reward"]) for line in found]
    said = capsys.readouterr().out
    mean = re.search(r"^mine +(-?\d+\.\d{3}) .* 100\.0 % .* 0\.0 %", said, re.MULTILINE)
    assert float(mean[1]) == pytest.approx(sum(scores) / 3, abs=0.01), said
    # Judged again, by another one: the same file.
    judge_file.judge(str(tmp_path / "mine.judged.jsonl"), members(folders[0]))
    again = lines(tmp_path / "mine.judged.jsonl")
    assert [{*line["verdict"]} >= {"reward", "rule", "flags"} for line in again] == [True] * 3
    assert len([*tmp_path.iterdir()]) == 2


def test_outputs_of_alpaca_eval(tmp_path, capsys):
    """A row of the table for each generator, of its own answers."""
    path = tmp_path / "outputs.json"
    answers = {"a-model": ["Sure.", "I cannot help with that."], "b-model": ["Yes.", "No."]}
    rows = [
        {"dataset": "koala", "instruction": f"Do {i}.", "output": text, "generator": generator}
        for generator, texts in answers.items()
        for i, text in enumerate(texts)
    ]
    path.write_text(json.dumps(rows))
    judge_file.judge(str(path), members("rule"))
    found = lines(tmp_path / "outputs.judged.jsonl")
    for line, row in zip(found, rows, strict=True):
        expected = "refused" if refusals.refused(row["output"]) else "answered"
        assert line == row | {"verdict": {"rule": expected}}
    said = capsys.readouterr().out
    assert re.search(r"^a-model +50\.0 %", said, re.MULTILINE)
    assert re.search(r"^b-model +0\.0 %", said, re.MULTILINE)


def test_answers_without_a_text_are_refused(tmp_path):
    """By file, line and field; nothing is written."""
    path = tmp_path / "mine.jsonl"
    for row, said in (
        ({"prompt": "Why?", "answer": 3}, "mine.jsonl:2: answer: found 3"),
        ({"prompt": "Why?"}, "mine.jsonl:2: answer: missing"),
        ({"prompt": " ", "answer": "x"}, "mine.jsonl:2: prompt: found an empty text"),
    ):
        path.write_text("".join(json.dumps(r) + "\n" for r in ({"prompt": "a", "answer": ""}, row)))
        with pytest.raises(ValueError, match=said):
            judge_file.judge(str(path), members("rule"))
    path.write_text('{"question": "a", "reply": "b"}\n')
    with pytest.raises(ValueError, match=r"prompt: missing.*instruction/output"):
        judge_file.judge(str(path), members("rule"))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.jsonl"]


def test_judges_called_as_those_without_a_model_are_refused(tmp_path, folders):
    """Else its verdicts would stand in the place of theirs."""
    shutil.copytree(folders[0], tmp_path / "oracle")
    with pytest.raises(config.ConfigError, match="oracle"):
        members(str(tmp_path / "oracle"))


MISTAKES = {
    ("--workdir=w",): "--judges is missing. It is: Folders",
    ("--judges=rule",): "one of --workdir and --answers",
    ("--judges=rule", "--workdir=w", "--answers=a"): "one of --workdir and --answers",
    ("--judges=rule", "--workdir=nowhere"): "nowhere: not the folder of a run",
    ("--judges=rule", "--answers=nowhere.jsonl"): "nowhere.jsonl: no such file",
    ("--judges=rule,nowhere", "--workdir=w"): r"--judges\[0\]: .*nowhere",
    ("--judges={0}", "--answers={1}", "--judge_prompts={{q}}"): r"--judge_prompts\[0\]='{q}' must",
    ("--judges={0}", "--answers={1}", *["--judge_prompts=a"] * 2): "2 templates for 1 judges",
    ("--judges={0}", "--answers={1}", "--judge_tokens=4"): "--judge_tokens: the judge flags has",
    ("--judges={0}", "--answers={1}", "--mesh=1x1x64"): "--mesh=1x1x64: model=64 does not divide",
    ("--judges={0}", "--answers={1}", "--mesh=3"): "--mesh='3': must be 'auto'",
}
EACH = """
import json, sys
sys.modules["torch"] = None
from absl import flags
from isara_jax import judge
for arguments in json.loads(sys.argv[1]):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    flags.FLAGS(["judge", *arguments])
    try:
        judge.main([""])
    except SystemExit as end:
        print(json.dumps(end.code))
"""


def test_mistakes_end_in_one_line(tmp_path, folders):
    """Flags that do not go together, named as they were given; and one that is good."""
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    good = ["--judges={0},rule", "--answers={1}", "--judge_tokens=96", "--slots=2"]
    asked = [[a.format(folders[0], path) for a in given] for given in (*MISTAKES, good)]
    out = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(asked)], capture_output=True, text=True,
        cwd=tmp_path, env=environment.of() | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    told = out.stdout.splitlines()
    for found, words in zip(told, MISTAKES.values(), strict=False):
        assert re.fullmatch(f"isara_jax: .*{words}.*", json.loads(found)), found
    assert told[-1] == f"Verdicts: {tmp_path / 'mine.judged.jsonl'}"
    assert {*lines(tmp_path / "mine.judged.jsonl")[0]["verdict"]} == {"flags", "rule"}
