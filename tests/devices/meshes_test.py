"""The same run on any mesh: tokens, adapters, checkpoints, on eight fake devices.

    python -m tests.devices.meshes_test FOLDER llama 1x1x1 8x1x1 1x8x1 1x1x8 2x2x2

compares each mesh with the first, which the test does for some of them; Qwen 3 asks for all that
LLaMA does, and has a window and norms of queries and keys besides. (OLMo 3's norms over all heads
are exchanges that do not depend on each other: on fake devices, on a busy machine, XLA for CPUs may
begin them in different orders, and wait for ever.)
"""

import functools
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isara_jax import config
from isara_jax.files import remote, storage
from isara_jax.formats import pretrained, weights
from isara_jax.host import checkpoint, setup
from isara_jax.host.executables import Executables
from isara_jax.method import iteration
from isara_jax.models import families
from isara_jax.models.families import llama, opt
from isara_jax.models.network import DecoderConfig, LayerKind, Norm
from isara_jax.models.rope import Rope
from isara_jax.planning import hlo
from tests import environment, words
from tests.method.iteration_test import adapter_distance, small

ADAPTER_TOLERANCE = 1e-4  # relative distance, after two iterations
# Eight heads divide over eight devices; two heads of keys and values do not, and are replicated.
SIZES = {"vocab_size": 1536, "width": 64, "hidden": 128, "n_layers": 2, "n_heads": 8,
         "head_size": 8, "max_length": 512}  # fmt: skip
NETWORKS = {
    "llama": llama.network(**SIZES, n_kv_heads=2),
    "opt": opt.network(**SIZES, n_kv_heads=8),
    # Windows shorter than a prompt, norms of all heads of q and k together: over devices, too.
    "olmo3": DecoderConfig(
        family="olmo3", **SIZES, n_kv_heads=2, qk_norm="flat", norm_place="behind",
        norm=Norm(weight="wide"),
        kinds=(LayerKind(Rope(500_000.0), 24), LayerKind(Rope(500_000.0))),
    ),
    "qwen3": DecoderConfig(
        family="qwen3", **SIZES, n_kv_heads=2, qk_norm="head",
        kinds=(LayerKind(Rope(), 24), LayerKind(Rope())),
    ),
    "gemma2": DecoderConfig(
        family="gemma2", **SIZES, n_kv_heads=2, norm_place="both", norm=Norm(weight="one_plus"),
        kinds=(LayerKind(Rope(), 24), LayerKind(Rope())), score_cap=50.0, logit_cap=30.0,
        attention_scale=8**-0.5, embedding_scale=8.0,
    ),
}  # fmt: skip


def write_model(folder, family):
    """A random model under the bundled tokenizer, as a Hugging Face directory."""
    network = NETWORKS[family]
    folder.mkdir(parents=True)
    pretrained.copy_files(
        pretrained.BUNDLED["tiny_llama"], folder, "tokenizer.json", "tokenizer_config.json"
    )
    model = families.build(network)
    params = model.init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32), method="everything")
    # Larger than at initialisation, so that the text depends on what is read.
    params = jax.tree.map(lambda x: x * 8 if x.ndim == 2 else x, params["params"])
    weights.save(folder, network, words.only_words(params))
    storage.write_json(folder / "config.json", families.to_hf(network))


def prepare(folder, mesh, **changed):
    return setup.prepare(
        config.resolve(small(folder / "model", mesh=mesh, **changed)), folder / "data", None
    )


class Run:
    """Two iterations on a mesh, with a checkpoint between them."""

    def __init__(self, folder, mesh):
        s = self.setup = prepare(folder, mesh)
        self.exe, self.begin = Executables(s.program, s.inputs), s.seeds
        self.place = remote.Workdir(folder / mesh)

    def __call__(self, place=None):
        """The reports and the last trainable; from another mesh's checkpoint, if there is one."""
        state, reports = self.exe.start(self.begin), []
        if place is not None:
            with checkpoint.Checkpoints(place) as saved:
                state = saved.restore(state).state
        for number in range(int(jax.device_get(state.step)), 2):
            with jax.transfer_guard("disallow"):
                state, report = self.exe.step(state)
            reports.append(jax.device_get(report))
            if number == 0:
                with checkpoint.Checkpoints(self.place) as saved:
                    saved.save(1, state, {})
        assert self.exe.compiles["isara_step"] == 1
        return reports, jax.device_get(state.trainable)


def check_spread(s):
    """A device computes its own rows, has logits of its words alone, and sends no other rows."""
    state = Executables(s.program, s.inputs).start(s.seeds)
    fit = jax.jit(functools.partial(iteration.fine_tune, s.program))
    text = fit.lower(s.inputs, state.trainable, state.pool, state.step).compile().as_text()
    data, fsdp, model = s.config.mesh_shape
    rows, length = s.program.training.rows // (data * fsdp), s.program.sizes.sequence
    answers, words = rows * s.program.sizes.answer, 1536 // model
    assert re.search(rf"f32\[{rows},{length},", text), "no activation of a part of the batch"
    assert re.search(rf"f32\[1,{answers},{words}\]", text), "no logits of a part of the batch"
    for exchange in hlo.collectives(text):
        for streams, tokens in re.findall(r"\[(\d+),(\d+),\d+\]", exchange.shape):
            assert int(streams) * int(tokens) <= rows * length, exchange


def check_same(found, expected):
    """Equal tokens, and adapters to the tolerance; the distance."""
    (ours, trained), (theirs, reference) = found, expected
    for a, b in zip(ours, theirs[-len(ours) :], strict=True):
        for field in ("question", "answer"):
            np.testing.assert_array_equal(getattr(a, field).tokens, getattr(b, field).tokens)
    distance = adapter_distance(trained, reference)
    assert distance < ADAPTER_TOLERANCE, distance
    return distance


def compare(folder, family, first, *others):
    """Runs the meshes; the others also from the first one's checkpoint."""
    write_model(folder / "model", family)
    reference = Run(folder, first)
    expected = reference()
    for mesh in others:
        run = Run(folder, mesh)
        if mesh == "2x2x2":
            check_spread(run.setup)
        began, continued = (check_same(run(place), expected) for place in (None, reference.place))
        print(f"{family} {mesh}: same tokens as {first}; adapters differ by {began:.1e}, "
              f"continued from its checkpoint by {continued:.1e}")  # fmt: skip


@pytest.mark.parametrize(
    ("family", "meshes"),
    [("qwen3", "1x1x1 2x2x2"), ("opt", "1x1x8 1x8x1")],
)
def test_every_mesh_gives_the_same_run(tmp_path, family, meshes):
    """Requests keyed by their number, exact gradients, checkpoints that know no mesh."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.devices.meshes_test", str(tmp_path), family, *meshes.split()],
        env=environment.of(8), check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    assert "same tokens" in done.stdout
    assert "Involuntary full rematerialization" not in done.stderr, done.stderr


if __name__ == "__main__":
    compare(pathlib.Path(sys.argv[1]), *sys.argv[2:])
