"""The configuration: mistakes are found when it is read, and named."""

import dataclasses
import importlib.util
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from isara_jax import config
from isara_jax.method import embed
from isara_jax.tasks import files
from isara_jax.text import packing

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_file_resolves_and_tells_its_command(path):
    """A file of configs/ that cannot be used, or does not say how."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    resolved = config.resolve(module.get_config())
    assert isinstance(hash(resolved), int)
    assert f"configs/{path.name}" in module.__doc__


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("iterations", 0, "config.iterations=0: must be at least 1"),
        ("seed", "one", "config.seed='one': a int is expected"),
        ("seed", True, "config.seed=True"),
        ("seed", 2**32, "config.seed=4294967296: must be below 2**32"),
        ("pool", "everything", "config.pool='everything': choose one of seeds, seeds+generated"),
        ("execution", "eager", "choose one of fused, staged"),
        ("question.demonstrations", "nearest", "choose one of random, knn"),
        ("question.sampling.top_p", 0.0, "config.question.sampling.top_p=0.0: must lie in (0, 1]"),
        ("answer.sampling.temperature", -1.0, "config.answer.sampling.temperature=-1.0"),
        ("answer.model", "reward", "choose one of current, base"),
        ("train.learning_rate", -1.0, "config.train.learning_rate=-1.0: must be not below 0"),
        ("train.warmup", 1.0, "config.train.warmup=1.0: is a share, below 1"),
        ("train.lora.targets", ("q", "query"), "config.train.lora.targets='query': choose among"),
        ("train.lora.targets", "q", "a tuple of str is expected"),
        ("train.lora.rank", 0, "config.train.lora.rank=0: must be at least 1"),
        ("retrieval.layer", 1, "config.retrieval.layer=1: counts from the end"),
        ("evaluation.sft_steps", (0.0,), "config.evaluation.sft_steps=0.0"),
        ("evaluation.baselines", ("icl_knm",), "did you mean 'icl_knn'?"),
        ("task.validation", -2, "config.task.validation=-2: -1 is a quarter"),
        ("keep", "first", "config.keep='first': choose one of last, best"),
        ("task", "safety", "config.task is a group of fields, not 'safety'"),
    ],
)
def test_bad_values_are_refused_by_name(field, value, message):
    """A value that makes no sense is not discovered hours later."""
    values = config.default()
    *parents, leaf = field.split(".")
    node = values
    for parent in parents:
        node = node[parent]
    with node.ignore_type():
        node[leaf] = value
    with pytest.raises(config.ConfigError) as error:
        config.resolve(values)
    assert message in str(error.value)


def test_a_chat_template_says_itself_what_begins_a_text():
    """BOS asked for beside a template would be written twice, or not at all."""
    values = config.default()
    values.model.template, values.model.bos = "chat", "always"
    with pytest.raises(
        config.ConfigError, match="config.model.bos='always': config.model.template"
    ):
        config.resolve(values)


def test_unknown_fields_are_refused_with_the_nearest_name():
    """A misspelt field would otherwise be silently without effect."""
    values = config.default()
    values.train.unlock()
    values.train.learning_rte = 1.0
    with pytest.raises(config.ConfigError, match="'learning_rte'; did you mean 'learning_rate'"):
        config.resolve(values)


def test_batches_divide_over_the_mesh():
    """Uneven batches over devices are refused with the nearest size that works."""
    values = config.default()
    values.mesh, values.slots = "4x2x1", 60
    with pytest.raises(config.ConfigError, match="config.slots=60: .* 8 .* nearest: 56 or 64"):
        config.resolve(values)
    for mesh in ("4x2", "0x1x1", "8", "", "2x2x2x2"):
        values.mesh = mesh
        with pytest.raises(config.ConfigError, match="config.mesh=.* such as 4x1x2"):
            config.resolve(values)


def test_every_open_choice_of_the_paper_is_a_field():
    """The switches of what the paper leaves open exist, and their guesses are marked so."""
    source = pathlib.Path(config.__file__).read_text()
    fields = {
        config.Config: {"samples_per_iteration", "iterations", "pool"},
        config.Question: {"demonstrations", "show_answers", "sampling"},
        config.Answer: {"k", "order", "model", "sampling"},
        config.Train: {"init", "data", "include_seeds", "lora", "trainable"},
        config.Filters: {"finished", "min_tokens", "rouge_l", "min_score"},
    }
    for cls, names in fields.items():
        assert names <= {f.name for f in dataclasses.fields(cls)}
    assert source.count("ASSUMED") >= 12


def test_what_is_traced_has_the_declared_type():
    """A whole number given for a field of floats would compile another program."""

    class Params(NamedTuple):
        finished: Any
        min_tokens: Any
        rouge_l: Any

    found = config.traced(Params, config.Filters(finished=True, min_tokens=3, rouge_l=1))
    assert [type(x) for x in found] == [np.bool_, np.int32, np.float32]
    assert found == (True, 3, 1.0)


def test_only_what_is_meant_for_users_is_told_to_them():
    """Shapes that do not fit are our bug: said as a user's mistake, nobody would look for it."""
    with pytest.raises(config.UserError, match="nowhere.jsonl"), config.user_errors():
        files.read_pairs("nowhere.jsonl")
    for bug in (
        lambda: packing.pad([[1, 2, 3]], 2),
        lambda: embed.centre(jnp.zeros((2, 3)), jnp.zeros(4)),
    ):
        with pytest.raises(ValueError) as found, config.user_errors():
            bug()
        assert type(found.value) is ValueError
