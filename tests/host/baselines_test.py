"""The baselines: what is shown, what trains, who draws; and what is chosen by validation seeds."""

import functools
import itertools

import jax
import numpy as np
import pytest

from isara_jax import config
from isara_jax.evaluate import answers
from isara_jax.host import results, run, setup, validation
from isara_jax.host.executables import Executables
from isara_jax.tasks import bundled, domains, oracle
from isara_jax.text import tokens
from tests.host.run_test import adapter, lines
from tests.method.iteration_test import SAMPLES, SEEDS, Compiled, iterate, same_tokens, small

K = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


# --- in context ----------------------------------------------------------------------------------


def rendered(s, rows, question):
    """The prompt with these seeds, as the tokenizer makes it of its text."""
    pairs = [(s.task.seeds[row].question, s.task.seeds[row].answer) for row in rows]
    (ids,) = s.base.vocabulary.plain([tokens.render(pairs, question)])
    return [*s.base.vocabulary.begin, *ids]


def test_the_seeds_shown_in_context(random_model, data):
    """Nearest, drawn for each question, or always the first: from one executable."""
    c = small(random_model, evaluation__k=K, evaluation__temperature=0.0)
    s = setup.prepare(config.resolve(c), data, None)
    exe = Executables(s.program, s.inputs)
    start, items = exe.start(s.seeds), s.task.items
    number = np.arange(len(items)) // 2  # two rows of each question
    chosen, prompts, drawn = {}, {}, {}
    for how in (answers.NEAREST, answers.RANDOM, answers.FIXED):
        shown = answers.Shown.of(start.pool, how, number, s.program.mesh)
        asked = answers.Questions(s.measured.held_out, shown)
        for found, function in ((chosen, answers._chosen), (prompts, answers._prompts)):
            call = functools.partial(function, s.program, k=K)
            found[how] = jax.device_get(exe.call(function.__name__, call, s.inputs, asked))
        drawn[how] = jax.device_get(
            exe.answer(start.trainable, asked, s.inputs.hyper.answer, K).tokens
        )
    assert exe.compiles[f"answer_{K}_shot"] == 1
    np.testing.assert_array_equal(chosen[answers.FIXED], [range(K)] * len(items))
    random = chosen[answers.RANDOM]
    np.testing.assert_array_equal(random[::2], random[1::2])
    assert all(len({*row}) == K for row in random.tolist())
    assert len({tuple(row) for row in random.tolist()}) > len(items) // 4
    assert {*random.flat} == {*range(SEEDS)}
    for how, found in prompts.items():
        for rows, ids, n, item in zip(chosen[how], *found, items, strict=True):
            order = rows[::-1]  # the most important last; the first ones go where room is short
            whole = (rendered(s, order[dropped:], item.question) for dropped in range(K + 1))
            assert ids[:n].tolist() == next(text for text in whole if len(text) <= len(ids))
    assert not np.array_equal(drawn[answers.RANDOM], drawn[answers.FIXED])


# --- the validation split ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [32, 64])
@pytest.mark.parametrize("seed", [0, 1])
def test_validation_seeds_are_like_the_others(n, seed):
    """Of the bundled world: as many benign ones, topics as evenly as they go."""
    pairs = bundled.bundled_seeds("safety", n, None, seed)
    kept = domains.n_validation(n, -1)
    assert kept == n // 4
    topics = {q.topic for q in map(oracle.parse, (pair.question for pair in pairs))}
    for part in (pairs[:-kept], pairs[-kept:]):
        questions = [oracle.parse(pair.question) for pair in part]
        assert sum(not q.harmful for q in questions) == len(part) // 4
        harmful = [q.topic for q in questions if q.harmful]
        counts = [harmful.count(topic) for topic in topics]
        assert max(counts) - min(counts) <= 1


def test_how_many_seeds_choose():
    """A quarter where there are enough; never so many that nothing is left to learn from."""
    assert [domains.n_validation(n, -1) for n in (2, 15, 16, 63, 64)] == [0, 0, 4, 15, 16]
    assert domains.n_validation(8, 6) == 6 and domains.n_validation(64, 0) == 0
    with pytest.raises(ValueError, match="config.task.validation=7 of 8 seeds: at least 2 others"):
        domains.n_validation(8, 7)


def test_the_lowest_loss_is_chosen():
    """Ties go to the first, the shorter; a training that diverged is never the best."""
    assert validation.best([2.0, 1.0, 1.0]) == 1
    assert validation.best([float("nan"), 3.0]) == 1


def test_seeds_to_choose_by_are_needed(random_model, data):
    """Otherwise the held-out items would have to choose."""
    c = small(random_model, keep="best")
    with pytest.raises(config.ConfigError, match=r"keep='best' needs .*--config.task.validation=2"):
        setup.prepare(config.resolve(c), data, None)


# --- a run ---------------------------------------------------------------------------------------


def test_the_length_of_sft_is_chosen_by_seeds(random_model, tmp_path, monkeypatch):
    """Every length on the other seeds, one of them on all; the held-out items are not asked."""
    tried, fine_tune = [], Executables.fine_tune_on_seeds

    def spied(self, start, n, steps, keep):
        fit = fine_tune(self, start, n, steps, keep)
        tried.append((int(jax.device_get(n)), int(jax.device_get(steps))))
        return fit

    monkeypatch.setattr(Executables, "fine_tune_on_seeds", spied)
    c = small(random_model, iterations=1, task__n_seeds=16, evaluation__n=4)
    c.train.learning_rate, c.evaluation.sft_steps = 0.02, (0.25, 0.5, 1.0)
    c.evaluation.baselines = ("sft",)
    summary = run.run(config.resolve(c), tmp_path)
    rows = [row for row in summary["rows"] if row["method"] == "sft"]
    found = summary["sft"]
    chosen = found["steps"][int(np.argmin(found["validation"]))]
    measured = sorted({chosen, found["steps"][-1]})
    assert found["chosen"] == chosen
    assert [(row["steps"], row.get("chosen_on")) for row in rows] == [
        (steps, 4 if steps == chosen else None) for steps in measured
    ]
    assert tried == [*((12, steps) for steps in found["steps"]), *((16, s) for s in measured)]
    assert (
        f"SFT on the seeds, {chosen} steps, chosen on 4 of them"
        in (tmp_path / "report.html").read_text()
    )
    methods = [line["method"] for line in lines(tmp_path / "items.jsonl")]
    assert methods == ["base", "isara", *["sft"] * len(measured)]


@pytest.mark.parametrize("execution", ["fused", "staged"])
def test_one_round_is_one_iteration_with_all_samples(
    random_model, tmp_path, monkeypatch, execution
):
    """The base model draws every sample from seeds alone, and trains once on all of them.

    Requests are keyed by iteration and number: the first part is what one iteration of all samples
    begins with, the others are other draws of the same distribution.
    """
    calls, step = [], Executables.step

    def spied(self, state, hyper=None, **keep):
        before = jax.device_get(state.trainable)
        result = step(self, state, hyper, **keep)
        calls.append((hyper is not None, before, *jax.device_get(result)))
        return result

    monkeypatch.setattr(Executables, "step", spied)
    c = small(random_model, execution=execution, evaluation__n=4, train__data="latest")
    c.evaluation.baselines = ("one_round",)
    c.train.include_seeds, c.train.epochs = execution == "fused", 2
    summary = run.run(config.resolve(c), tmp_path)
    assert set(summary["compiles"].values()) == {1}
    assert [ours for ours, *_ in calls] == [False, False, True, True]
    isara, parts = calls[:2], calls[2:]
    for _, before, _, report in parts:
        assert (report.demonstrations < SEEDS).all() and len(report.reason) == SAMPLES
        assert jax.tree.all(jax.tree.map(np.array_equal, before, isara[0][1]))
        assert (report.train_steps == 0) == (report is parts[0][3])
    assert same_tokens(parts[0][3], isara[0][3]) and not same_tokens(parts[1][3], isara[1][3])
    _, _, state, report = parts[-1]
    pool, trained_on = state.pool, 2 * SAMPLES + (SEEDS if execution == "fused" else 0)
    assert pool.count == SEEDS + 2 * SAMPLES
    assert report.train_steps == 2 * -(-trained_on // 8)
    lengths = [
        int(part.bare.lengths[row])
        for row in range(SEEDS + 2 * SAMPLES)
        for part in (pool.pairs.question, pool.pairs.answer)
        if execution == "fused" or row >= SEEDS
    ]
    assert 2 * sum(lengths) < report.train_tokens  # headers, too: each pair was read twice
    (row,) = (row for row in summary["rows"] if row["method"] == "one_round")
    assert row["steps"] == report.train_steps == summary["one_round"]["train_steps"]
    samples = lines(tmp_path / "samples" / "one_round.jsonl")
    assert len(samples) == summary["one_round"]["attempted"] == 2 * SAMPLES
    shown = {row for sample in samples for row in sample["demonstrations"]}
    assert shown <= {f"seed-{i + 1}" for i in range(SEEDS)}
    assert len(summary["iterations"]) == 2 and summary["seconds"]["one_round"] > 0
    assert summary["tokens"]["questions"] == sum(int(r.question.drawn) for *_, r in isara)
    if execution == "fused":
        whole = small(random_model, iterations=1, samples_per_iteration=2 * SAMPLES)
        s = setup.prepare(config.resolve(whole), tmp_path / "data", None)
        _, _, (at_once,) = iterate(s)
        first = jax.tree.map(
            lambda x: x[:SAMPLES], (at_once.question.tokens, at_once.answer.tokens)
        )
        mine = parts[0][3]
        assert all(map(np.array_equal, first, (mine.question.tokens, mine.answer.tokens)))


# --- the best iteration --------------------------------------------------------------------------


def keeping(model):
    c = small(model, keep="best", task__validation=3, evaluation__n=4)
    c.evaluation.baselines = ("one_round",)
    return config.resolve(c)


@pytest.fixture(scope="module")
def kept(random_model, tmp_path_factory):
    """A run whose first iteration is the best: a random model gets better, and this is reversed."""
    workdir, loss = tmp_path_factory.mktemp("kept"), validation.loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "loss", lambda *args: 1 / loss(*args))
        yield workdir, run.run(keeping(random_model), workdir)


def test_the_best_iteration_is_kept(kept):
    """Its adapter is the result; ISARA never saw the seeds that chose it, the baselines did."""
    workdir, summary = kept
    found = summary["kept"]
    losses = found["validation"]
    assert found["iteration"] == int(np.argmin(losses)) + 1 < found["last"] == len(losses) == 2
    assert [line.get("validation_loss") for line in lines(workdir / "metrics.jsonl")] == [
        found["base"], *losses
    ]  # fmt: skip
    shown = {
        name: {
            row
            for sample in lines(workdir / "samples" / f"{name}.jsonl")
            for row in sample["demonstrations"]
        }
        for name in ("iteration_1", "iteration_2", "one_round")
    }
    unseen = {f"seed-{i + 1}" for i in range(SEEDS - 3, SEEDS)}
    assert unseen <= shown.pop("one_round") and not any(unseen & rows for rows in shown.values())
    assert set(summary["compiles"].values()) == {1}
    said = f"Kept: iteration {found['iteration']}, by its loss on 3 validation seeds"
    assert said in (workdir / "report.html").read_text()


def test_the_best_iteration_outlives_interruptions(kept, random_model, tmp_path, monkeypatch):
    """Killed before the best one's adapter was written, and in the iteration after it."""
    uninterrupted, summary = kept
    assert summary["kept"]["iteration"] == 1
    compiled = Compiled(silent=True)
    for holder, name, at in ((results, "export", 1), (Executables, "step", 1)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(holder, name, dies_at(at, getattr(holder, name)))
            run.run(keeping(random_model), tmp_path, compiled)
    continued = run.run(keeping(random_model), tmp_path, compiled)
    assert continued["kept"] == summary["kept"]
    assert continued["rows"] == summary["rows"]
    ours, theirs = adapter(tmp_path), adapter(uninterrupted)
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


def dies_at(call, function):
    """`function`, interrupted the n-th time it is called."""
    calls = itertools.count(1)

    def dying(*args, **named):
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **named)

    return dying
