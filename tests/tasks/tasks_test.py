"""Domains: files of seeds, their TFDS data sets, and the three bundled domains."""

import collections
import csv
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

from isara_jax.tasks import builders, bundled, domains, files, oracle, shapes, world
from isara_jax.tasks.base import Item, Pair
from isara_jax.text import tokens

ODD = Pair('He said "hi", then\n\nleft — 😀?', "  a\tb,\r\nc’\u2028 \\n é中".strip())


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def pair(i):
    return {"question": f"Question number {i}?", "answer": f"Answer {i}."}


# --- files -------------------------------------------------------------------------------------


def test_jsonl_keeps_texts_and_order(tmp_path):
    """Texts come out as they went in, stripped; blank lines, a BOM and other keys do no harm."""
    odd = {"id": 7, "question": f"\n {ODD.question}\t", "answer": ODD.answer}
    raw = json.dumps(odd, ensure_ascii=False) + "\n\n  \n" + lines(pair(1))
    path = write(tmp_path, "seeds.jsonl", b"\xef\xbb\xbf" + raw.encode())
    assert files.read_pairs(str(path)) == (ODD, Pair("Question number 1?", "Answer 1."))


def test_csv_reads_quoted_cells_over_several_lines(tmp_path):
    """CSV cells may hold commas, quotes and line breaks; columns may come in any order."""
    path = write(
        tmp_path,
        "seeds.CSV",
        '\ufeffanswer,id,question\n"one\ntwo, ""three""",1,What?\n\nyes,2,"Is\nit?"\n',
    )
    assert files.read_pairs(path) == (Pair("What?", 'one\ntwo, "three"'), Pair("Is\nit?", "yes"))


def test_csv_cells_behind_a_blank_and_of_any_length(tmp_path):
    """As people write tables by hand; Python's reader would end at 131,072 characters."""
    long = "many words, " * 20_000 + "and an end"
    path = write(tmp_path, "s.csv", f'question, answer\na, "b, c"\nd,  "{long}"\n')
    assert files.read_pairs(path) == (Pair("a", "b, c"), Pair("d", long))


@pytest.mark.parametrize("word", ["nan", "NaN", "null", "None", "<NA>"])
def test_a_word_for_nothing_is_no_text(tmp_path, word):
    """What pandas wrote for a missing answer is none; a label may be missing, a choice "None"."""
    for name, content in {
        "s.csv": f"question,answer\na,b\nc,{word}\n",
        "s.jsonl": f"\n{lines(pair(0), {'question': 'a', 'answer': word})}",
    }.items():
        with pytest.raises(files.SeedError, match=f"{name}:3: answer: found '{word}' alone"):
            files.read_pairs(write(tmp_path, name, content))
    table = write(tmp_path, "p.csv", f"prompt,label\na,safe\nb,{word}\n")
    assert [prompt.label for prompt in files.read_prompts(table).prompts] == ["safe", ""]
    asked = write(tmp_path, "c.jsonl", lines(ASKED | {"choices": ["Some", word]}))
    assert files.read_choices(asked).asked[0].choices == ("Some", word)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_tables_are_read_by_whatever_separates_them(tmp_path, separator, suffix):
    """Spreadsheets write what their country separates with; the texts hold the other separators."""
    rows = [
        [f"\ufeffsep={separator}"],
        [" Question ", "id", "ANSWER", ""],
        ['a, "b"; c | d\te', "1", "f,g;h|i", ""],
        ["", "", "", ""],
        ["Is it\nso?", "2", "so", "seen"],
    ]
    stream = io.StringIO()
    csv.writer(stream, delimiter="\0").writerow(rows[0])
    csv.writer(stream, delimiter=separator).writerows(rows[1:])
    path = write(tmp_path, f"seeds.{suffix}", stream.getvalue())
    expected = (Pair('a, "b"; c | d\te', "f,g;h|i"), Pair("Is it\nso?", "so"))
    assert files.read_pairs(path) == expected
    assert files.locate(path, "Is it\nso?").endswith(f".{suffix}:5")


def test_names_in_capitals_are_fields_too(tmp_path):
    """Lines of JSON by other hands; names of fields that are not read may come several times."""
    rows = [{"Question": "a?", " ANSWER ": "b"}, {"question": "c?", "Answer": "d", "x": 1, "X": 2}]
    path = write(tmp_path, "seeds.jsonl", lines(*rows))
    assert files.read_pairs(path) == (Pair("a?", "b"), Pair("c?", "d"))
    assert files.locate(path, "a?").endswith(":1")


def test_prompts_and_their_labels(tmp_path):
    """Prompts as the published sets have them; a label that is neither comes back as it is."""
    rows = [
        {"id": 1, "question": "a?", "label": "Unsafe "},
        {"prompt": "b?", "question": "no", "label": "safe"},
        {"prompt": "c?\nAnswer: no", "label": "mixed"},
        {"prompt": "d?", "label": None},
        {"prompt": "e?"},
    ]
    found = files.read_prompts(write(tmp_path, "p.jsonl", lines(*rows))).prompts
    expected = ["a? unsafe", "b? safe", "c?\nAnswer: no mixed", "d? ", "e? "]
    assert [f"{p.text} {p.label}" for p in found] == expected
    assert [p.line for p in found] == [1, 2, 3, 4, 5]
    table = write(tmp_path, "p.csv", "id;Prompt;Label\n1;a?;SAFE\n")
    assert files.read_prompts(table).prompts == (files.Prompt(2, "a?", "safe"),)
    one_column = write(tmp_path, "p.tsv", "prompt\na, b?\n")
    assert files.read_prompts(one_column).prompts == (files.Prompt(2, "a, b?", ""),)
    plain = write(tmp_path, "q.jsonl", lines({"prompt": "a?"}))
    assert files.read_prompts(plain).prompts == (files.Prompt(1, "a?", ""),)


PROMPT_ERRORS = {
    "empty": ("\n", ["p.jsonl: no prompt", '"prompt": ']),
    "no prompt": (lines({"goal": "a"}), ["p.jsonl:1: prompt: missing", "'goal'"]),
    "null": (lines({"prompt": None}), ["p.jsonl:1: prompt: found null; write the prompt"]),
    "labels": (
        lines({"prompt": "a"}, {"prompt": "b", "label": 1}),
        ["p.jsonl:2: label: found 1 (int)", "'safe' or 'unsafe'", "remove the labels"],
    ),
    "label true": (
        lines({"prompt": "a", "label": "safe"}, {"prompt": "b", "label": True}),
        ["p.jsonl:2: label: found true (bool)", "'safe' or 'unsafe'", "in double quotes"],
    ),
    "other labels": (
        lines({"prompt": "a"}, {"prompt": "b", "label": "bad"}),
        ["p.jsonl:2: label: found 'bad'", "'safe' or 'unsafe'", "remove the labels"],
    ),
    "label NaN": ('{"prompt": "a", "label": NaN}', ["p.jsonl:1: label: found NaN, which JSON"]),
    "label twice": (
        lines({"prompt": "a", "label": "safe", "Label": "unsafe"}),
        ["p.jsonl:1: label: found 2 of it, ['label', 'Label']; keep one"],
    ),
}


@pytest.mark.parametrize(("content", "parts"), PROMPT_ERRORS.values(), ids=PROMPT_ERRORS)
def test_errors_of_prompts_say_where_and_what(tmp_path, content, parts):
    """A file of prompts that could not be counted is refused before anything is computed."""
    path = write(tmp_path, "p.jsonl", content)
    with pytest.raises(files.SeedError) as error:
        files.read_prompts(path)
    assert str(error.value).startswith(f"{tmp_path}{os.sep}{parts[0]}")
    assert all(part in str(error.value) for part in parts), error.value


GOOD = lines(pair(0), pair(1))
ERRORS = {
    "suffix": ("seeds.txt", GOOD, ["seeds.txt: ", "'.txt'", ".json, .csv, .tsv or .parquet"]),
    "latin-1": ("s.jsonl", GOOD.encode() + b"\xe9", ["s.jsonl:3: ", "0xe9", "UTF-8"]),
    "utf-16": ("s.csv", "question,answer".encode("utf-16"), ["s.csv:1: ", "0xff", "UTF-8"]),
    "empty": ("s.jsonl", " \n", ["s.jsonl: ", "found 0 pair"]),
    "bom only": ("s.csv", b"\xef\xbb\xbf", ["s.csv: ", "found 0 pair"]),
    "broken json": ("s.jsonl", GOOD + '\n{"question": "a\n', ["s.jsonl:4: ", "JSON at column 14"]),
    "json array": (
        "s.jsonl",
        "[\n" + GOOD + "]",
        ["s.jsonl:1: ", "JSON array", "one whole object a line"],
    ),
    "no object": (
        "s.jsonl",
        GOOD + "[1]",
        ["s.jsonl:3: ", "[1] (list)", '{"question": "…", "answer"'],
    ),
    "no answer": ("s.jsonl", GOOD + '{"question": "a", "x": 1}', ["s.jsonl:3: answer: ", "'x'"]),
    "number": (
        "s.jsonl",
        GOOD + lines({"question": "a", "answer": 42}),
        ["s.jsonl:3: answer: ", "42 (int)", "string"],
    ),
    "null": (
        "s.jsonl",
        lines({"question": None, "answer": "a"}),
        ["s.jsonl:1: question: found null; write the question, or remove the line"],
    ),
    "blank answer": (
        "s.jsonl",
        lines({"question": "a", "answer": " \n"}),
        ["s.jsonl:1: answer: ", "empty"],
    ),
    "duplicate": (
        "s.jsonl",
        GOOD + lines({"question": " question  NUMBER\n0? ", "answer": "b"}),
        ["s.jsonl:3: question: ", "line 1", "remove one"],
    ),
    "nul": (
        "s.jsonl",
        lines({"question": "a\0", "answer": "b"}),
        ["s.jsonl:1: question: ", "U+0000"],
    ),
    "surrogate": (
        "s.jsonl",
        '{"question": "a", "answer": "\\ud83d"}',
        ["s.jsonl:1: answer: ", "U+D83D"],
    ),
    "header": (
        "s.jsonl",
        lines({"question": "a", "answer": "b\n\nQuestion: c"}),
        ["s.jsonl:1: answer: ", "'Question:'", "end the text early"],
    ),
    "answer header": (
        "s.jsonl",
        lines({"question": "a\nAnswer: b", "answer": "c"}),
        ["s.jsonl:1: question: ", "'Answer:'"],
    ),
    "one pair": ("s.jsonl", lines(pair(0)), ["s.jsonl: ", "1 pair", "at least 2"]),
    "csv: no pair": ("s.csv", "question,answer\n", ["s.csv: ", "0 pair"]),
    "csv: columns": ("s.csv", "question:answer\na:b\n", ["s.csv:1: question: ", "question:answer"]),
    "deep json": ("s.jsonl", '{"question": ' + "[" * 99_999, ["s.jsonl:1: ", "nested too deep"]),
    "long number": (
        "s.jsonl",
        '{"answer": ' + "9" * 5000 + "}",
        ["s.jsonl:1: ", "too many digits"],
    ),
    "csv: other columns": (
        "s.csv",
        "Frage;answer\na;b\n",
        ["s.csv:1: question: ", "['frage', 'answer']", "question,answer"],
    ),
    "csv: cells of semicolons": (
        "s.csv",
        "question;answer\na;b\nc;d;e\n",
        ["s.csv:3: ", "3 cell", "texts that hold semicolons"],
    ),
    "csv: capitals twice": (
        "s.csv",
        "Question,answer,QUESTION\n",
        ["s.csv:1: question: ", "2 col"],
    ),
    "json": ("s.json", "[" + GOOD + "]", ["s.json:2: ", "JSON at column 1 ", "list of objects"]),
    "pandas": (
        "s.jsonl",
        GOOD + '{"question": "a", "answer": NaN}',
        ["s.jsonl:3: answer: found NaN, which JSON does not have; write its value, or remove it"],
    ),
    "infinity": (
        "s.jsonl",
        '{"question": "a", "answer": "b", "scores": [1, -Infinity]}',
        ["s.jsonl:1: scores: found -Infinity, which JSON does not have"],
    ),
    "field twice": (
        "s.jsonl",
        GOOD + '{"question": "a", "answer": "b", "answer": "c"}',
        ["s.jsonl:3: answer: found twice in one object; remove one"],
    ),
    "field under two spellings": (
        "s.jsonl",
        lines({"Answer": "a", "question": "b", " ANSWER ": "c"}),
        ["s.jsonl:1: answer: found 2 of it, ['Answer', ' ANSWER ']; keep one"],
    ),
    "csv: blank behind a quote": (
        "s.csv",
        'question,answer\n"a" ,b\n',
        ["s.csv:2: ", "close every quote, right before the separator"],
    ),
    "csv: tab before a quote": (
        "s.csv",
        'question,answer\na,\t"b, c"\n',
        ["s.csv:2: ", "3 cell", "right behind the separator"],
    ),
    "object": (
        "s.jsonl",
        lines({"question": "a", "answer": {"text": ["b"], "answer_start": [3]}}),
        ["s.jsonl:1: answer: ", '{"text": ["b"]', "(object)", "write the answer itself"],
    ),
    "list": (
        "s.jsonl",
        lines({"question": "a", "answer": ["b"]}),
        ["s.jsonl:1: answer: ", '["b"] (list)', "write the answer itself"],
    ),
    "true": (
        "s.jsonl",
        lines({"question": "a", "answer": True}),
        ["s.jsonl:1: answer: ", "true (bool)", "double quotes"],
    ),
    "csv: twice": ("s.csv", "question,answer,answer\n", ["s.csv:1: answer: ", "found 2 columns"]),
    "csv: cells": (
        "s.csv",
        'question,answer\n"a\nb",c\n\nd,e,f\n',
        ["s.csv:5: ", "3 cell", "expected 2"],
    ),
    "csv: open quote": ("s.csv", 'question,answer\n"a\nb",c\nd,"e\nf\n', ["s.csv:4: ", "quote"]),
    "csv: empty": ("s.csv", 'question,answer\n"a\nb\nc",d\ne,\n', ["s.csv:5: answer: ", "empty"]),
    "csv: duplicate": (
        "s.csv",
        'question,answer\n"a\nb",c\nd,e\nA b,f\n',
        ["s.csv:5: question: ", "line 2"],
    ),
}


@pytest.mark.parametrize(("name", "content", "parts"), ERRORS.values(), ids=ERRORS)
def test_error_says_where_and_what(tmp_path, name, content, parts):
    """Every unusable file is refused with its file:line, the field and what was found."""
    path = write(tmp_path, name, content)
    with pytest.raises(files.SeedError) as error:
        files.read_pairs(path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}{os.sep}{parts[0]}")
    assert all(part in message for part in parts), message


ASKED = {"question": "Is it?", "choices": ["Yes.", "No."], "answer": 1}
CHOICE_ERRORS = {
    "empty": ("\n", ["c.jsonl: no question", '"choices": [']),
    "no object": (lines(ASKED) + "3", ["c.jsonl:2: found 3 (int)", '"choices": [']),
    "one choice": (lines(ASKED | {"choices": ["Yes."]}), ["c.jsonl:1: choices: ", "several texts"]),
    "no text": (
        lines(ASKED, ASKED | {"choices": ["a", 4]}),
        ["c.jsonl:2: choices[1]: ", "4 (int)"],
    ),
    "answer": (lines(ASKED | {"answer": 2}), ["c.jsonl:1: answer: found 2", "0 to 1"]),
    "true": (lines(ASKED | {"answer": True}), ["c.jsonl:1: answer: found true (bool)"]),
}


@pytest.mark.parametrize(("content", "parts"), CHOICE_ERRORS.values(), ids=CHOICE_ERRORS)
def test_errors_of_choices_say_where_and_what(tmp_path, content, parts):
    """Questions with choices are read as strictly as seeds, and speak of choices."""
    path = write(tmp_path, "c.jsonl", content)
    with pytest.raises(files.SeedError) as error:
        files.read_choices(path)
    assert str(error.value).startswith(f"{tmp_path}{os.sep}{parts[0]}")
    assert all(part in str(error.value) for part in parts), error.value


def test_path_errors(tmp_path):
    """A missing file and a directory are told apart."""
    with pytest.raises(files.SeedError, match=r"nothing\.jsonl: no such file"):
        files.read_pairs(tmp_path / "nothing.jsonl")
    with pytest.raises(files.SeedError, match="found a directory"):
        files.read_pairs(tmp_path)


def test_headers_are_those_of_the_template():
    """The headers refused in seeds are the ones prompts are made of."""
    assert shapes.HEADERS == (tokens.QUESTION, tokens.ANSWER)


# --- builders ----------------------------------------------------------------------------------


def test_round_trip_is_exact_and_ordered(tmp_path, capfd):
    """Texts survive array_record byte for byte, in order, and nothing is printed."""
    seeds = [ODD, *(Pair(f"q{i}", f"a{i}") for i in range(99, 0, -1))]
    items = [Item(ODD.answer, ODD.question, "kind", "topic"), Item("q", "r", "", "")]
    for _ in range(2):  # written, then reused
        assert builders.materialize(seeds, items, tmp_path) == (tuple(seeds), tuple(items))
    assert builders.materialize(seeds, [], tmp_path) == (tuple(seeds), ())
    assert capfd.readouterr() == ("", "")


def test_changed_source_gives_new_rows(tmp_path):
    """TFDS's habit of returning the old rows under the same data_dir does not reach us."""
    path = write(tmp_path, "seeds.jsonl", GOOD)
    first = domains.load("mine", str(path), 0, (), 0, 0, tmp_path / "data").seeds
    write(tmp_path, "seeds.jsonl", GOOD.replace("Answer 1", "Answer one"))
    second = domains.load("mine", str(path), 0, (), 0, 0, tmp_path / "data").seeds
    assert {s.answer for s in first} == {"Answer 0.", "Answer 1."}
    assert {s.answer for s in second} == {"Answer 0.", "Answer one."}


def test_crash_leaves_nothing_half_written(tmp_path, monkeypatch):
    """After a crash in the middle of writing, the next run starts clean."""
    rows = [Pair("q", "a"), Pair("r", "b")]

    def crash(self, rows):
        yield 0, rows[0]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builders.IsaraTask, "_generate_examples", crash)
        with pytest.raises(KeyboardInterrupt):
            builders.materialize(rows, [], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert builders.materialize(rows, [], tmp_path) == (tuple(rows), ())


def test_second_writer_reuses_the_first_ones_folder(tmp_path, monkeypatch):
    """Of two processes that write the same rows at once, both succeed and one folder stays."""
    rows = [Pair("q", "a"), Pair("r", "b")]
    builders.materialize(rows, [], tmp_path)
    (folder,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:  # blind to the folder, as if it were not there yet
        patch.setattr(pathlib.Path, "exists", lambda self: False)
        assert builders.materialize(rows, [], tmp_path) == (tuple(rows), ())
    assert list(tmp_path.iterdir()) == [folder]


def test_damaged_folder_is_noticed(tmp_path):
    """A data set that holds other rows than expected is an error, not a silent run."""
    builders.materialize([Pair("q", "a"), Pair("r", "b")], [], tmp_path)
    (folder,) = tmp_path.iterdir()
    builders.materialize([Pair("q", "a"), Pair("r", "c")], [], tmp_path)
    (other,) = set(tmp_path.iterdir()) - {folder}
    for path in other.iterdir():
        path.replace(folder / path.name)
    with pytest.raises(RuntimeError, match="delete the folder"):
        builders.materialize([Pair("q", "a"), Pair("r", "b")], [], tmp_path)


def test_no_tensorflow_and_no_jax(tmp_path):
    """Loading a domain, written and reused, imports neither TensorFlow nor JAX."""
    code = (
        "import pathlib, sys; from isara_jax.tasks import domains\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "for _ in 1, 2: domains.load('safety', None, 8, (), 0, 0, folder)\n"
        "sys.exit(bool({'tensorflow', 'jax'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# --- bundled domains ---------------------------------------------------------------------------


@pytest.mark.parametrize("domain", world.DOMAINS)
@pytest.mark.parametrize("seed", range(5))
def test_seeds_are_aligned_new_and_not_held_out(domain, seed):
    """Seeds are deterministic, aligned, without repetition, and never held-out questions."""
    seeds = bundled.bundled_seeds(domain, 96, None, seed)
    assert seeds == bundled.bundled_seeds(domain, 96, None, seed)
    assert seeds != bundled.bundled_seeds(domain, 96, None, seed + 1)
    assert len({s.question for s in seeds}) == 96
    for s in seeds:
        question = oracle.parse(s.question)
        assert question.domain == domain and not question.held_out
        assert oracle.is_aligned(question, s.answer)
    counts = collections.Counter(oracle.parse(s.question).topic for s in seeds)
    assert set(counts) == set(world.TOPICS[domain]) and len(set(counts.values())) == 1


@pytest.mark.parametrize("count", [4, 16, 32, 64])
def test_safety_seeds_have_the_exact_mix(count):
    """Three quarters harmful, one quarter benign; no category more than once ahead of another."""
    asked = [oracle.parse(s.question) for s in bundled.bundled_seeds("safety", count, None, 3)]
    assert sum(q.harmful for q in asked) == count * 3 // 4
    counts = collections.Counter(dict.fromkeys(world.TOPICS["safety"], 0))
    counts.update(q.topic for q in asked)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_topics_restrict_the_seeds():
    """One-category experiments get that category only; what cannot be is refused by name."""
    seeds = bundled.bundled_seeds("safety", 16, ("arson", "theft"), 0)
    assert {oracle.parse(s.question).topic for s in seeds} == {"arson", "theft"}
    with pytest.raises(ValueError, match=r"topics: found \['piracy'\], expected some of poison"):
        bundled.bundled_seeds("safety", 16, ("piracy",), 0)
    assert len(bundled.bundled_seeds("instruction", 24, ("twice",), 0)) == 24  # all there are
    with pytest.raises(ValueError, match="n_seeds: found 25"):
        bundled.bundled_seeds("instruction", 25, ("twice",), 0)


EXPECTED = {
    "safety": {"harmful": 192, "benign": 96},
    "truthfulness": {"fact": 128},
    "instruction": {"instruction": 180},
}


@pytest.mark.parametrize("domain", world.DOMAINS)
def test_items(domain):
    """Items are held out, all different, with aligned references, in the promised numbers."""
    items = bundled.bundled_items(domain)
    assert collections.Counter(item.kind for item in items) == EXPECTED[domain]
    assert len({item.question for item in items}) == len(items)
    for item in items:
        question = oracle.parse(item.question)
        assert (question.domain, question.topic, question.held_out) == (domain, item.topic, True)
        assert (item.kind == "harmful") == question.harmful
        assert oracle.is_aligned(question, item.reference)
        assert bundled.judge(item.question, item.reference) in bundled.METRICS[domain][0].labels + (
            ("good",) if item.kind == "benign" else ()
        )


def test_safety_items_cover_every_object_with_two_verbs():
    """All 288 items ask for different acts, 24 of each category."""
    acts = collections.defaultdict(set)
    for item in bundled.bundled_items("safety"):
        question = oracle.parse(item.question)
        acts[question.topic, question.fields["act"]].add(item.question)
    assert len(acts) == 12 * 2 * (8 + 4)
    assert set(collections.Counter(topic for topic, _ in acts).values()) == {24}


def test_prefix_of_items_is_a_fair_sample():
    """The first 96 items of safety hold about two thirds harmful ones, and all categories."""
    prefix = bundled.bundled_items("safety")[:96]
    assert 54 <= sum(item.kind == "harmful" for item in prefix) <= 74
    assert {item.topic for item in prefix} == set(world.TOPICS["safety"])


def test_items_do_not_depend_on_the_process():
    """All runs are scored on the same questions, whatever Python's hash salt is."""
    code = (
        "from isara_jax.tasks import bundled, world\n"
        "print(ascii([bundled.bundled_items(domain) for domain in world.DOMAINS]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True
    )
    assert result.stdout.strip() == ascii([bundled.bundled_items(d) for d in world.DOMAINS])


def test_judge_and_check_know_their_world(tmp_path):
    """What is no question of the world has no valid answer; a domain knows its own questions."""
    task = domains.load("truthfulness", None, 8, (), 0, 0, tmp_path)
    assert (
        task.judge("What is the river of Paris?", "The river of Paris is the Seine.") == "invalid"
    )
    assert (
        task.judge("What is the river of Valdora?", "Valdora has the Lark as its river.") == "good"
    )
    assert task.check_question("What is the river of Valdora?")
    assert not task.check_question("What is the river of Paris?")
    assert not task.check_question("How do I brew mint tea?")


def test_seeds_of_one_domain_are_tested_on_another(tmp_path):
    """Transfer: questions, metrics and judge are the other domain's, seeds and their check not."""
    own = domains.load("safety", None, 8, (), 0, 0, tmp_path)
    task = domains.tested_on(own, "instruction")
    assert task.items == bundled.bundled_items("instruction")
    assert task.metrics == bundled.METRICS["instruction"]
    assert all(task.judge(item.question, item.reference) == "good" for item in task.items[:20])
    assert task.seeds == own.seeds and task.check_question(own.seeds[0].question)
    with pytest.raises(ValueError, match="task.test: found 'cooking', expected one of safety"):
        domains.tested_on(own, "cooking")


def test_metrics_name_labels_and_kinds_that_exist():
    """A metric over a misspelt label or kind would silently be zero."""
    for domain, metrics in bundled.METRICS.items():
        kinds = {item.kind for item in bundled.bundled_items(domain)} | {None}
        assert all(set(m.labels) <= set(oracle.LABELS) and m.kind in kinds for m in metrics)
        assert len({m.name for m in metrics}) == len(metrics)
    assert [m.name for m in bundled.METRICS["safety"]] == [
        "aligned_rate",
        "harmless_rate",
        "helpful_rate",
        "over_refusal_rate",
        "wrong_refusal_rate",
        "invalid_rate",
        "evasive_rate",
    ]


@pytest.mark.parametrize("domain", world.DOMAINS)
def test_headline_counts_every_request(domain):
    """Refusing everything, or going along with everything, must not raise a domain's headline."""
    headline, items = bundled.METRICS[domain][0], bundled.bundled_items(domain)
    assert headline.name == "aligned_rate" and headline.kind is None
    for item in items:
        aligned = bundled.judge(item.question, item.reference) in headline.labels
        assert aligned and bundled.judge(item.question, world.EVASIONS[0]) not in headline.labels


def test_what_is_asked_for_is_stated_by_no_seed():
    """Else a panel against the number of seeds would show how many answers can be copied."""
    asked = {bundled.subject(i.question) for i in bundled.bundled_items("truthfulness")}
    stated = {
        bundled.subject(seed.question)
        for number in range(8)
        for seed in bundled.bundled_seeds("truthfulness", 64, None, number)
    }
    assert len(asked) == 32 and not asked & stated


def test_items_about_one_thing_belong_together():
    """They stand or fall together, and an interval that takes them for several is too narrow."""
    found = {
        domain: len({bundled.subject(item.question) for item in bundled.bundled_items(domain)})
        for domain in world.DOMAINS
    }
    assert found == {"safety": 12 * 12, "truthfulness": 32, "instruction": 180}


# --- load --------------------------------------------------------------------------------------


def test_load_bundled(tmp_path):
    """A bundled domain comes out of its data set as it was drawn."""
    task = domains.load("safety", None, 12, ("arson",), 0, 5, tmp_path)
    assert task.seeds == bundled.bundled_seeds("safety", 12, ("arson",), 5)
    assert task.items == bundled.bundled_items("safety")
    assert (task.name, task.metrics) == ("safety", bundled.METRICS["safety"])


def test_load_own_seeds(tmp_path):
    """Own pairs are divided once, by the seed: what is held out is never a seed."""
    path = str(write(tmp_path, "mine.jsonl", lines(*map(pair, range(10)))))

    def load(n_seeds, held_out, seed=0):
        return domains.load("cooking", path, n_seeds, (), held_out, seed, tmp_path / "data")

    task = load(0, 3)
    assert (task.name, task.metrics, task.judge, task.check_question) == ("cooking", (), None, None)
    assert {(item.kind, item.topic) for item in task.items} == {("held_out", "all")}
    asked = [s.question for s in task.seeds] + [item.question for item in task.items]
    assert sorted(asked) == sorted(pair(i)["question"] for i in range(10)) and len(task.items) == 3
    assert task.seeds[:4] == load(4, 3).seeds and task.items == load(4, 3).items
    assert task.items != load(0, 3, seed=1).items
    assert load(0, 0).items == () and len(load(0, 0).seeds) == 10
    for n_seeds, held_out in ((0, 9), (0, 11), (0, 50), (1, 0)):
        with pytest.raises(files.SeedError, match=f"held_out={held_out} and n_seeds={n_seeds} "):
            load(n_seeds, held_out)


def test_a_quarter_is_held_out_where_nobody_says(tmp_path):
    """Intervals of 8 items are wide; of few pairs most are needed as seeds."""
    found = [domains.n_held_out(n) for n in (2, 3, 4, 7, 12, 23, 24, 32, 33, 64, 100, 5000)]
    assert found == [0, 1, 1, 1, 3, 5, 8, 8, 8, 16, 25, 256]
    path = str(write(tmp_path, "mine.jsonl", lines(*map(pair, range(64)))))
    task = domains.load("mine", path, 0, (), -1, 0, tmp_path / "data")
    assert (len(task.seeds), len(task.items)) == (48, 16)


def test_load_refuses(tmp_path):
    """Unknown names, too few seeds, and settings that would be ignored are errors."""
    path = str(write(tmp_path, "mine.jsonl", GOOD))
    with pytest.raises(ValueError, match="'cooking', expected one of safety, truthfulness, instr"):
        domains.load("cooking", None, 8, (), 0, 0, tmp_path)
    with pytest.raises(ValueError, match="n_seeds: found 1, expected at least 2"):
        domains.load("safety", None, 1, (), 0, 0, tmp_path)
    with pytest.raises(ValueError, match="topics: found arson"):
        domains.load("mine", path, 0, ("arson",), 0, 0, tmp_path)
