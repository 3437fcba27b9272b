"""The stages of an iteration and the paper's switches, on a small random model."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest
import transformers

from isara_jax import config
from isara_jax.devices import compilation_cache
from isara_jax.evaluate import answers
from isara_jax.host import run, setup
from isara_jax.host.executables import Executables, Shared
from isara_jax.method import accept, iteration, prompting
from isara_jax.method.program import Hyper
from isara_jax.method.progress import Progress
from isara_jax.sampler import spelling
from isara_jax.text import packing, stops, tokens

SAMPLES, SEEDS = 16, 8


def small(model, **changes):
    """A configuration for the random model; `group__field=value` changes a field."""
    c = config.default()
    c.model.path = str(model)
    c.task.n_seeds = SEEDS
    c.samples_per_iteration, c.iterations, c.slots = SAMPLES, 2, 8
    c.question.max_tokens, c.answer.max_tokens = 32, 40
    c.question.k, c.answer.k, c.evaluation.n = 2, 3, 16
    c.question.sampling.temperature = 1.0
    # A random model ends nothing and repeats nothing: every sample passes.
    c.filters.finished, c.filters.rouge_l = False, 2.0
    c.train.batch_size, c.train.epochs = 8, 1
    c.evaluation.sft_steps = (1.0,)
    for name, value in changes.items():
        *parents, leaf = name.split("__")
        functools.reduce(lambda node, parent: node[parent], parents, c)[leaf] = value
    return c


class Compiled(Shared):
    """What was compiled for one start is there for the next one."""

    def begin(self, rest):
        self._used = set(self._compiled)
        return super().begin(rest)


@pytest.fixture(scope="module")
def prepare(random_model, tmp_path_factory):
    """Sets up a run with changed fields."""
    data = tmp_path_factory.mktemp("data")
    return lambda **changes: setup.prepare(
        config.resolve(small(random_model, **changes)), data, None
    )


def iterate(s, times=1):
    """The state and the reports after some iterations."""
    exe = Executables(s.program, s.inputs)
    state, reports = exe.start(s.seeds), []
    with jax.transfer_guard("disallow"):
        for _ in range(times):
            state, report = exe.step(state)
            reports.append(jax.device_get(report))
    return exe, jax.device_get(state), reports


@pytest.fixture(scope="module")
def default(prepare):
    """Two iterations as configured by default."""
    return iterate(prepare(), 2)


def adapter_distance(a, b):
    """Relative distance of two trees."""
    a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def same_tokens(a, b):
    return all(
        np.array_equal(x.tokens, y.tokens)
        for x, y in ((a.question, b.question), (a.answer, b.answer))
    )


def test_one_executable_for_all_iterations(default):
    """A second compilation of the iteration, silent and minutes long on a real model."""
    exe, state, _ = default
    assert exe.compiles["isara_step"] == 1
    assert state.step == 2


def check_spelled(exe, found, drawn, place):
    """What was drawn, as text, stands there in the tokenizer's own ids."""
    vocabulary = exe.program.vocabulary
    ended = stops.QUESTION_STOPS if place == tokens.IN_QUESTION else stops.ANSWER_STOPS
    texts = spelling.texts(vocabulary, drawn, ended)
    head, *whole = vocabulary.plain([place.header, *(f"{place.header} {t}" for t in texts)])
    seamed = vocabulary.plain([f"{place.header} {t}{place.seam}" for t in texts])
    for part, rows in ((found.bare, whole), (found.joined, seamed)):
        ids = [row[:n].tolist() for row, n in zip(*part, strict=True)]
        assert [head + row for row in ids] == rows


def test_the_pool_grows_by_what_was_accepted(default):
    """Accepted pairs stand in the pool behind the seeds, in order, with their iteration."""
    exe, state, reports = default
    assert all((r.reason == 0).all() for r in reports)
    pool = state.pool
    assert pool.count == SEEDS + 2 * SAMPLES == pool.capacity
    np.testing.assert_array_equal(pool.origin, [0] * SEEDS + [1] * SAMPLES + [2] * SAMPLES)
    for number, report in enumerate(reports):
        rows = np.arange(SAMPLES) + SEEDS + number * SAMPLES
        found = pool.pairs.take(rows)
        check_spelled(exe, found.question, report.question, tokens.IN_QUESTION)
        check_spelled(exe, found.answer, report.answer, tokens.IN_ANSWER)
    norms = np.linalg.norm(pool.embedding, axis=1)
    np.testing.assert_allclose(norms, 1.0, atol=1e-5)
    np.testing.assert_allclose(pool.embedding[:SEEDS].mean(axis=0), 0, atol=0.3)


TURNS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} "
    "{{ m.content }}</s>{% endif %}{% endfor %}"
)


def test_a_chats_pool_is_what_the_tokenizer_renders(random_model, prepare, tmp_path):
    """Seeds and what was drawn, packed as turns of the model's own template."""
    folder = shutil.copytree(random_model, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(TURNS)
    s = prepare(model__path=str(folder), model__template="chat", question__k=1)
    exe, state, (report,) = iterate(s)
    vocabulary, tokenizer = s.base.vocabulary, transformers.AutoTokenizer.from_pretrained(folder)
    form = vocabulary.form
    questions = spelling.texts(vocabulary, report.question, stops.of_question(form))
    answers = spelling.texts(vocabulary, report.answer, stops.of_answer(form))
    pairs = [(seed.question, seed.answer) for seed in s.task.seeds] + [
        (q, a) for q, a, why in zip(questions, answers, report.reason, strict=True) if why == 0
    ]
    assert len(pairs) == state.pool.count > SEEDS
    head, template = vocabulary.head(form.question), exe.program.template
    fitted = packing.training_sequences(template, state.pool.pairs, s.program.sizes.sequence)
    shown = prompting.demonstrations(exe.program, state.pool.pairs)
    for row, pair in enumerate(pairs):
        turns = [
            {"role": r, "content": t} for r, t in zip(("user", "assistant"), pair, strict=True)
        ]
        theirs = tokenizer.apply_chat_template(turns, return_dict=False)
        ids, length, begin = (np.asarray(part)[row] for part in fitted)
        assert ids[:length].tolist() == theirs
        assert theirs[:begin] == tokenizer.apply_chat_template(turns[:1], return_dict=False)
        ids, length = (np.asarray(part)[row] for part in shown)
        whole = head + ids[:length].tolist()
        assert whole[: len(theirs)] == theirs  # up to the next turn's header
        following = tokenizer.apply_chat_template([*turns, *turns], return_dict=False)
        assert following[: len(whole)] == whole


def test_staged_equals_fused(default, prepare):
    """Debugging in stages would mislead if it computed something else."""
    _, fused_state, fused = default
    exe, state, staged = iterate(prepare(execution="staged"), 2)
    assert all(same_tokens(a, b) for a, b in zip(fused, staged, strict=True))
    assert all((a.reason == b.reason).all() for a, b in zip(fused, staged, strict=True))
    assert adapter_distance(state.trainable, fused_state.trainable) < 1e-4
    assert set(exe.compiles.values()) == {1} and "stage_train" in exe.compiles


def test_device_retrieval_equals_scann(default, prepare):
    """Where ScaNN has no wheel the same run must come out."""
    _, _, scann = default
    _, _, device = iterate(prepare(retrieval__backend="device"), 2)
    assert all(same_tokens(a, b) for a, b in zip(scann, device, strict=True))
    assert all(
        (a.demonstrations == b.demonstrations).all() for a, b in zip(scann, device, strict=True)
    )


def test_the_seed_decides_everything(default, prepare):
    """Equal seeds give equal runs, others do not."""
    _, _, reports = default
    _, _, again = iterate(prepare())
    assert same_tokens(reports[0], again[0])
    s = prepare()
    other = s._replace(inputs=s.inputs._replace(hyper=s.inputs.hyper._replace(seed=np.uint32(7))))
    whole = jax.tree.leaves(s.inputs.hyper)[0].sharding
    other = other._replace(inputs=jax.device_put(other.inputs, setup.inputs_sharding(
        other.inputs, s.inputs.base, whole)))  # fmt: skip
    assert not same_tokens(reports[0], iterate(other)[2][0])


def test_answers_of_the_base_model(prepare):
    """answer.model=base: a changed adapter changes the questions, never the answers to them."""
    for mode, equal in (("base", True), ("current", False)):
        s = prepare(answer__model=mode)
        exe = Executables(s.program, s.inputs)
        state = exe.start(s.seeds)
        loud = state._replace(trainable=jax.tree.map(lambda x: x + 0.3, state.trainable))
        write = jax.jit(functools.partial(iteration.write_questions, s.program))
        answer = jax.jit(functools.partial(iteration.answer_questions, s.program))
        question, _ = write(s.inputs, state)
        loud_question, _ = write(s.inputs, loud)
        assert not np.array_equal(question.drawn.tokens, loud_question.drawn.tokens)
        quiet_answer = answer(s.inputs, state, question).answer.drawn.tokens
        loud_answer = answer(s.inputs, loud, question).answer.drawn.tokens
        assert np.array_equal(quiet_answer, loud_answer) == equal


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, SEEDS + 2 * SAMPLES),
        ({"train__include_seeds": False}, 2 * SAMPLES),
        ({"train__data": "latest"}, SEEDS + SAMPLES),
        ({"train__data": "latest", "train__include_seeds": False}, SAMPLES),
    ],
)
def test_what_is_trained_on(default, prepare, changes, rows):
    """train.data and include_seeds choose the rows; steps are epochs over them."""
    s = prepare(**changes)
    _, state, _ = default
    fit = jax.jit(functools.partial(iteration.fine_tune, s.program))
    fitted = fit(s.inputs, state.trainable, state.pool, np.int32(1))
    assert int(fitted.steps) == -(-rows // 8)


def test_training_from_base_forgets_the_last_adapter(default, prepare):
    """train.init=base starts from a fresh adapter, previous from the last one."""
    _, state, _ = default
    for init, equal in (("base", True), ("previous", False)):
        s = prepare(train__init=init)
        fit = jax.jit(functools.partial(iteration.fine_tune, s.program))
        other = jax.tree.map(lambda x: x + 0.1, state.trainable)
        a = fit(s.inputs, state.trainable, state.pool, np.int32(1)).trainable
        b = fit(s.inputs, other, state.pool, np.int32(1)).trainable
        assert (adapter_distance(a, b) == 0) == equal


def test_full_fine_tuning_runs_the_same_iteration(prepare):
    """train.trainable=full changes all weights and needs no other code path."""
    s = prepare(train__trainable="full", train__learning_rate=1e-3)
    exe, state, reports = iterate(s, 2)
    assert exe.compiles["isara_step"] == 1 and reports[1].train_steps > 0
    base = jax.device_get(s.inputs.base)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, state.trainable, base)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("pool", ["seeds", "seeds+generated"])
@pytest.mark.parametrize(("of_questions", "of_answers"), [("random", "knn"), ("knn", "random")])
def test_where_demonstrations_come_from(default, prepare, pool, of_questions, of_answers):
    """pool=seeds shows nothing generated, in both stages and both ways to draw."""
    s = prepare(pool=pool, question__demonstrations=of_questions, answer__demonstrations=of_answers)
    _, state, _ = default
    start = Executables(s.program, s.inputs).start(s.seeds)
    state = state._replace(trainable=start.trainable)
    write = jax.jit(functools.partial(iteration.write_questions, s.program))
    answer = jax.jit(functools.partial(iteration.answer_questions, s.program))
    question, _ = write(s.inputs, state)
    answered = answer(s.inputs, state, question)
    shown = np.asarray(answered.demonstrations)
    assert (shown < SEEDS).all() == (pool == "seeds")
    assert all(len(set(rows)) == len(rows) for rows in shown.tolist())
    known = state.pool.n_seeds if pool == "seeds" else state.pool.count
    similarity = np.asarray(answered.embedding) @ np.asarray(state.pool.embedding)[:known].T
    nearest = np.argmax(similarity, axis=1)  # shown last, unless drawn
    assert (shown[:, -1] == nearest).all() == (of_answers == "knn")


def test_order_and_neighbours_of_demonstrations(default, prepare):
    """The nearest demonstration stands last, or first, as configured; checked against NumPy."""
    _, state, _ = default
    s, shown = prepare(), {}
    question, _ = jax.jit(functools.partial(iteration.write_questions, s.program))(s.inputs, state)
    for order in ("nearest_last", "nearest_first"):
        s = prepare(answer__order=order)
        answer = jax.jit(functools.partial(iteration.answer_questions, s.program))
        answered = answer(s.inputs, state, question)
        shown[order] = np.asarray(answered.demonstrations)
        similarity = np.asarray(answered.embedding) @ state.pool.embedding.T
    best = np.argmax(similarity, axis=1)
    picked = similarity[np.arange(SAMPLES), shown["nearest_last"][:, -1]]
    np.testing.assert_allclose(picked, similarity[np.arange(SAMPLES), best], atol=1e-5)
    np.testing.assert_array_equal(shown["nearest_last"], shown["nearest_first"][:, ::-1])


def test_distinct_rows():
    """Demonstrations drawn at random are distinct, uniform, and -1 where there are too few."""
    draw = jax.vmap(lambda key, n: prompting.distinct_rows(key, n, 3), in_axes=(0, None))
    keys = jax.random.split(jax.random.key(0), 6000)
    rows = np.asarray(draw(keys, 5))
    assert all(len(set(row)) == 3 for row in rows) and rows.min() == 0 and rows.max() == 4
    counts = np.stack([np.bincount(rows[:, j], minlength=5) for j in range(3)])
    # Five standard deviations of a binomial share.
    np.testing.assert_allclose(counts / len(rows), 0.2, atol=5 * (0.16 / len(rows)) ** 0.5)
    few = np.asarray(draw(keys[:50], 2))
    assert (few[:, 2] == -1).all() and (np.sort(few[:, :2], axis=1) == [0, 1]).all()


def test_an_iteration_that_accepts_nothing_goes_on(prepare):
    """A model whose samples all fail leaves the pool as it was, and is trained on the seeds."""
    _, state, reports = iterate(prepare(filters__finished=True), 1)
    assert (reports[0].reason == accept.REASONS.index("question_unfinished")).all()
    assert state.pool.count == SEEDS and reports[0].train_steps == 1


def test_nothing_to_train_on_leaves_the_adapter(prepare):
    """No accepted sample and no seeds: no step, no NaN."""
    s = prepare(filters__finished=True, train__include_seeds=False)
    exe, state, reports = iterate(s, 1)
    assert reports[0].train_steps == 0
    fresh = jax.device_get(exe.start(s.seeds).trainable)
    assert adapter_distance(state.trainable, fresh) == 0


def test_a_sweep_over_dynamic_fields_compiles_nothing(prepare):
    """Temperature, thresholds, rate and seed are traced: they are no part of the executable."""
    s = prepare()
    exe = Executables(s.program, s.inputs)
    exe.step(exe.start(s.seeds))
    c = dataclasses.replace(
        s.config, seed=5,
        train=dataclasses.replace(s.config.train, learning_rate=0.1, epochs=3, warmup=0.5),
        answer=dataclasses.replace(s.config.answer, sampling=config.Sampling(0.3, 5, 0.5)),
        filters=config.Filters(False, 3, 0.9, -5.0),
    )  # fmt: skip
    whole = jax.tree.leaves(s.inputs.hyper)[0].sharding
    hyper = jax.device_put(Hyper.of(c), whole)
    exe.inputs = s.inputs._replace(hyper=hyper)
    exe.step(exe.start(s.seeds))
    assert exe.compiles["isara_step"] == exe.compiles["initial_state"] == 1


def test_a_cache_in_eight_bits_is_checked_before_it_is_used(prepare, monkeypatch, tmp_path):
    """What 8 bits change is measured on the seeds; where it is too much, nothing is generated."""
    moved = {}
    for kv_cache in ("int8", "auto"):
        # A trained model: a random one expects every token alike, whatever it reads.
        s = prepare(kv_cache=kv_cache, model__path="tiny_llama")
        exe = Executables(s.program, s.inputs)
        moved[kv_cache] = np.asarray(exe.cache_divergence(exe.start(s.seeds).pool))
        assert moved[kv_cache].shape == (SEEDS,)
    # The exact cache: what a step reads is what the chunk read. Eight bits: near, and not equal.
    assert abs(moved["auto"]).max() < 1e-5
    assert 5 * abs(moved["auto"]).mean() < moved["int8"].mean() < 0.02
    monkeypatch.setattr(run, "WORST_DIVERGENCE", 0.0)
    c = config.resolve(small(prepare().base.path, kv_cache="int8"))
    with pytest.raises(config.UserError, match=r"kv_cache='int8' moves .* use --config.kv_cache"):
        run.run(c, tmp_path)
    assert not (tmp_path / "samples").exists()
    assert not (tmp_path / "config.json").exists()  # so that the advice works in the same folder


def test_the_first_answers_may_be_kept_compiled(prepare):
    """No host callback in the program whose answers are shown first: JAX 0.10 would not keep it."""
    s = prepare()
    program = dataclasses.replace(s.program, progress=Progress())
    exe = Executables(program, s.inputs)
    held_out = answers.Questions(s.measured.held_out)
    exe.answer(exe.start(s.seeds).trainable, held_out, s.inputs.hyper.answer, 0)
    assert "callback" not in exe._compiled["answer_0_shot"].as_text()


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch, tmp_path):
    """In the user's cache folder, unless JAX was told another one."""
    config_before = jax.config.jax_compilation_cache_dir
    least_before = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        for given, expected in ((None, str(tmp_path / "isara_jax/compiled")), ("mine", "mine")):
            jax.config.update("jax_compilation_cache_dir", given)
            compilation_cache.keep_compiled_programs()
            assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", config_before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least_before)
