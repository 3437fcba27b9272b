"""Runs judged afterwards: the same numbers as judged on the way, whole files, clear refusals."""

import json
import shutil

import fsspec
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from isara_jax import config
from isara_jax.evaluate import judges, refusals
from isara_jax.files import remote, storage
from isara_jax.host import judge_run, panel, run
from isara_jax.host.executables import Executables
from tests.evaluate import judges_test
from tests.method.iteration_test import small

TOKENS = 96


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_judges(place):
    """Two judges, random ones: `flags` has three labels, `reward` scores."""
    flags, score = place / "flags", place / "reward"
    settings = transformers.LlamaConfig(
        **judges_test.SIZES, attn_implementation="eager", num_labels=3, pad_token_id=0,
        problem_type="multi_label_classification",
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.LlamaForSequenceClassification(settings)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(1.0 if "norm" in name else 0.0, 0.5)
    model.save_pretrained(flags)
    transformers.AutoTokenizer.from_pretrained(judges_test.TOKENIZER).save_pretrained(flags)
    score.mkdir()
    head = torch.nn.Linear(judges_test.SIZES["hidden_size"], 1, bias=False)
    judges_test.write(
        score, judges_test.random_body(2), {"score_head.weight": head.weight.detach()},
        architectures=["LlamaForScore"], score_dim=1, score_type="reward", score_bias=False,
        do_normalize=False, normalizer_type=None,
    )  # fmt: skip
    return [str(flags), str(score)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture(scope="module")
def runs(random_model, folders, tmp_path_factory):
    """The same run with judges of its own and without: own seeds, and prompts.

    What is compiled for the one serves the other.
    """
    place = tmp_path_factory.mktemp("runs")
    seeds, prompts = place / "seeds.jsonl", place / "prompts.csv"
    pairs = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(12)]
    seeds.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    prompts.write_text("prompt|label\n" + "".join(f"How is {i}?|safe\n" for i in range(5)) +
                       "Why?|unsafe\n")  # fmt: skip
    own = {"evaluation__judges": tuple(folders), "evaluation__judge_tokens": TOKENS}
    init, compiled = Executables.__init__, {}

    def shares(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self._compiled = compiled

    for name, judging in (("judged", own), ("plain", {})):
        c = small(
            random_model, task__n_seeds=0, task__seeds=str(seeds), task__held_out=4, iterations=1,
            evaluation__prompts=str(prompts), slots=4, train__batch_size=4, **judging,
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Executables, "__init__", shares)
            run.run(config.resolve(c), place / name)
    return place


@pytest.fixture
def plain(runs, tmp_path):
    """A copy of the run that nobody has judged."""
    return shutil.copytree(runs / "plain", tmp_path / "run")


def members(*names, **changes):
    c = config.default()
    c.evaluation.judges = tuple(name for name in names if name != judges.RULE)
    c.evaluation.judge_tokens, c.slots, c.train.batch_size = TOKENS, 4, 4
    for name, value in changes.items():
        c.evaluation[name] = value
    return panel.read(config.resolve(c), names)


def judged(workdir, *names, **changes):
    with remote.finished(workdir, "answers") as place:
        return judge_run.judge(place, members(*names, **changes))


def same(path):
    """What two runs' summaries have in common, whoever judges when."""
    summary = json.loads((path / "summary.json").read_text())
    for key in ("config", "seconds", "compiles", "judged"):
        summary.pop(key, None)
    return summary, list(summary["metrics_info"])


def test_judged_afterwards_and_judged_on_the_way_are_the_same(runs, plain, folders, monkeypatch):
    """Every number, its interval, the differences, columns in their order, and all verdicts.

    One judge is on the devices at a time, and each is compiled once, for all files.
    """
    compiled, alive, load = [], [], judges.Reading.load
    compile_, before = jax.stages.Lowered.compile, sum(x.nbytes for x in jax.live_arrays())

    def loads(self, *args):
        alive.append(sum(x.nbytes for x in jax.live_arrays()) - before)
        return load(self, *args)

    def compiles(self, *args, **kwargs):
        compiled.append(1)
        return compile_(self, *args, **kwargs)

    monkeypatch.setattr(judges.Reading, "load", loads)
    monkeypatch.setattr(jax.stages.Lowered, "compile", compiles)
    judged(plain, *folders)
    assert len(compiled) == 2 and alive == [0, 0]
    theirs, ours = same(runs / "judged"), same(plain)
    assert ours == theirs
    (base, *_, last), columns = ours[0]["rows"], ours[1]
    assert columns[0] == "flags_flagged" and columns[-1] == "reward_score_on_prompts_greedy"
    flagged = [row["metrics"]["flags_flagged_on_prompts"] for row in ours[0]["rows"]]
    assert 0 < np.mean(flagged) < 1  # the judge tells answers apart
    assert last["differences"]["base"]["reward_score"][0] == pytest.approx(
        last["metrics"]["reward_score"] - base["metrics"]["reward_score"]
    )
    for name in ("items.jsonl", *(f"answers/{p.name}" for p in (plain / "answers").iterdir())):
        if name.endswith(".jsonl"):
            assert lines(plain / name) == lines(runs / "judged" / name), name
    assert "Flagged by flags" in (plain / "report.html").read_text()


def test_rows_are_what_the_judge_says_of_the_lines(plain, folders):
    """Counted anew from the verdicts, by nothing of ours; all else in the lines is as it was."""
    old = lines(plain / "answers" / "base.jsonl")
    summary = judged(plain, folders[0], "rule")
    (row,) = (row for row in summary["rows"] if row["method"] == "base")
    found = lines(plain / "answers" / "base.jsonl")
    assert [line | {"verdict": 0} for line in found] == [line | {"verdict": 0} for line in old]
    for decoding, suffix in (("sampled", ""), ("greedy", "_greedy")):
        mine = [line for line in found if line["decoding"] == decoding]
        asked = [line for line in mine if line["label"] == "held_out"]
        flagged = sum(line["verdict"]["flags"] != "not flagged" for line in asked)
        assert row["counts"][f"flags_flagged{suffix}"] == [flagged, 4]
        refused = sum(refusals.refused(line["answer"]) for line in asked)
        assert row["counts"][f"refused_held_out{suffix}"] == [refused, 4]
        assert row["counts"][f"refused_safe{suffix}"][1] == 5
        assert all(line["verdict"]["rule"] in ("refused", "answered", "empty") for line in mine)
    info = summary["metrics_info"]
    assert info["refused_held_out"] == {
        "title": "Held-out questions refused, by rule (crude)", "higher_is_better": None
    }  # fmt: skip
    assert info["refused_safe"]["on"] == "prompts"
    order = [*judged(plain, "rule")["metrics_info"]]
    assert order == [*info]
    assert order.index("refused_held_out") < order.index("nll_per_token") < order.index(
        "refused_safe"
    )  # fmt: skip


def test_interrupted_it_goes_on_with_what_is_missing(runs, plain, folders, monkeypatch):
    """Ended at any write: files are whole, what was judged is kept, and the end is the same."""
    write, said, dies_at = storage.atomic_write, [], [0]

    def dies(path, data):
        dies_at[0] -= path.is_relative_to(plain)
        if dies_at[0] == 0 and path.is_relative_to(plain):
            raise KeyboardInterrupt
        write(path, data)

    says = judges.ModelJudge.__call__

    def counts(self, *args):
        said.append(self.name)
        return says(self, *args)

    monkeypatch.setattr(storage, "atomic_write", dies)
    monkeypatch.setattr(judges.ModelJudge, "__call__", counts)
    # The first file's three writes, then those of the second.
    for number in (1, 2, 3, 4 + 1):
        dies_at[0] = number
        with pytest.raises(KeyboardInterrupt):
            judged(plain, *folders)
        for path in plain.rglob("*.json*"):
            lines(path) if path.suffix == ".jsonl" else json.loads(path.read_text())
    dies_at[0], n_files = 0, len(lines(plain / "items.jsonl"))
    said.clear()
    judged(plain, *folders)
    assert said.count("flags") == 4 * (n_files - 1) and said.count("reward") == 4 * n_files
    assert same(plain) == same(runs / "judged")
    said.clear()
    judged(plain, *folders)
    assert not said


def test_another_judge_of_the_same_name_replaces_what_it_said(runs, plain, folders, tmp_path):
    """Other weights, another template: judged anew; another kind leaves no column behind."""
    judged(plain, *folders)
    before = same(plain)
    changed = shutil.copytree(folders[0], tmp_path / "flags")
    judged(plain, str(changed))  # a copy is the same judge
    assert same(plain) == before
    path = changed / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    safetensors.numpy.save_file(tensors | {name: -tensors[name]}, path, {"format": "pt"})
    summary = judged(plain, str(changed))
    metric = "flags_flagged_on_prompts"
    assert [r["items"]["reward_score"] for r in lines(plain / "items.jsonl")] == [
        r["items"]["reward_score"] for r in lines(runs / "judged" / "items.jsonl")
    ]
    assert any(
        a["items"][metric] != b["items"][metric]
        for a, b in zip(*(lines(p / "items.jsonl") for p in (plain, runs / "judged")), strict=True)
    )
    other = shutil.copytree(folders[1], tmp_path / "other" / "flags")
    summary = judged(plain, str(other), judge_prompts=("{question}: {answer}",))
    assert "flags_score" in summary["metrics_info"]
    assert not any("flags_flagged" in name for row in summary["rows"] for name in row["metrics"])
    assert "flags_flagged" not in str([row["differences"] for row in summary["rows"]])
    assert summary["judged"]["flags"]["metrics"][0] == "flags_score"


@pytest.fixture
def store():
    found = fsspec.filesystem("memory")
    found.store.clear()
    found.pseudo_dirs[:] = [""]
    yield found
    found.store.clear()


def test_a_run_at_a_url_is_mirrored_back(plain, folders, store):
    """What has changed is at the URL, and nothing else was sent."""
    store.put(str(plain), "/bucket/run", recursive=True)
    store.pipe("/bucket/run/config.json", store.cat("/bucket/run/config.json"))
    sent, upload = [], remote.Url.upload

    def spy(self, source):
        sent.append(self.name)
        upload(self, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote.Url, "upload", spy)
        judged("memory://bucket/run", folders[1])
    judged(plain, folders[1])
    for name in ("summary.json", "items.jsonl", "answers/base.jsonl", "report.html"):
        assert store.cat(f"/bucket/run/{name}") == (plain / name).read_bytes(), name
    assert "config.json" not in sent and not any("alpaca" in name for name in sent)


def _spoil(change):
    def spoil(workdir):
        path = workdir / "answers" / "base.jsonl"
        found = lines(path)
        found[2] = change(found[2])
        storage.write_lines(path, found)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda w: (w / "summary.json").unlink(), "not finished; the command that started it"),
        (lambda w: (w / "config.json").unlink(), "not the folder of a run"),
        (lambda w: (w / "items.jsonl").unlink(), r"items\.jsonl: not found"),
        (lambda w: (w / "answers" / "base.jsonl").unlink(), r"answers/base\.jsonl: not found"),
        (
            lambda w: (w / "answers" / "base.jsonl").write_text('{"prompt": "x"}\n'),
            r"base\.jsonl:1: answer: found null, expected a text",
        ),
        (
            lambda w: (w / "answers" / "base.jsonl").open("a").write('{"prompt"\n'),
            r"base\.jsonl:21: malformed JSON",
        ),
        (_spoil(lambda one: one | {"answer": 3}), r"base\.jsonl:3: answer: found 3 \(int\)"),
        (_spoil(lambda one: one | {"verdict": ["x"]}), r"base\.jsonl:3: verdict: .*an object"),
        (_spoil(lambda one: one | {"method": "sft"}), r"base\.jsonl:3: method, iteration, steps"),
        (_spoil(lambda one: one | {"prompt": "Else?"}), "base.jsonl: .*not to the same questions"),
    ],
)  # fmt: skip
def test_damaged_runs_are_refused_in_a_line(spoil, said, plain):
    """By file, line and field, before anything is loaded; nothing is written."""
    spoil(plain)
    before = {p: p.read_bytes() for p in plain.rglob("*") if p.is_file()}
    with pytest.raises((config.UserError, ValueError), match=said):
        judged(plain, "rule")
    assert {p: p.read_bytes() for p in plain.rglob("*") if p.is_file()} == before
