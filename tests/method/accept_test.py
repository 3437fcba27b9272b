"""What is kept and why not, against `rouge-score` and the rules applied one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rouge_score import rouge_scorer

from isara_jax import config
from isara_jax.method import accept
from isara_jax.sampler import decode, spelling
from isara_jax.text import packing, stops

N, L = 40, 12


class Spaces:
    """Splits at spaces: rouge-score then compares token ids as words."""

    def tokenize(self, text):
        return text.split()


SCORER = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Spaces())


def reference(a, b):
    """ROUGE-L F1 of two lists of ids by Google's package, and the subsequence's length."""
    table = rouge_scorer._lcs_table(a, b)
    score = SCORER.score(" ".join(map(str, a)), " ".join(map(str, b)))["rougeL"].fmeasure
    return score, table[len(a)][len(b)]


def ragged(seed, alphabet, n=N):
    rng = np.random.default_rng(seed)
    return rng.integers(0, alphabet, (n, L)).astype(np.int32), rng.integers(0, L + 1, n)


def lists(part):
    return [row[:length].tolist() for row, length in zip(*part, strict=True)]


rouge_l = jax.jit(accept.rouge_l)


@pytest.mark.parametrize("alphabet", [2, 5, 30])
def test_rouge_equals_the_package(alphabet):
    """Subsequence and F1 are those of rouge-score for rows of any length, empty ones too."""
    a, b = ragged(0, alphabet), ragged(1, alphabet)
    expected = [reference(x, y) for x, y in zip(lists(a), lists(b), strict=True)]
    np.testing.assert_allclose(rouge_l(a, b), [f for f, _ in expected], atol=1e-6)
    common = jax.jit(accept.longest_common_subsequence)(*a, *b)
    assert np.asarray(common).tolist() == [length for _, length in expected]
    np.testing.assert_allclose(rouge_l(b, a), [f for f, _ in expected], atol=1e-6)


def test_rouge_ignores_padding():
    """What stands behind a row's end is not compared: 0 as padding equals no token 0."""
    ids, lengths = ragged(2, 3)
    other = np.where(np.arange(L) < lengths[:, None], ids, 2)
    again = rouge_l((ids, lengths), (other, lengths))
    np.testing.assert_allclose(again, (lengths > 0).astype(float))


def unit(seed, n, width=6):
    vectors = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [0, 3, 8, 30])
def test_similarity_to_pool_is_to_its_nearest(count):
    """The highest ROUGE-L to the eight nearest rows in use; never to a free row."""
    question, pool = ragged(3, 4), ragged(4, 4, 32)
    near, pool_vectors = unit(5, N), unit(6, 32)
    found = jax.jit(accept.similarity_to_pool)(question, near, pool, pool_vectors, count)
    for row, ids in enumerate(lists(question)):
        nearest = np.argsort(-(near[row] @ pool_vectors[:count].T))[: accept.NEIGHBOURS]
        expected = max((reference(ids, lists(pool)[i])[0] for i in nearest), default=0.0)
        assert float(found[row]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [1, 5, N])
def test_similarity_within_a_batch_looks_back_only(n):
    """Each question is compared with the eight nearest of those asked before it, and no other."""
    question, vectors = ragged(7, 4, n), unit(8, n)
    rows, scores = jax.jit(accept.similarity_within_batch)(question, vectors)
    for index, ids in enumerate(lists(question)):
        nearest = np.argsort(-(vectors[index] @ vectors[:index].T))[: accept.NEIGHBOURS]
        assert [r for r in np.asarray(rows)[index] if r >= 0] == nearest.tolist()
        for row, score in zip(np.asarray(rows)[index], np.asarray(scores)[index], strict=True):
            if row >= 0:
                expected = reference(ids, lists(question)[row])[0]
                assert float(score) == pytest.approx(expected, abs=1e-6)


# --- the decision ------------------------------------------------------------------------------

STOP, OTHER = stops.AT_STOP, stops.AT_STOP + 1
GOOD = {"q_finish": STOP, "q_spelled": True, "q_length": 5, "known": 0.0}
GOOD |= {"a_finish": STOP, "a_spelled": True, "a_length": 9, "score": -1.0}


def generation(finish, score):
    """As drawn: full rows, which say nothing of how long the texts are."""
    n = len(finish)
    return decode.Generation(
        tokens=jnp.zeros((n, L), jnp.int32),
        lengths=jnp.full(n, L),
        finish=jnp.asarray(finish),
        score=jnp.asarray(score, jnp.float32),
        drawn=jnp.int32(0),
    )


def text(lengths):
    """Texts of `lengths`, whose seams are not counted."""
    bare = jnp.asarray(lengths)
    ids = jnp.zeros((len(lengths), L), jnp.int32)
    return packing.Text(packing.Part(ids, bare), packing.Part(ids, bare + 3))


decide = jax.jit(accept.decide)


def reasons(samples, earlier=None, **filters):
    columns = {name: [s[name] for s in samples] for name in GOOD}
    n = len(samples)
    rows, scores = earlier or (np.full((n, 2), -1), np.zeros((n, 2)))
    found = decide(
        spelling.Written(
            generation(columns["q_finish"], np.zeros(n)),
            text(columns["q_length"]),
            jnp.asarray(columns["q_spelled"]),
        ),
        spelling.Written(
            generation(columns["a_finish"], columns["score"]),
            text(columns["a_length"]),
            jnp.asarray(columns["a_spelled"]),
        ),
        jnp.asarray(columns["known"], jnp.float32),
        (jnp.asarray(rows, jnp.int32), jnp.asarray(scores, jnp.float32)),
        config.traced(accept.FilterParams, config.Filters(**filters)),
    )
    return [accept.REASONS[i] for i in np.asarray(found)]


CASES = [
    ({}, "accepted"),
    ({"q_finish": stops.UNFINISHED}, "question_unfinished"),
    ({"q_finish": stops.AT_EOS}, "accepted"),  # as fine-tuned models end any text
    ({"q_finish": OTHER}, "question_unfinished"),  # the template is broken
    ({"q_spelled": False, "q_length": 0}, "question_unspellable"),
    ({"q_length": 2}, "question_short"),
    ({"q_length": 3}, "accepted"),
    ({"known": 0.6}, "question_duplicate"),
    ({"known": 0.59}, "accepted"),
    ({"a_finish": stops.UNFINISHED}, "answer_unfinished"),
    ({"a_finish": OTHER}, "answer_unfinished"),
    ({"a_finish": stops.AT_EOS}, "accepted"),
    ({"a_spelled": False, "a_length": 0}, "answer_unspellable"),
    ({"a_length": 2}, "answer_short"),
    ({"a_length": 3}, "accepted"),
    ({"score": -2.1}, "answer_improbable"),
    ({"score": -2.0}, "accepted"),
]


def test_every_reason_is_given_where_it_applies():
    """One fault, one reason, and thresholds that include or exclude their edge as documented."""
    found = reasons([GOOD | fault for fault, _ in CASES], min_tokens=3, rouge_l=0.6, min_score=-2.0)
    assert found == [reason for _, reason in CASES]
    assert set(found) == set(accept.REASONS)


def test_the_first_reason_is_told():
    """A sample with every fault is told the first one, in the order of the stages."""
    sample = GOOD | {"q_finish": OTHER, "q_spelled": False, "q_length": 0, "known": 1.0}
    sample |= {"a_finish": OTHER, "a_spelled": False, "a_length": 0, "score": -9.0}
    for field, reason in zip(GOOD, accept.REASONS[1:], strict=True):
        assert reasons([sample], min_score=-2.0) == [reason]
        sample[field] = GOOD[field]
    assert reasons([sample], min_score=-2.0) == ["accepted"]


def test_unfinished_samples_may_be_allowed():
    """Without `finished` an end of room or at EOS passes; a broken template never does."""
    faults = [("q_finish", f) for f in (stops.UNFINISHED, stops.AT_EOS, OTHER)]
    faults += [("a_finish", f) for f in (stops.UNFINISHED, OTHER)]
    found = reasons([GOOD | {name: value} for name, value in faults], finished=False)
    assert found == [
        *("accepted", "accepted", "question_unfinished"),
        *("accepted", "answer_unfinished"),
    ]


def test_an_empty_text_is_never_kept():
    """An end at once says nothing, and would be shown as an example."""
    empty = [GOOD | {"q_length": 0}, GOOD | {"a_length": 0}]
    assert reasons(empty, min_tokens=0, finished=False) == ["question_short", "answer_short"]


def test_filters_can_be_off():
    """A ROUGE-L threshold above one rejects no duplicate, not even an exact one."""
    earlier = np.array([[-1, -1], [0, -1]]), np.array([[0, 0], [1.0, 0]])
    samples = [GOOD, GOOD | {"known": 1.0}]
    assert reasons(samples, earlier, rouge_l=2.0) == ["accepted", "accepted"]
    assert reasons(samples, earlier, rouge_l=1.0) == ["accepted", "question_duplicate"]


def test_only_accepted_samples_make_others_duplicates():
    """A question repeats what was accepted before it; a rejected twin takes nothing with it."""
    alike = np.full((6, 2), -1), np.zeros((6, 2))
    for index, others in {1: [0], 2: [1], 3: [1, 2], 5: [0, 3]}.items():
        alike[0][index, : len(others)] = others
        alike[1][index, : len(others)] = 0.9
    samples = [dict(GOOD) for _ in range(6)]
    samples[0]["a_length"] = 0
    found = reasons(samples, alike)
    # 0 is short; 1 repeats only 0; 2 repeats 1; 3 repeats 1 and 2; 5 repeats 0 and 3, both out.
    assert found == [
        *("answer_short", "accepted", "question_duplicate", "question_duplicate"),
        *("accepted", "accepted"),
    ]
    samples[1]["known"] = 0.9
    assert reasons(samples, alike)[1:4] == ["question_duplicate", "accepted", "question_duplicate"]


def test_batch_equals_the_rules_one_by_one():
    """Random samples: the scan gives what a loop over requests with the same rules gives."""
    rng = np.random.default_rng(0)
    n = 200
    samples = [
        GOOD | {"known": float(k), "a_length": int(a)}
        for k, a in zip(rng.random(n) * 0.8, rng.integers(0, 12, n), strict=True)
    ]
    rows = np.array([[rng.integers(-1, max(i, 1)) for _ in range(3)] for i in range(n)])
    rows[0] = -1
    scores = rng.random((n, 3))
    expected, accepted = [], set()
    for i, sample in enumerate(samples):
        twins = [r for r, s in zip(rows[i], scores[i], strict=True) if r >= 0 and s >= 0.7]
        if sample["known"] >= 0.7:
            expected.append("question_duplicate")
        elif sample["a_length"] < 2:
            expected.append("answer_short")
        elif accepted & set(twins):
            expected.append("question_duplicate")
        else:
            accepted.add(i)
            expected.append("accepted")
    assert reasons(samples, (rows, scores)) == expected
    assert 20 < len(accepted) < 180
