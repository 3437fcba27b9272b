"""The configuration: frozen, validated and hashable; every array shape follows from it.

`configs/*.py` return an `ml_collections.ConfigDict` made by `default()`; `resolve` turns it into
`Config`. What the paper does not say has a default of ours, marked ASSUMED.
"""

import contextlib
import dataclasses
import difflib
import dis
import json
import math
import re
import shlex
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import ml_collections
import numpy as np

_Params = TypeVar("_Params", bound=NamedTuple)
_SCALARS = {bool: np.bool_, int: np.int32, float: np.float32}


@dataclasses.dataclass(frozen=True)
class Model:
    """The base model: a Hugging Face directory, or the name of a bundled one."""

    path: str = "tiny_llama"  # tiny_llama, tiny_opt, a directory, or its URL
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: f32 on CPU, bf16 elsewhere
    bos: Literal["auto", "always", "never"] = "auto"  # before every text; auto: as it was trained
    # Of questions and answers. chat: turns, as the model's own chat template writes them, with no
    # system turn and no date; chat_with_system: with what the template inserts by itself (a day is
    # always 26 July 2024).
    template: Literal["plain", "chat", "chat_with_system"] = "plain"


@dataclasses.dataclass(frozen=True)
class Task:
    """The domain. `seeds` is one's own file, here or at a URL; empty: bundled."""

    name: str = "safety"
    seeds: str = ""  # its formats and fields: tasks.files.read_seeds
    n_seeds: int = 0  # how many seeds to use; 0: all of a file, 32 of the bundled world
    topics: tuple[str, ...] = ()  # restricts bundled seeds to some topics
    # Seeds by which SFT's length is chosen (it is then trained on all), and ISARA's iteration under
    # `keep`; -1: a quarter of 16 seeds or more, none of fewer.
    validation: int = -1
    # Own pairs kept back, for the likelihood where there is no judge; -1: a quarter of the file, at
    # least 8 of 24 pairs or more, at least 1 of fewer, at most 256 (see tasks.domains.n_held_out).
    held_out: int = -1
    test: str = ""  # the bundled domain whose questions are asked; empty: that of the seeds


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `top_k=0` and `top_p=1` are off; `temperature=0` is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Question:
    """The first stage: new questions from demonstrations alone."""

    demonstrations: Literal["random", "knn"] = "random"  # ASSUMED; knn: around a random anchor
    show_answers: bool = True  # ASSUMED: question–answer pairs, not questions alone
    k: int = 4  # ASSUMED: demonstrations in a question's prompt
    max_tokens: int = 0  # of a question; 0: of the longest seed, and a quarter more
    prompt_tokens: int = 0  # capacity of the prompt; 0: k times pair_tokens
    sampling: Sampling = Sampling(temperature=1.0, top_p=0.9)  # ASSUMED


@dataclasses.dataclass(frozen=True)
class Answer:
    """The second stage: answers from k demonstrations, the nearest to the question."""

    demonstrations: Literal["knn", "random"] = "knn"  # random: what retrieval is compared with
    k: int = 6  # ASSUMED: 4 to 8
    order: Literal["nearest_last", "nearest_first"] = "nearest_last"  # ASSUMED
    # ASSUMED; base: as before the first iteration. Better on the models tried (docs/real_model.md):
    # with its own earlier answers as a model to follow, what a model overdoes spreads.
    model: Literal["current", "base"] = "base"
    max_tokens: int = 0  # as of questions
    prompt_tokens: int = 0
    sampling: Sampling = Sampling(temperature=0.7, top_p=0.9)  # ASSUMED


@dataclasses.dataclass(frozen=True)
class Retrieval:
    r"""Nearest demonstrations by the base model's own embedding of `Question: q\nAnswer:`."""

    backend: Literal["scann", "device"] = "scann"  # device: exact matmul and top_k
    layer: int = 0  # counted from the end: 0 runs all blocks, -1 leaves out the last one


@dataclasses.dataclass(frozen=True)
class Filters:
    """What a sample must pass. ASSUMED, after Self-Instruct; there is no harm filter."""

    finished: bool = True  # question and answer ended by themselves
    min_tokens: int = 2  # of question and of answer
    rouge_l: float = 0.7  # a question at least this similar to a known one is a duplicate; > 1: off
    min_score: float = -1e9  # least mean log-probability of the answer's tokens, in nats


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapter on the blocks' linear layers (arXiv 2106.09685); OPT has no gate."""

    rank: int = 16  # ASSUMED
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Train:
    """Supervised fine-tuning on the accepted pairs; the loss is on the answer and its end."""

    trainable: Literal["lora", "full"] = "lora"
    init: Literal["previous", "base"] = "previous"  # ASSUMED
    init_adapter: str = ""  # a PEFT folder to start from, which "base" then includes; empty: none
    data: Literal["cumulative", "latest"] = "cumulative"  # ASSUMED
    include_seeds: bool = True  # ASSUMED
    epochs: int = 3
    batch_size: int = 32
    remat: Literal["auto", "none", "blocks"] = "auto"  # recompute blocks for the gradient
    learning_rate: float = 3e-4
    warmup: float = 0.03  # share of the steps; then cosine to zero
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    # A loss or gradient that is not finite. skip: the update is held back; stop: the run ends.
    on_divergence: Literal["skip", "stop"] = "skip"
    lora: Lora = Lora()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Held-out questions, answered before, between and after the iterations."""

    n: int = 0  # items, and prompts; 0: all
    # What ISARA is compared with, some of BASELINES. `one_round` draws as many samples as all
    # iterations do and trains once: that costs what the iterations cost, so it must be asked for.
    baselines: tuple[str, ...] = ("icl_knn", "icl_random", "icl_fixed", "sft")
    k: int = 6  # demonstrations of the ICL baselines: as many as ISARA's own answers have
    temperature: float = 1.0  # of the sampled rates
    # SFT's lengths as shares of ISARA's steps; 1: equal compute. The validation seeds choose one;
    # without them each is a row.
    sft_steps: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0)
    judges: tuple[str, ...] = ()  # folders of models that judge: classifiers, scores, yes or no
    judge_prompts: tuple[str, ...] = ()  # with {question} and {answer}; empty: as they were trained
    judge_tokens: int = 512  # of the text a judge reads
    prompts: str = ""  # a file of prompts, safe, unsafe or unlabelled: refusals
    choices: str = ""  # a file of questions with choices and the right ones: MC1, MC2
    likelihood: bool = False  # of held-out references, also where answers are judged by rule


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int = 0
    iterations: int = 3
    samples_per_iteration: int = 512  # attempts, not acceptances
    pool: Literal["seeds", "seeds+generated"] = "seeds+generated"  # ASSUMED
    # The iteration whose model is the result. best: that of the lowest loss on the validation
    # seeds, which ISARA then never sees (the baselines do).
    keep: Literal["last", "best"] = "last"
    # Iterations in a row that accept nothing, which end the run; 0: none do. One may be mended by
    # its training on the seeds, which teaches their form, and a second by the next.
    patience: int = 3
    execution: Literal["fused", "staged"] = "fused"
    slots: int = 64  # sequences decoded at once; 0: as many as fit (host.memory)
    kv_cache: Literal["auto", "int8"] = "auto"  # auto: as the activations; int8: half of bf16's
    pair_tokens: int = 0  # of a demonstration in a prompt of k; 0: an average seed's and an eighth
    compilation_cache: bool = True
    mesh: str = "auto"  # devices along data x fsdp x model, such as 4x1x2; auto: all there are
    model: Model = Model()
    task: Task = Task()
    question: Question = Question()
    answer: Answer = Answer()
    retrieval: Retrieval = Retrieval()
    filters: Filters = Filters()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()

    @property
    def mesh_shape(self) -> tuple[int, int, int] | None:
        """Devices along data, fsdp and model; None where they are still to be chosen."""
        if not re.fullmatch(r"[1-9]\d{,5}(x[1-9]\d{,5}){2}", self.mesh):
            return None
        data, fsdp, model = map(int, self.mesh.split("x"))
        return data, fsdp, model


# In the table's order; each is a row's `method`, beside base and isara.
BASELINES = ("icl_random", "icl_fixed", "icl_knn", "sft", "one_round")
SPREAD = ("slots", "train.batch_size")  # fields whose rows are spread over data x fsdp


class UserError(ValueError):
    """Something that whoever started the run can mend; its message says how."""


class ConfigError(UserError):
    """A field of the configuration that cannot be used, by name."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Makes a `UserError` of what is raised while somebody's files and settings are read."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's, which `endings` knows to word
        if type(error) is ValueError and _nobody_meant(error):
            raise  # a bug of ours
        raise UserError(str(error)) from error


def _nobody_meant(error: ValueError) -> bool:
    """Whether an error comes out of arithmetic, or of a line of ours that raises nothing itself.

    What files and settings can do is raised on purpose, by us or by the libraries that read them.
    """
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    package = trace.tb_frame.f_globals.get("__name__", "").split(".")[0]
    if package == __name__.split(".")[0]:
        code = trace.tb_frame.f_code.co_code
        return dis.opname[code[trace.tb_lasti]] != "RAISE_VARARGS"
    return package in ("flax", "jax", "numpy", "optax")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'this one'?`, or nothing where none is like it."""
    close = difflib.get_close_matches(name, [other for other in known if other != name], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def default() -> ml_collections.ConfigDict:
    """The default configuration, to be changed by a file of `configs/` and by flags."""
    return _as_dict(Config())


def _as_dict(node: Any) -> ml_collections.ConfigDict:
    fields = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    return ml_collections.ConfigDict(
        {k: _as_dict(v) if dataclasses.is_dataclass(v) else v for k, v in fields.items()}
    )


def resolve(values: ml_collections.ConfigDict) -> Config:
    """Validates `values` and freezes them.

    Raises:
      ConfigError: an unknown field, a value of the wrong type, or one that makes no sense.
    """
    if not isinstance(values, ml_collections.ConfigDict):
        raise ConfigError(
            f"the config file's get_config() returns {type(values).__name__}; let it change and "
            "return isara_jax.config.default()"
        )
    config = _resolve(Config, values.to_dict(), "config")
    _validate(config)
    return config


def _resolve(cls: type, values: dict[str, Any], path: str) -> Any:
    types = typing.get_type_hints(cls)
    for name in values:
        if name not in types:
            hint = nearest(name, types) or f"; it has {', '.join(types)}"
            raise ConfigError(f"{path} has no field {name!r}{hint}")
    return cls(
        **{name: _checked(types[name], value, f"{path}.{name}") for name, value in values.items()}
    )


def _checked(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{path} is a group of fields, not {value!r}")
        return _resolve(kind, value, path)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ConfigError(f"{path}={value!r}: choose one of {', '.join(choices)}")
        return value
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        if isinstance(value, str) or not isinstance(value, (tuple, list)):
            raise ConfigError(f"{path}={value!r}: a tuple of {element.__name__} is expected")
        return tuple(_checked(element, v, path) for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = _float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{path}={value!r}: a {kind.__name__} is expected")
    if kind is float and math.isnan(value):
        raise ConfigError(f"{path}={value!r}: a number is expected")
    if kind is int and not -(2**31) <= value <= 2**32:
        raise ConfigError(f"{path}={value!r}: a number of so many digits is not expected")
    if kind is str and re.search("[\0\ud800-\udfff]", value):
        raise ConfigError(f"{path}={value!r}: found a character that is none of a text; remove it")
    return value


def _float(value: int) -> float:
    """A whole number as the nearest float, which may be infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _validate(c: Config) -> None:
    def require(good: bool, field: str, found: Any, rule: str) -> None:
        if not good:
            shown = repr(found)
            shown = shown if len(shown) <= 200 else f"{shown[:199]}…"
            raise ConfigError(f"config.{field}={shown}: {rule}")

    positive = (
        "iterations samples_per_iteration question.k answer.k "
        "train.epochs train.batch_size train.lora.rank evaluation.k evaluation.judge_tokens"
    )
    not_negative = (
        "seed patience slots pair_tokens task.n_seeds question.prompt_tokens answer.prompt_tokens "
        "question.max_tokens answer.max_tokens "
        "filters.min_tokens train.warmup train.weight_decay train.learning_rate "
        "train.clip_norm train.lora.alpha evaluation.n evaluation.temperature filters.rouge_l"
    )
    for names, low, rule in ((positive, 1, "at least 1"), (not_negative, 0, "not below 0")):
        for name in names.split():
            value = field(c, name)
            require(value >= low, name, value, f"must be {rule}")
    require(c.task.held_out >= -1, "task.held_out", c.task.held_out, "-1 is a quarter of the file")
    require(
        c.task.validation >= -1, "task.validation", c.task.validation,
        "-1 is a quarter of the seeds, 0 none",
    )  # fmt: skip
    for stage in ("question", "answer"):
        s = field(c, stage).sampling
        require(s.temperature >= 0, f"{stage}.sampling.temperature", s.temperature, "not below 0")
        require(0 < s.top_p <= 1, f"{stage}.sampling.top_p", s.top_p, "must lie in (0, 1]")
        require(s.top_k >= 0, f"{stage}.sampling.top_k", s.top_k, "must not be below 0")
    require(c.seed < 2**32, "seed", c.seed, "must be below 2**32")
    require(c.train.warmup < 1, "train.warmup", c.train.warmup, "is a share, below 1")
    require(c.retrieval.layer <= 0, "retrieval.layer", c.retrieval.layer, "counts from the end")
    known = Lora().targets
    for target in c.train.lora.targets:
        require(target in known, "train.lora.targets", target, f"choose among {', '.join(known)}")
    require(bool(c.train.lora.targets), "train.lora.targets", (), "must name at least one")
    require(
        not c.train.init_adapter or c.train.trainable == "lora", "train.init_adapter",
        c.train.init_adapter, "needs train.trainable='lora'; export the adapter merged instead",
    )  # fmt: skip
    require(
        c.model.template == "plain" or c.model.bos == "auto", "model.bos", c.model.bos,
        f"config.model.template={c.model.template} says itself what texts begin with; use auto",
    )  # fmt: skip
    for name in c.evaluation.baselines:
        rule = f"choose among {', '.join(BASELINES)}{nearest(name, BASELINES)}"
        require(name in BASELINES, "evaluation.baselines", name, rule)
    for share in c.evaluation.sft_steps:
        require(share > 0, "evaluation.sft_steps", share, "shares must be above 0")
    require(
        c.mesh == "auto" or c.mesh_shape is not None, "mesh", c.mesh,
        "must be 'auto', or devices along data x fsdp x model, such as 4x1x2",
    )  # fmt: skip
    rows = c.mesh_shape[0] * c.mesh_shape[1] if c.mesh_shape else 1
    for name in SPREAD:
        value = field(c, name)
        near = " or ".join(map(str, multiples_near(value, rows)))
        require(
            value % rows == 0, name, value,
            f"must be a multiple of data x fsdp = {rows} of config.mesh={c.mesh}; nearest: {near}",
        )  # fmt: skip


def multiples_near(value: int, of: int) -> list[int]:
    """The multiples on both sides of a value, above 0."""
    below = value // of * of
    return [multiple for multiple in (below, below + of) if multiple > 0]


def field(config: Config, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def flag(path: str, value: Any) -> str:
    """The flag that gives a field this value, as a shell reads it.

    Args:
      path: of the field, without "config.".
      value: text, a number, true or false, or several of them.
    """
    if isinstance(value, (tuple, list)):
        texts = [json.dumps(v, ensure_ascii=False) if isinstance(v, str) else str(v) for v in value]
        value = f"({', '.join(texts)}{',' * (len(texts) == 1)})"
    return f"--config.{path}={value and shlex.quote(str(value))}"


def traced(params: type[_Params], group: Any) -> _Params:
    """The traced part of a group of fields: a sweep over it compiles nothing.

    Args:
      params: a NamedTuple that names the fields.
      group: a dataclass that has them.

    Returns:
      Scalars of the host, by the fields' declared types, to be placed by the caller. Of a field
      with choices it is the number of the one chosen, from 0.
    """
    kinds = typing.get_type_hints(type(group))

    def scalar(kind: Any, value: Any) -> np.generic:
        if typing.get_origin(kind) is Literal:
            return np.int32(typing.get_args(kind).index(value))
        return _SCALARS[kind](value)

    return params(*(scalar(kinds[name], getattr(group, name)) for name in params._fields))


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
