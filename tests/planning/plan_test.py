"""The plan: what shallow models tell of deep ones, and limits that agree with what is compiled."""

import dataclasses
import json
import subprocess
import sys
import types

import jax
import pytest
import safetensors.numpy

from isara_jax import config, plan
from isara_jax.devices import hardware
from isara_jax.formats import pretrained
from isara_jax.host import placement
from isara_jax.host.executables import Executables
from isara_jax.models.families import llama
from isara_jax.planning import blueprint, estimate, pieces, roofline
from tests import environment
from tests.method.iteration_test import small

KIND = hardware.BY_NAME["v5e"]
NETWORK = llama.network(
    vocab_size=512, width=64, hidden=128, n_layers=6, n_heads=8, n_kv_heads=4, head_size=8,
    max_length=512,
)  # fmt: skip


def settings(**changed):
    stage = {"k": 2, "max_tokens": 16, "prompt_tokens": 64}
    return config.Config(
        samples_per_iteration=32, slots=16, task=config.Task(n_seeds=8),
        question=config.Question(**stage), answer=config.Answer(**stage),
        train=config.Train(batch_size=8), **changed,
    )  # fmt: skip


def extrapolate():
    """On four devices, two each along data and model: six blocks as seen from two and four."""
    base, c, costs = blueprint.of_shape(NETWORK), settings(mesh="2x1x2"), []
    for layers in (2, 4, 6):
        b = blueprint.draw(c, base, jax.devices(), layers)
        s = pieces.sampling(b)
        costs.append([pieces.cost(piece(b, s)) for piece in (pieces.step, pieces.refill)])
    for two, four, six in zip(*costs, strict=True):
        found = two.extended(four, 2)
        assert abs(found.flops / six.flops - 1) < 0.02, (found, six)
        assert abs(found.sent / six.sent - 1) < 0.02, (found, six)
        # Along model a block adds up what o and down leave in parts.
        assert six.exchanges["all-reduce"][0] >= 2 * NETWORK.n_layers - 1
    check_reading(c, base)
    _, gathered = costs[-1][0].exchanges.get("all-gather", (0, 0))  # in a step: no cache
    assert gathered < estimate.cache_bytes(b) / (2 * NETWORK.n_layers) / 2


def check_reading(c, base):
    """Weights that are split over fsdp are read in parts by a decoding step, as over model."""
    costs, read = estimate.Costs(*[pieces.Cost(0.0, 0.0, {})] * 4), []
    for mesh in ("1x4x1", "1x1x4"):
        b = blueprint.draw(dataclasses.replace(c, mesh=mesh), base, jax.devices())
        stages = {stage.name: stage for stage in estimate.stages(b, costs, KIND)}
        read.append(stages["answers: decode"].read)
    assert abs(read[0] / read[1] - 1) < 0.01, read


def test_a_shallow_model_is_trained_as_the_whole_one(monkeypatch):
    """Memory is short for six blocks, not for two: these must recompute all the same."""
    monkeypatch.setattr(hardware, "free_memory", lambda *_: 40e6)
    c, base, one = settings(mesh="1x1x1"), blueprint.of_shape(NETWORK), jax.devices()[:1]
    shallow, whole = (blueprint.draw(c, base, one, layers) for layers in (2, 0))
    assert shallow.program.training == whole.program.training
    assert whole.program.training.remat
    two_alone = blueprint.of_shape(dataclasses.replace(NETWORK, n_layers=2))
    assert not blueprint.draw(c, two_alone, one).program.training.remat


def test_judges_take_their_place():
    """A judge as large as the model lies beside it on every device."""
    c, one = settings(mesh="1x1x1"), jax.devices()[:1]
    alone = blueprint.of_shape(NETWORK)
    judged = blueprint.draw(c, alone._replace(judges=(NETWORK,)), one)
    assert judged.judges == 4 * placement.n_params(NETWORK)
    assert not blueprint.draw(c, alone, one).judges


def test_two_and_four_blocks_tell_of_six():
    """Operations and exchanges of a deep model, without the hours that compiling it takes."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.planning import plan_test; plan_test.extrapolate()"],
        env=environment.of(4), check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    assert "Involuntary full rematerialization" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def measured(random_model, tmp_path_factory):
    """The plan of a small model's folder on this machine's device."""
    c = config.resolve(small(random_model, mesh="1x1x1"))
    c, base = blueprint.read(c, tmp_path_factory.mktemp("data"))
    return c, base, plan.measure(c, base, jax.devices()[:1], KIND)


def test_memory_is_that_of_the_files(measured, random_model):
    """Weights as large as the checkpoint's, a cache as its shapes say, all of it in the total."""
    c, base, result = measured
    memory, n = result["memory"], base.network
    files = safetensors.numpy.load_file(random_model / "model.safetensors")
    assert memory["weights"] == sum(x.nbytes for x in files.values())
    b = blueprint.draw(c, base, jax.devices()[:1])
    rows = pieces.sampling(b).prompts.tokens.shape[1] + c.answer.max_tokens
    expected = 2 * n.n_layers * rows * n.n_kv_heads * n.head_size * 4 * c.slots
    assert expected * 0.5 < memory["cache"] <= expected * 1.5  # of questions or of answers
    parts = ("weights", "trainable", "others", "judges", "temp")
    assert memory["total"] == sum(memory[part] for part in parts) < memory["of"]
    assert result["fits"] and result["largest_exchange"] is None


def test_limits_agree_with_what_is_compiled(measured):
    """A step's operations by the formula are those the compiler counts, and none takes no time."""
    c, base, result = measured
    stages = {stage["name"]: stage for stage in result["stages"]}
    b = blueprint.draw(c, base, jax.devices()[:1])
    n = roofline.Counts.of(b.program.model)
    by_formula = 2 * (n.blocks + n.head) * c.slots
    assert 1 < result["costs"]["step"]["flops"] / by_formula < 4  # attention and drawing too
    assert set(stages) == {
        "questions: prefill", "questions: decode", "embed", "answers: prefill", "answers: decode",
        "train",
    }  # fmt: skip
    assert all(max(stage["seconds"]) > 0 for stage in stages.values())
    tokens = c.samples_per_iteration * c.answer.max_tokens
    assert stages["answers: decode"]["tokens"] == tokens


def test_the_table_says_what_was_found(measured):
    """Every number a reader decides by: mesh, memory, limits, time, cost."""
    _, _, result = measured
    text = plan.text(result | {"topology": "v5e:1x1", "price": 1.2})
    assert json.loads(json.dumps(result))["slots"] == result["slots"]
    for part in ("mesh 1x1x1", "weights", "total", "answers: decode", "waits for", "cost of an"):
        assert part in text
    too_large = result | {"fits": False, "topology": "v5e:1x1", "price": 0.0}
    assert "DOES NOT FIT" in plan.text(too_large) and "cost" not in plan.text(too_large)


def test_a_shape_needs_its_lengths(tmp_path):
    """Without a tokenizer lengths do not follow from seeds: the fields are named."""
    c = dataclasses.replace(config.Config(), model=config.Model(path="llama_7b"))
    with pytest.raises(config.ConfigError, match=r"config.question.max_tokens.*config.task.n_see"):
        blueprint.read(c, tmp_path)


@pytest.mark.parametrize("topology", ["v5e:many", "v9:2x2", "h200:2x"])
def test_unknown_topologies_are_refused(topology):
    """A misspelt topology ends in a line that shows how they are written."""
    with pytest.raises(config.ConfigError, match="such as v5e:4x4"):
        hardware.devices(topology)


def test_shapes_are_those_that_are_published():
    """Parameters of the shapes, against the published numbers."""
    from isara_jax.models import shapes

    published = {
        "llama_7b": 6_738_415_616, "llama_13b": 13_015_864_320, "llama_65b": 65_285_660_672,
        "llama2_70b": 68_976_648_192, "llama3_8b": 8_030_261_248, "llama3_70b": 70_553_706_496,
        "opt_1.3b": 1_315_758_080, "opt_6.7b": 6_658_473_984,
    }  # fmt: skip
    found = {name: placement.n_params(shapes.NETWORKS[name]) for name in published}
    assert found == published
    assert pretrained.BUNDLED.keys().isdisjoint(shapes.NETWORKS)


def test_fit_offers_what_fits_the_fastest_first(monkeypatch):
    """Slots grow until memory is full; a mesh whose weights do not fit is never offered."""
    nothing = pieces.Cost(0.0, 0.0, {})
    monkeypatch.setattr(estimate, "costs", lambda *_: estimate.Costs(*[nothing] * 4))
    analysis = types.SimpleNamespace(argument_size_in_bytes=0, temp_size_in_bytes=10**6)
    compiled = types.SimpleNamespace(memory_analysis=lambda: analysis)
    monkeypatch.setattr(Executables, "compiled_step", lambda *_: compiled)
    base, c = blueprint.of_shape(NETWORK), settings()

    def offered(memory):
        kind = dataclasses.replace(KIND, memory=memory)
        return list(estimate.fit(c, base, jax.devices()[:1], kind, 4))

    roomy = offered(1e9)
    assert [x.config.slots for x in roomy] == [32, 16]  # no more than there are samples
    assert all(x.config.mesh == "1x1x1" for x in roomy)
    assert [x.seconds for x in roomy] == sorted(x.seconds for x in roomy)
    weights = roomy[0].memory.weights + roomy[0].memory.trainable
    tight = offered((weights + 0.75 * roomy[0].memory.temp) / estimate.FITS)
    assert [x.config.slots for x in tight] == [16, 8]
    assert not offered(0.5 * roomy[0].memory.weights)
