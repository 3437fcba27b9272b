"""Several processes that are one run: they compute what one does, and end together."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from isara_jax import config
from isara_jax.devices import processes
from isara_jax.files import remote
from isara_jax.host import checkpoint, setup
from isara_jax.host.executables import Executables
from tests import environment
from tests.devices.watch_test import annoy, listening
from tests.method.iteration_test import adapter_distance, small

ROOT = pathlib.Path(__file__).parents[2]
HOST = socket.gethostname()


@pytest.fixture(scope="module")
def model(random_model, tmp_path_factory):
    """The random model without its second layer."""
    folder = tmp_path_factory.mktemp("one_layer") / "model"
    shutil.copytree(random_model, folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 1}))
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if "layers.1." not in name}
    safetensors.numpy.save_file(kept, folder / "model.safetensors")
    return folder


def short(model, seeds, mesh):
    """A configuration of few and short samples: Gloo takes its time for each token."""
    rows = [{"question": f"Is it {i}?", "answer": f"It is {i}."} for i in range(10)]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = small(model, samples_per_iteration=8, mesh=mesh)
    c.task.seeds, c.task.n_seeds, c.task.held_out = str(seeds), 0, 2
    c.question.max_tokens = c.answer.max_tokens = 12
    return config.resolve(c)


def start(code, *arguments, n=2, each=1):
    """Starts `code` in n processes, its first arguments `--coordinator` and `--process_id`."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, f"localhost:{port}", str(i), *map(str, arguments)],
            env=environment.of(each), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(n)
    ]  # fmt: skip


def finish(started):
    """The exit status, output and errors of each."""
    outputs = [process.communicate(timeout=300) for process in started]
    return [(p.returncode, *output) for p, output in zip(started, outputs, strict=True)]


CONTINUES = """
import pathlib, sys
import jax, numpy as np
from isara_jax import config
from isara_jax.devices import processes
from isara_jax.files import remote
from isara_jax.formats import weights
from isara_jax.host import checkpoint, setup
from isara_jax.method import retrieval
from isara_jax.host.executables import Executables
from tests.devices import processes_test

coordinator, number, model, folder = sys.argv[1:]
folder, read, searched = pathlib.Path(folder), [], []
def noting(function, results):
    return lambda *given, **named: (results.append(function(*given, **named)), results[-1])[1]
weights._Tensor.read = noting(weights._Tensor.read, read)
retrieval.search_with_scann = noting(retrieval.search_with_scann, searched)
with processes.joined(coordinator, 2, int(number)):
    assert (jax.device_count(), jax.local_device_count()) == (8, 4)
    c = processes_test.short(model, folder / f"seeds_{number}.jsonl", "1x4x2")
    s = setup.prepare(c, folder / number, None)
    base = s.inputs.base
    matrices = [x.size for x in jax.tree.leaves(base) if x.ndim == 2]
    assert 2 * sum(x.size for x in read if x.ndim == 2) == sum(matrices)  # its half alone
    exe = Executables(s.program, s.inputs)
    place, guard = remote.Workdir(folder / "lora"), jax.transfer_guard("disallow")
    with checkpoint.Checkpoints(place) as checkpoints, guard:
        step, state, host = checkpoints.restore(exe.start(s.seeds))
        assert (step, host) == (1, {"saved by": "one process"})
        state, report = exe.step(state)
        jax.block_until_ready(state)
        assert len(searched) == (number == "0")  # ScaNN is asked once in all
        checkpoints.save(2, state, {"saved by": "two processes"})
    place, guard = remote.Workdir(folder / "full"), jax.transfer_guard("disallow")
    with checkpoint.Checkpoints(place) as checkpoints, guard:
        found = checkpoints.restore(state._replace(trainable=base)).state
        for ours, theirs in zip(*map(jax.tree.leaves, (found.trainable, base)), strict=True):
            for a, b in zip(ours.addressable_shards, theirs.addressable_shards, strict=True):
                np.testing.assert_array_equal(jax.device_get(a.data), jax.device_get(b.data))
        checkpoints.save(2, found, {})
        report = jax.device_get(report)
        weights.save(folder / f"model_{number}", s.program.model.config, base)
    np.savez(folder / f"{number}.npz", question=report.question.tokens, answer=report.answer.tokens)
"""


def test_two_processes_continue_what_one_began_and_one_what_two_did(model, tmp_path):
    """On 2 x 4 devices the tokens of 1 x 1, and the adapter to 1e-4; checkpoints fit both."""
    s = setup.prepare(short(model, tmp_path / "seeds.jsonl", "1x1x1"), tmp_path, None)
    exe, whole = Executables(s.program, s.inputs), s.inputs.base
    state, _ = exe.step(exe.start(s.seeds))
    for name, saved in (("lora", state), ("full", state._replace(trainable=whole))):
        with checkpoint.Checkpoints(remote.Workdir(tmp_path / name)) as checkpoints:
            checkpoints.save(1, saved, {"saved by": "one process"})
    two = start(CONTINUES, model, tmp_path, each=4)
    state, report = exe.step(state)
    ended = finish(two)
    assert [code for code, _, _ in ended] == [0, 0], ended[0][2] + ended[1][2]
    assert not any(output for _, output, _ in ended)  # such as Gloo's

    for number in range(2):  # both know the results
        theirs = np.load(tmp_path / f"{number}.npz")
        for part in ("question", "answer"):
            np.testing.assert_array_equal(theirs[part], getattr(report, part).tokens)
    with checkpoint.Checkpoints(remote.Workdir(tmp_path / "lora")) as checkpoints:
        step, found, host = checkpoints.restore(state)
    assert (step, host) == (2, {"saved by": "two processes"})
    assert adapter_distance(found.trainable, state.trainable) < 1e-4
    jax.tree.map(np.testing.assert_array_equal, found.pool.pairs, state.pool.pairs)
    with checkpoint.Checkpoints(remote.Workdir(tmp_path / "full")) as checkpoints:
        found = checkpoints.restore(state._replace(trainable=whole)).state.trainable
    jax.tree.map(np.testing.assert_array_equal, found, whole)

    exported = safetensors.numpy.load_file(tmp_path / "model_0" / "model.safetensors")
    given = safetensors.numpy.load_file(model / "model.safetensors")
    assert exported.keys() == given.keys()
    assert all(np.array_equal(exported[name], given[name]) for name in given)
    assert not (tmp_path / "model_1" / "model.safetensors").exists()  # one writes


FAILS = """
import os, signal, sys, time
from isara_jax import config
from isara_jax.devices import processes
coordinator, number, n, how, *who = sys.argv[1:]
with processes.joined(coordinator, int(n), int(number)):
    if number in who and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if number in who:
        raise {"mistake": config.UserError("seeds.jsonl: not found"), "bug": KeyError("x")}[how]
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "who", "said"),
    [
        ("mistake", 1, f"process 1 on {HOST}: seeds.jsonl: not found"),
        ("bug", 1, f"process 1 on {HOST}: KeyError: 'x'"),
        ("killed", 0, f"process 0 on {HOST} has died: killed, or its machine is gone"),
        ("killed", 2, f"process 2 on {HOST} has died: killed, or its machine is gone"),
    ],
)
def test_all_end_with_the_first_that_fails(how, who, said):
    """A file that one machine lacks must not leave the others waiting; it is said who and what."""
    n = 3 if who == 2 else 2
    ended = finish(start(FAILS, n, how, who, n=n))
    for number, (code, _, errors) in enumerate(ended):
        own = {"killed": -signal.SIGKILL, "bug": 70, "mistake": 1}[how]
        assert code == (own if number == who else 1), ended
        assert ("Traceback" in errors) == (how == "bug" and number == who)
        assert number == who or f"isara_jax: {said}" in errors.splitlines(), ended


DIFFERS = """
import os, pathlib, signal, sys, time
from isara_jax import config
from isara_jax.devices import processes
from isara_jax.shell import endings
coordinator, number, folder = sys.argv[1:]
processes._SHARED_SECONDS = 1
endings.obey_signals()
endings.grant(300)
with processes.joined(coordinator, 2, int(number)), endings.saving_when_asked():
    assert processes.of_the_first(float(number) or float("inf")) == float("inf")
    assert not processes.all_asked_to_end()
    print("there", flush=True)
    sys.stdin.readline()
    if number == "1":
        os.kill(os.getpid(), signal.SIGTERM)
        while not endings.asked_to_end():
            time.sleep(0.01)
    assert processes.all_asked_to_end() and endings.asked_to_end() == (number == "1")
    processes.check_same("the same")
    processes.check_shared(pathlib.Path(folder))
    try:
        processes.check_same(f"flags of {number}")
        assert number == "0"
    except config.UserError as error:
        assert number == "1" and "start all with the same flags" in str(error)
    processes.check_shared(pathlib.Path(folder, number))
"""


def test_processes_that_differ_are_told_so(tmp_path):
    """Other flags on one machine, or a workdir on its own disk: else all wait, or write apart.

    And they agree to end when one is told to; strangers on JAX's own ports change nothing.
    """
    started = start(DIFFERS, tmp_path / "run")
    assert [process.stdout.readline() for process in started] == ["there\n"] * 2
    doors = [door.split(":") for process in started for door in listening(process.pid)]
    assert all(address.endswith("0100007F") for address, _ in doors)  # of all interfaces ours
    strangers = [annoy(int(port, 16), flood=100) for _, port in doors]
    for process in started:
        process.stdin.write("go on\n")
        process.stdin.flush()
    ended = finish(started)
    assert len(strangers) > 1
    assert [code for code, _, _ in ended] == [1, 1], ended
    said = f"process 1 on {HOST}: --workdir: {tmp_path / 'run' / '1'} is not the folder"
    assert said in ended[0][2]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["0"]


def script(folder, python, *arguments):
    """`launch/local_processes.sh` in a folder whose environment needs no making."""
    (folder / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "local_processes.sh", folder / "launch")
    (folder / "launch" / "environment.sh").touch()
    for name, target in ((".venv", python), ("isara_jax", ROOT), ("configs", ROOT)):
        (folder / name).symlink_to(target if name == ".venv" else target / name)
    return subprocess.Popen(
        [folder / "launch" / "local_processes.sh", *arguments], text=True,
        env=environment.of() | {"DEVICES": "4"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_mistake_that_all_make_is_said_once(tmp_path):
    """The command as a user starts it: one line from two processes, and its exit status."""
    lacks = f"--config.task.seeds={tmp_path}/none.jsonl"
    ((code, shown, errors),) = finish(
        [script(tmp_path / "house", sys.prefix, "2", lacks, f"--workdir={tmp_path / 'run'}")]
    )
    assert (code, shown) == (1, "")
    said = [line for line in errors.splitlines() if "none.jsonl" in line]
    assert len(said) == 1 and said[0].startswith("isara_jax: "), errors
    assert "[process 1] Traceback" not in errors


STAND_IN = """#!/bin/bash
[ "$1" != -c ] || exec {python} "$@"
echo "$$ $XLA_FLAGS $*"
case "$*" in *process_id=1) {last} ;; esac
exec sleep {seconds}
"""


@pytest.mark.parametrize("end", ["killed", "interrupted", "told"])
def test_the_script_leaves_no_process_behind(end, tmp_path):
    """One process is killed, or the user wants no more: all are gone, and the status says why."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    last, seconds = ("kill -KILL $$", 1) if end == "killed" else ("true", 60)
    python.write_text(STAND_IN.format(python=sys.executable, last=last, seconds=seconds))
    python.chmod(0o755)
    started = script(tmp_path / "house", tmp_path / "venv", "2", "--workdir=there")
    said = [started.stdout.readline(), started.stderr.readline().removeprefix("[process 1] ")]
    for number, line in enumerate(said):
        assert "device_count=4 " in line and "--config=configs/safety.py --workdir=there" in line
        assert line.endswith(f" --num_processes=2 --process_id={number}\n")
    number = {"killed": signal.SIGKILL, "interrupted": signal.SIGINT, "told": signal.SIGTERM}[end]
    if end != "killed":
        started.send_signal(number)  # which is passed on, and what they end with is the status
    ((code, _, _),) = finish([started])
    assert code == 128 + number
    for line in said:
        with pytest.raises(ProcessLookupError):
            os.kill(int(line.split()[0]), 0)


ALONE = (
    {},
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # in a script of sbatch
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"},  # in a shell of salloc
    {"OMPI_COMM_WORLD_SIZE": "1"},
    {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "true"},  # as on Colab
)
MANY = (
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"},
    {"OMPI_COMM_WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "1"},  # mpirun starts itself by srun
    {"TPU_WORKER_HOSTNAMES": "10.0.0.2,10.0.0.3"},
    {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"},
    {"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
)


def test_only_a_launcher_of_several_makes_them_wait_for_each_other():
    """A laptop, a shell of Slurm and a single TPU host start alone and at once."""
    assert not any(map(processes.launched_with_others, ALONE))
    assert all(map(processes.launched_with_others, MANY))


def test_what_is_missing_to_join_is_said():
    """A number without an address: which flags there are, not JAX's words alone."""
    code = "from isara_jax.devices import processes\nwith processes.joined(None, 2, 0): pass"
    ((code, _, errors),) = finish(start(code, n=1))
    assert code == 1
    assert "UserError: the other processes cannot be found (coordinator_address" in errors
    assert "--coordinator=HOST:PORT, --num_processes and --process_id" in errors
