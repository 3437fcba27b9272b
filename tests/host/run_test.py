"""The command as a user runs it: outputs, continuation, own data, mistakes, several devices."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import safetensors.numpy

from isara_jax import config
from isara_jax.evaluate import choices, prompts, scores
from isara_jax.files import remote
from isara_jax.host import fingerprint, forecast, held_out, history, run, same_run, setup
from isara_jax.host.executables import Executables
from isara_jax.tasks import base, domains
from isara_jax.tasks.bundled import bundled_items
from tests import environment
from tests.method.iteration_test import SAMPLES, SEEDS, small

ROOT = pathlib.Path(__file__).parents[2]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def adapter(workdir):
    return safetensors.numpy.load_file(workdir / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """The main job on the bundled model, made short."""
    workdir = tmp_path_factory.mktemp("bundled") / "run"
    c = small("tiny_llama", samples_per_iteration=32, slots=16, evaluation__n=48)
    c.filters.finished, c.filters.rouge_l = True, 0.9
    c.evaluation.baselines = config.BASELINES
    return config.resolve(c), workdir, run.run(config.resolve(c), workdir)


def test_summary_has_what_was_promised(bundled):
    """Scripts read summary.json: its fields, its methods, and counts that agree."""
    c, workdir, summary = bundled
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert (summary["task"], summary["n_seeds"]) == ("safety", SEEDS)
    methods = [(row["method"], row["iteration"]) for row in summary["rows"]]
    expected = [(name, None) for name in ("base", *config.BASELINES)]
    assert methods == [*expected, ("isara", 1), ("isara", 2)]
    for row in summary["rows"]:
        assert {"aligned_rate", "harmless_rate_greedy", "over_refusal_rate"} <= set(row["metrics"])
        for name, (k, n) in row["counts"].items():
            low, high = row["intervals"][name]
            assert row["metrics"][name] == k / n and low <= k / n <= high
        assert row["n"] == 48
    assert set(summary["compiles"].values()) == {1} and "isara_step" in summary["compiles"]
    accepted = sum(i["accepted"] for i in summary["iterations"])
    assert summary["scaling_ratio"] == accepted / SEEDS > 0
    (sft,) = (row for row in summary["rows"] if row["method"] == "sft")
    assert sft["steps"] == sum(i["train_steps"] for i in summary["iterations"])
    leakage, asked = summary["leakage"], {item.question for item in bundled_items("safety")[:48]}
    assert (leakage["held_out"], leakage["seeds"]["n"]) == (len(asked), SEEDS)
    counted = [*leakage["accepted"], leakage["one_round"]]
    for found, entry in zip(counted, [*summary["iterations"], summary["one_round"]], strict=True):
        assert (found["n"], found["near"]) == (entry["accepted"], entry["near_held_out"])
        assert found["n"] >= found["near"] >= found["identical"]
    names = ("iteration_1", "iteration_2", "one_round")
    for found, name in zip(counted, names, strict=True):
        samples = lines(workdir / "samples" / f"{name}.jsonl")
        kept = [sample["question"] for sample in samples if sample["accepted"]]
        assert (found["n"], found["identical"]) == (len(kept), sum(q in asked for q in kept))
    assert len(summary["examples"]) == 5
    assert all(
        summary["seconds"][name] > 0 for name in ("compile", "questions", "answers", "train")
    )


def test_the_workdir_holds_what_was_promised(bundled):
    """Each file a user is told of is there and is what it is said to be."""
    c, workdir, summary = bundled
    assert json.loads((workdir / "config.json").read_text())["samples_per_iteration"] == 32
    assert [line["step"] for line in lines(workdir / "metrics.jsonl")] == [0, 1, 2]
    assert "<html" in (workdir / "report.html").read_text()[:200]
    assert list((workdir / "tensorboard").iterdir())
    assert not list(workdir.rglob("*.tmp"))
    known = {f"seed-{i + 1}" for i in range(SEEDS)}
    for number in (1, 2):
        samples = lines(workdir / "samples" / f"iteration_{number}.jsonl")
        assert len(samples) == 32
        entry = summary["iterations"][number - 1]
        assert sum(s["accepted"] for s in samples) == entry["accepted"]
        for sample in samples:
            assert set(sample["demonstrations"]) <= known and len(sample["demonstrations"]) == 3
            assert (sample["reason"] == "accepted") == sample["accepted"]
        known |= {s["id"] for s in samples if s["accepted"]}


def test_a_finished_run_is_not_repeated(bundled, monkeypatch, capsys):
    """The same command again shows the table and computes nothing."""
    c, workdir, summary = bundled
    monkeypatch.setattr(Executables, "_get", None)
    assert run.run(c, workdir) == summary
    assert "ISARA" in capsys.readouterr().out


def test_another_configuration_is_refused(bundled):
    """Two runs mixed in one folder would be nobody's result."""
    c, workdir, _ = bundled
    values = small("tiny_llama", samples_per_iteration=32, slots=16, evaluation__n=48, seed=3)
    values.filters.finished, values.filters.rouge_l = True, 0.9
    values.evaluation.baselines = config.BASELINES
    with pytest.raises(config.ConfigError, match="config.seed: 0 there, 3 now"):
        run.run(config.resolve(values), workdir)


@pytest.fixture(scope="module")
def whole(random_model, tmp_path_factory):
    """A run of the random model, not interrupted."""
    c = config.resolve(small(random_model))
    workdir = tmp_path_factory.mktemp("whole")
    return c, workdir, run.run(c, workdir)


def test_more_iterations_go_on_where_fewer_ended(whole, random_model, tmp_path):
    """A finished run with `iterations` raised keeps what was done; none of it is taken back."""
    _, finished, summary = whole
    place = shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(config.ConfigError, match="config.iterations=1: .* holds 2"):
        run.run(config.resolve(small(random_model, iterations=1)), place)
    assert json.loads((place / "summary.json").read_text()) == summary
    raised = run.run(config.resolve(small(random_model, iterations=3)), place)
    of_isara = [  # differences are to the last iteration, which is another now
        [row | {"differences": None} for row in s["rows"] if row["method"] == "isara"]
        for s in (summary, raised)
    ]
    assert of_isara[1][:2] == of_isara[0] and of_isara[1][2]["iteration"] == 3
    assert raised["iterations"][:2] == summary["iterations"] and len(raised["iterations"]) == 3
    (sft,) = (row for row in raised["rows"] if row["method"] == "sft")
    assert sft["steps"] == sum(entry["train_steps"] for entry in raised["iterations"])
    known = {f"seed-{i + 1}" for i in range(SEEDS)}
    for number in (1, 2):
        name = f"samples/iteration_{number}.jsonl"
        assert (place / name).read_text() == (finished / name).read_text()
        known |= {row["id"] for row in lines(place / name)}
    last = lines(place / "samples" / "iteration_3.jsonl")
    shown = {row for sample in last for row in sample["demonstrations"]}
    assert shown <= known and any(row.startswith("2-") for row in shown)
    assert [line["step"] for line in lines(place / "metrics.jsonl")] == [0, 1, 2, 3]
    assert json.loads((place / "config.json").read_text())["iterations"] == 3


def test_own_seeds_without_a_judge(random_model, tmp_path):
    """Somebody's own file: nobody judges, so likelihood is reported, and refusals of prompts."""
    seeds = tmp_path / "mine.jsonl"
    rows = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(12)]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"How is {i}?"}) + "\n" for i in range(20)))
    c = small(random_model, iterations=1, execution="staged", evaluation__n=5)
    c.task.name, c.task.seeds, c.task.n_seeds, c.task.held_out = "sums", str(seeds), 0, 4
    c.evaluation.prompts = str(prompts)
    summary = run.run(config.resolve(c), tmp_path / "run")
    assert (summary["task"], summary["n_seeds"]) == ("sums", 8)
    losses = {row["method"]: row["metrics"]["nll_per_token"] for row in summary["rows"]}
    assert not any("items" in row for row in summary["rows"])
    for row in lines(tmp_path / "run" / "items.jsonl"):
        values, weights = row["items"]["nll_per_token"]
        assert sum(values) / sum(weights) == pytest.approx(losses[row["method"]])
    for row in summary["rows"][1:]:
        value, low, high = row["differences"]["base"]["nll_per_token"]
        assert value == pytest.approx(losses[row["method"]] - losses["base"]) and low < value < high
    back, forth = (summary["rows"][i]["differences"] for i in (0, -1))
    assert back["isara"]["nll_per_token"][0] == -forth["base"]["nll_per_token"][0]
    assert set(summary["rows"][1]["differences"]) == {"base", "isara"} and set(forth) == {"base"}
    assert set(losses) == {"base", "icl_random", "icl_fixed", "icl_knn", "sft", "isara"}
    assert all(np.isfinite([*losses.values()]))
    assert summary["iterations"][0]["valid_questions"] is None
    assert summary["prompts"] == "5 of the 20 in prompts.jsonl"
    assert all(row["counts"]["refused"][1] == 5 for row in summary["rows"])
    scalars = lines(tmp_path / "run" / "metrics.jsonl")
    assert [("refused_greedy" in line, line["step"]) for line in scalars] == [(True, 0), (True, 1)]
    folder = tmp_path / "run" / "answers"
    (steps,) = (row["steps"] for row in summary["rows"] if row["method"] == "sft")
    names = {"base", "isara_1", "icl_knn", "icl_random", "icl_fixed", f"sft_{steps}"}
    forms = (".jsonl", ".alpaca_eval.json", "_greedy.alpaca_eval.json")
    assert {file.name for file in folder.iterdir()} == {n + form for n in names for form in forms}
    written = lines(folder / "isara_1.jsonl")
    held_out_ones = [line for line in written if line["label"] == "held_out"]
    assert len(held_out_ones) == 2 * 4 and all(not line["verdict"] for line in held_out_ones)
    said = [line for line in written if line["label"] is None]
    assert len(said) == 2 * 5
    for line in said:
        assert (line["method"], line["iteration"], line["label"]) == ("isara", 1, None)
        assert set(line["verdict"]) == {"rule"} and line["prompt"].startswith("How is ")
    for form, decoding in (("", "sampled"), ("_greedy", "greedy")):
        outputs = json.loads((folder / f"isara_1{form}.alpaca_eval.json").read_text())
        mine = [line for line in said if line["decoding"] == decoding]
        assert outputs == [
            {
                "instruction": line["prompt"],
                "output": line["answer"],
                "generator": f"{random_model.name}-isara_1{form}",
            }
            for line in mine
        ]
    examples = [(e["question"], e["after"]) for e in summary["examples"]]
    assert examples == [(line["prompt"], line["answer"]) for line in held_out_ones[:4]]


def command(*flags):
    """Runs the command with compilation forbidden: it must fail before."""
    code = (
        "import sys, jax\n"
        "import isara_jax.main as m\n"
        "jax.jit = lambda *a, **k: sys.exit('COMPILED')\n"
        "m.command.start()\n"
        "m.command.run(m.main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, env=environment.of(),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_changed_seeds_file_is_another_run(random_model, tmp_path):
    """The path is the same, the seeds are not: the old pool must not be continued."""
    seeds = tmp_path / "mine.jsonl"

    def write(last):
        texts = ["one", "two", "three", last]
        rows = [{"question": f"Is it {t}?", "answer": f"It is {t}."} for t in texts]
        seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))

    c = small(random_model, iterations=1)
    c.task.name, c.task.seeds, c.task.n_seeds, c.task.held_out = "mine", str(seeds), 0, 1
    c = config.resolve(c)
    write("four")
    s = setup.prepare(c, tmp_path / "data", None)
    old = config.to_dict(s.config) | {"data": fingerprint.of(s.data)}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(old))
    same = tmp_path / "elsewhere.jsonl"
    shutil.copy(seeds, same)
    moved = dataclasses.replace(c.task, seeds=str(same), n_seeds=3)
    place = remote.Workdir(tmp_path / "run")
    same_run.check(
        setup.prepare(dataclasses.replace(c, task=moved), tmp_path / "data", None), place
    )
    write("five")
    found = "(seeds: 1 of 3|held-out items: 1 of 1), the first is now 'Is it five[?]'"
    with pytest.raises(config.ConfigError, match=found):
        run.run(c, tmp_path / "run")
    write("four")
    other = dataclasses.replace(
        c, task=dataclasses.replace(c.task, held_out=-1, n_seeds=2), train=dataclasses.replace(
            c.train, lora=dataclasses.replace(c.train.lora, targets=("q",))
        ),
    )  # fmt: skip
    with pytest.raises(config.ConfigError, match="another configuration") as error:
        run.run(other, tmp_path / "run")
    targets = '--config.train.lora.targets=\'("q", "k", "v", "o", "gate", "up", "down")\''
    given = f"To continue it, give --config.task.n_seeds=0 --config.task.held_out=1 {targets}; "
    assert given in str(error.value)
    whole = fingerprint._hash([*s.task.seeds, *s.task.items])[:16]  # as versions before wrote it
    assert fingerprint.agrees(whole, s.data) and not fingerprint.agrees("0123", s.data)


def test_a_run_under_an_older_default_is_told_how_it_continues(random_model, tmp_path):
    """8 pairs were held out where nobody said; now a quarter is."""
    seeds = tmp_path / "mine.jsonl"
    rows = [{"question": f"Is it {i}?", "answer": f"It is {i}."} for i in range(48)]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = small(random_model, task__seeds=str(seeds), task__n_seeds=0, task__held_out=8)
    s = setup.prepare(config.resolve(c), tmp_path / "data", None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(same_run.record(s)))
    c.task.held_out = -1
    s = setup.prepare(config.resolve(c), tmp_path / "data", None)
    assert "12 held-out questions (a quarter, by task.held_out=-1)" in forecast._held_out(s)
    cure = r"40 then, 36 now.* To continue it, give --config.task.held_out=8; to start anew"
    with pytest.raises(config.ConfigError, match=cure):
        same_run.check(s, remote.Workdir(tmp_path / "run"))


@pytest.mark.parametrize(
    ("pairs", "held_out", "n", "words"),
    [
        (12, -1, 0, "3 held-out questions (a quarter, by task.held_out=-1)"),
        (24, -1, 0, "8 held-out questions (the least, by task.held_out=-1)"),
        (3, -1, 0, "1 held-out questions (the least, by task.held_out=-1)"),
        (2000, -1, 0, "256 held-out questions (the most, by task.held_out=-1)"),
        (2000, -1, 100, "100 held-out questions (as evaluation.n=100)"),
        (24, 6, 12, "6 held-out questions (as task.held_out=6)"),
        (0, -1, 5, "5 held-out questions"),
    ],
)
def test_who_says_how_many_are_held_out(pairs, held_out, n, words):
    """What is told is what decided: the share, its bounds, or a setting."""
    c = config.Config()
    task = dataclasses.replace(c.task, seeds="mine.csv" * bool(pairs), held_out=held_out)
    c = dataclasses.replace(c, task=task, evaluation=dataclasses.replace(c.evaluation, n=n))
    found = (domains.n_held_out(pairs) if held_out < 0 else held_out) if pairs else 64
    items = [None] * min(found, n or found)
    said = forecast._held_out(
        types.SimpleNamespace(task=types.SimpleNamespace(items=items), config=c)
    )
    assert said == words


def test_what_files_are_read_as_is_said():
    """In the first lines: the fields that were taken, what was left out, how labels are known."""
    prompted = prompts.Prompts(None, (), "2 of the 3 in p.csv", "read as goal/target")
    asked = choices.Choices(None, None, None, np.array([1]), (0,) * 3, "mc.json, read as x")
    s = types.SimpleNamespace(
        task=types.SimpleNamespace(about="s.parquet, read as prompt/response"),
        measured=setup.Measured(None, (), asked, prompted),
    )
    assert forecast._sources(s) == [
        "  seeds       s.parquet, read as prompt/response",
        "  prompts     2 of the 3 in p.csv; read as goal/target",
        "  choices     mc.json, read as x",
    ]
    assert forecast._choices(asked) == "MC1 and MC2 of 3 questions"
    assert forecast._choices(asked._replace(mc2=None)) == "MC1 of 3 questions"
    bundled = types.SimpleNamespace(about="")
    s = types.SimpleNamespace(task=bundled, measured=setup.Measured(None, (), None, None))
    assert forecast._sources(s) == []


def test_new_fields_leave_older_fingerprints_as_they_are():
    """Of questions with one right choice, as runs before MC2 noted them."""
    one = base.Choice("Is it?", ("It is.", "No."), 1)
    then = hashlib.sha256(json.dumps([["Is it?", ["It is.", "No."], 1]]).encode()).hexdigest()
    assert fingerprint.of({"choices": [one]}) == {"choices": then[:8]}
    several = dataclasses.replace(one, answer=0, also=(1,))
    other = dataclasses.replace(one, answer=0)
    assert len({str(fingerprint.of({"choices": [c]})) for c in (one, other, several)}) == 3


def test_answers_to_prompts_in_the_format_of_alpaca_eval(tmp_path):
    """A list of objects with who generated them, one decoding a file, beside the rows."""
    s = types.SimpleNamespace(
        task=types.SimpleNamespace(seeds=(), items=()),
        n_pool=0,
        base=types.SimpleNamespace(path=tmp_path / "my-model"),
    )
    outputs = {
        "": [{"dataset": "koala", "instruction": "Say hi.", "output": "Hi – 😀"}],
        "_greedy": [{"instruction": "Say hi.", "output": ""}],
    }
    scored = held_out.Scored(scores.merge(), [], [], outputs)
    where = {"method": "isara", "iteration": 2}
    history.History(s).record_row(where, scored, tmp_path)
    found = {file.name: json.loads(file.read_text()) for file in (tmp_path / "answers").iterdir()}
    assert found == {
        "isara_2.alpaca_eval.json": [outputs[""][0] | {"generator": "my-model-isara_2"}],
        "isara_2_greedy.alpaca_eval.json": [
            outputs["_greedy"][0] | {"generator": "my-model-isara_2_greedy"}
        ],
    }


def test_changed_choices_are_another_run(random_model, tmp_path):
    """Questions, choices and right ones are part of a run; they suffice without held-out pairs."""
    seeds, asked = tmp_path / "mine.jsonl", tmp_path / "choices.jsonl"
    rows = [{"question": f"Is it {i}?", "answer": f"It is {i}."} for i in range(4)]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = small(random_model, task__seeds=str(seeds), task__n_seeds=0, task__held_out=0)
    with pytest.raises(config.ConfigError, match="held_out=0: there is nothing to report"):
        setup.prepare(config.resolve(c), tmp_path / "data", None)
    c.evaluation.choices = str(asked)
    first = {"question": "Is it so?", "choices": ["It is.", "It is not."], "answer": 0}
    found = []
    for change in ({}, {}, {"answer": 1}, {"question": "Is it 3?"}, {"choices": ["Yes.", "No."]}):
        asked.write_text(json.dumps(first | change) + "\n")
        s = setup.prepare(config.resolve(c), tmp_path / "data", None)
        found.append(json.dumps(fingerprint.of(s.data)))
    assert found[0] == found[1]
    assert len(set(found)) == 4
    c.evaluation.judges = (str(random_model),)
    with pytest.raises(config.ConfigError, match="held_out=0: evaluation.judges have no answers"):
        setup.prepare(config.resolve(c), tmp_path / "data", None)


def test_changed_prompts_are_another_run(random_model, tmp_path):
    """Prompts and their labels are part of a run; they suffice without held-out pairs."""
    seeds, prompts = tmp_path / "mine.jsonl", tmp_path / "prompts.jsonl"
    rows = [{"question": f"Is it {i}?", "answer": f"It is {i}."} for i in range(4)]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = small(random_model, task__seeds=str(seeds), task__n_seeds=0, task__held_out=0)
    c.evaluation.prompts, found = str(prompts), []
    for change in ({}, {}, {"label": "safe"}, {"prompt": "Is it?"}):
        prompts.write_text(json.dumps({"prompt": "Is it so?", "label": "unsafe"} | change) + "\n")
        s = setup.prepare(config.resolve(c), tmp_path / "data", None)
        found.append(json.dumps(fingerprint.of(s.data)))
    assert found[0] == found[1] and len(set(found)) == 3
    told = forecast.describe(s, "runs/x", None)
    assert "4 seeds, 0 held-out questions (as task.held_out=0), scored by refusals by rule" in told
    assert "seeds       mine.jsonl, read as question/answer\n" in told
    assert "prompts     1 of the 1 in prompts.jsonl (1 unsafe); read as prompt/label\n" in told


def _mistakes():
    """(name, content of the seeds file or None, flags, what the message must say)."""
    good = '{"question": "Why?", "answer": "So."}\n{"question": "How?", "answer": "Thus."}\n'
    long_answer = '{"question": "Long?", "answer": "' + "word " * 200 + '"}\n'
    own = ("--config.task.seeds={seeds}", "--config.task.held_out=0")
    held = (own[0], "--config.task.held_out=1")
    return [
        ("missing", None, ("--config.task.seeds={folder}/no.jsonl",), ("no.jsonl",)),
        ("empty", "", own, ("seeds.jsonl",)),
        ("malformed", good + "{oops\n", own, ("seeds.jsonl:3",)),
        ("field", good + '{"question": "x"}\n', own, ("seeds.jsonl:3", "answer")),
        ("duplicate", good + good, own, ("seeds.jsonl:3", "line 1")),
        (
            "long",
            good + long_answer,
            (*held, "--config.answer.max_tokens=40"),
            ("seeds.jsonl:3", "answer", "config.answer.max_tokens=40"),
        ),
        (
            "too long",
            good + long_answer.replace("word", "word word word word"),
            held,
            ("seeds.jsonl:3", "512 positions"),
        ),
        ("model", None, ("--config.model.path={folder}/none",), ("config.model.path", "none")),
        ("devices", None, ("--config.mesh=1x1x64",), ("config.mesh=1x1x64", "choices: 1, 2, 4")),
        ("value", None, ("--config.iterations=0",), ("config.iterations=0",)),
        ("prompt", None, ("--config.answer.max_tokens=600",), ("config.answer",)),
        ("no judge", good * 1, own, ("config.task.held_out=0",)),
        ("domain", None, ("--config.task.name=cooking",), ("cooking", "safety")),
    ]


@pytest.mark.parametrize("mistake", _mistakes(), ids=lambda m: m[0])
def test_mistakes_end_in_one_clear_line(mistake, tmp_path):
    """Each mistake is named, with file and line or field, before anything is compiled."""
    _, content, flags, said = mistake
    seeds = tmp_path / "seeds.jsonl"
    if content is not None:
        seeds.write_text(content)
    flags = [f.format(seeds=seeds, folder=tmp_path) for f in flags]
    code, output = command("--config=configs/safety.py", f"--workdir={tmp_path / 'run'}", *flags)
    assert code != 0 and "COMPILED" not in output and "Traceback" not in output, output
    assert all(part in output for part in said), output
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_unknown_field_is_refused():
    """A misspelt flag does nothing silently."""
    code, output = command(
        "--config=configs/safety.py", "--workdir=unused", "--config.train.learning_rte=1"
    )
    assert code != 0 and "learning_rte" in output


def test_a_tokenizer_of_another_model_is_refused(random_model, tmp_path):
    """More tokens than rows of the embedding: text would be read as noise."""
    folder = tmp_path / "model"
    shutil.copytree(random_model, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"extra{i}": 1536 + i for i in range(10)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    c = config.resolve(small(folder))
    with pytest.raises(ValueError, match="1546 tokens, the model's embedding 1536 rows"):
        run.run(c, tmp_path / "run")


def test_samples_of_a_run_do_not_depend_on_the_slots(whole, random_model, tmp_path):
    """Slots are scheduling: with fewer of them the same samples come out."""
    _, one, _ = whole
    c = small(random_model, slots=4, iterations=1)
    run.run(config.resolve(c), tmp_path)
    name = "samples/iteration_1.jsonl"
    assert (tmp_path / name).read_text() == (one / name).read_text()
    assert len(lines(tmp_path / name)) == SAMPLES
