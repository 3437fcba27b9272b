"""How commands end: mistakes in one line, signals obeyed at once, our own bugs said to be ours."""

import errno
import json
import os
import pathlib
import pwd
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from isara_jax import config
from isara_jax.devices import mesh
from isara_jax.files import storage
from isara_jax.shell import endings
from tests import environment

ROOT = pathlib.Path(__file__).parents[2]
# A command without JAX, tried with many arguments and environments: each in a fork, which is cheap.
FORKS = """
import json, os, sys, tempfile
from absl import flags
from ml_collections import config_flags
from isara_jax import config
from isara_jax.shell import command

config_flags.DEFINE_config_file("config", None, "A file of configs/.")
flags.DEFINE_string("workdir", None, "Folder for everything the run writes.")


def work():
    config.resolve(flags.FLAGS.config)
    sys.exit("WORKED")


for arguments, variables in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as said:
        if not (child := os.fork()):
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            os.environ.pop("XLA_FLAGS", None)  # which would be tried out each time
            os.environ.update(variables)
            sys.argv = ["command", *arguments]
            try:
                command.start()
            except BaseException as error:  # what Python does of itself, outside of a try
                sys.excepthook(type(error), error, error.__traceback__)
            command.run(command.of(work, needs=("config", "workdir")))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        print(json.dumps([status, said.read()]))
"""
GOOD = "from isara_jax import config\n\n\ndef get_config():\n    return config.default()\n"
CONFIGS = {
    "good.py": GOOD,
    "raises.py": GOOD.replace("    return", "    c.seed = 1\n    return"),
    "syntax.py": "def get_config(:\n",
    "empty.py": "",
    "dict.py": "def get_config():\n    return {}\n",
}
RUN = ("--config=good.py", "--workdir=w")
X64 = "JAX_ENABLE_X64=1 is not honoured"
# Arguments, variables of the environment, and what must be said.
CASES = {
    "good": (RUN, {}, "WORKED"),
    "field": ((*RUN, "--config.iteration=1"), {}, "--config.iteration: .*'--config.iterations'"),
    "field without its group": ((*RUN, "--learning_rate=1"), {}, "--config.train.learning_rate"),
    "negated": ((*RUN, "--noconfig.compilation_cach"), {}, "'--config.compilation_cache'"),
    "below a value": ((*RUN, "--config.seed.x=1"), {}, "--config.seed.x: no such flag"),
    "tuple": (
        (*RUN, "--config.task.topics[0]=x", "--config.task.topics[1]", "y"),
        {},
        r"a tuple is given as a whole, such as --config.task.topics='\(\"x\", \"y\"\)'",
    ),
    "tuple, not empty": (
        (*RUN, "--config.evaluation.sft_steps[9]=1"),
        {},
        "='.0.0625, 0.125, 0.25, 0.5, 1.0.'",
    ),
    "index of a number": ((*RUN, "--config.seed[0]=1"), {}, "one value; .*: --config.seed=VALUE"),
    "index of a group": ((*RUN, "--config.model[a]=1"), {}, "a group.* --config.model.path=VALUE"),
    "flag": ((*RUN, "--workdri=x"), {}, "--workdri: .*'--workdir'"),
    "type": ((*RUN, "--config.seed=x"), {}, "--config.seed=x: .*'x'"),
    "group": ((*RUN, "--config.train=5"), {}, "--config.train=5: .*not a dict"),
    "argument": ((*RUN, "more"), {}, r"found \['more'\]; usage: python -m"),
    "no workdir": (RUN[:1], {}, "--workdir is missing. It is: Folder"),
    "empty workdir": ((*RUN, "--workdir="), {}, "--workdir is missing"),
    "no config": (("--config.seed=1", "--workdir=w"), {}, "--config is missing"),
    "empty config": (("--config=", "--workdir=w"), {}, "--config is missing"),
    "no file": (("--config", "god.py", "--workdir=w"), {}, "looked at /.*/god.py.*'good.py'"),
    "a folder": (("--config=.", "--workdir=w"), {}, "--config=.: a folder"),
    "raises": (("--config=raises.py", "--workdir=w"), {}, "raises.py:5: NameError: name 'c'"),
    "parameter": (("--config=good.py:x", "--workdir=w"), {}, "good.py: TypeError: .*0 positional"),
    "syntax": (("--config=syntax.py", "--workdir=w"), {}, "syntax.py:1: SyntaxError"),
    "empty file": (("--config=empty.py", "--workdir=w"), {}, "empty.py: .*'get_config'"),
    "a dict": (("--config=dict.py", "--workdir=w"), {}, "get_config.. returns dict"),
    "64 bits": (RUN, {"JAX_ENABLE_X64": "1"}, f"{X64}.*\nisara_jax: WORKED"),
    "32 bits": (RUN, {"JAX_ENABLE_X64": "0"}, "WORKED"),
    "XLA's": (RUN, {"XLA_FLAGS": "--xla_no_such=1"}, "XLA_FLAGS='--xla_no_such=1': .*Unknown"),
    "XLA's, good": (RUN, {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}, "WORKED"),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Status and output of each case."""
    folder = tmp_path_factory.mktemp("configs")
    for name, content in CONFIGS.items():
        (folder / name).write_text(content)
    cases = json.dumps([[arguments, variables] for arguments, variables, _ in CASES.values()])
    lines = subprocess.run(
        [sys.executable, "-c", FORKS, cases], cwd=folder, env=environment.of(), text=True,
        capture_output=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return dict(zip(CASES, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_flags_and_environment_are_told_in_one_line(case, ended):
    """Each mistake names itself and what was meant, or the path looked at, with status 1."""
    status, said = ended[case]
    assert status == 1
    assert re.fullmatch(f"isara_jax: .*{CASES[case][2]}.*\n", said), said


def _caused_by(cause):
    error = RuntimeError("a library's words")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (config.UserError("one\n  two"), 1, "one two"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "a/b: No space.*make room"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space.*make room"),
        (_caused_by(PermissionError(errno.EACCES, "Permission denied", "x")), 1, "x: Permission"),
        (ValueError("Failed: \"/a/b\" [os_error_code='28']"), 1, "/a/b: No space.*make room"),
        (MemoryError(), 1, "memory is full.*slots"),
        (ModuleNotFoundError("No module named 'optax'", name="optax"), 1, "optax.*pip install"),
        (ImportError("cannot import", name="isara_jax.host.run"), 70, "a bug of isara_jax"),
        (
            type("JaxRuntimeError", (RuntimeError,), {})("RESOURCE_EXHAUSTED: 9 GB"),
            1,
            "9 GB.*slots",
        ),
        (ValueError("shapes differ"), 70, "a bug of isara_jax.*ValueError: shapes differ"),
        (OSError("a library's words"), 70, "a bug of isara_jax"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_is_said_of_an_error(error, status, words):
    """What users can mend has a cure; only the rest is called a bug of ours."""
    sentence, found = endings.told(error)
    assert found == status and "\n" not in sentence
    assert re.search(words, sentence), sentence


def start(body, *, variables=None, resumes=True, **streams):
    """Starts a command without JAX that does `body`."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = (
        "from isara_jax.shell import command\nfrom isara_jax.files import storage\nimport sys\n"
        f"\n\ndef work():\n{lines}\n\n\n"
        f"command.start(resumes={resumes})\ncommand.run(command.of(work))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment.of() | (variables or {}), text=True,
        stderr=subprocess.PIPE, **streams,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """A shell that starts the tests in the background has it ignored, in their processes too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_bug_of_ours_says_so():
    """Its traceback is needed, and nobody should look for a mistake of their own."""
    started = start("{}['x']")
    _, said = started.communicate()
    assert started.returncode == 70
    assert "Traceback" in said and "a bug of isara_jax, not yours (KeyError: 'x')" in said


def test_a_reader_that_leaves_ends_a_command_quietly():
    """`… | head -1`: no traceback, and the status that a pipeline expects."""
    started = start("for _ in range(10**6): print('line')", stdout=subprocess.PIPE)
    assert started.stdout.readline() == "line\n"
    started.stdout.close()
    assert started.stderr.read() == "" and started.wait() == 141
    started = start("print('line')", stdout=subprocess.PIPE)  # read by nobody, written at the end
    started.stdout.close()
    assert started.stderr.read() == "" and started.wait() == 141


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_of_8_bits_shows_what_it_can(encoding):
    """A character that it lacks is no reason to end."""
    variables = {"PYTHONIOENCODING": encoding}
    started = start("print('a – b')", variables=variables, stdout=subprocess.PIPE)
    assert started.communicate() == ("a ? b\n", "") and started.returncode == 0


# A long call into C, as a compilation is: the main thread does not come back to Python.
BUSY = """
import hashlib, os, pathlib
with storage.scratch(pathlib.Path(os.environ["SCRATCH"])) as folder:
    (folder / "half").write_text("half")
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "told to end")],
)
def test_signals_are_obeyed_while_the_main_thread_is_busy(number, status, words, tmp_path):
    """It says that it ends, tidies up and ends, with no traceback."""
    variables = {"SCRATCH": str(tmp_path)}
    started = start(BUSY, variables=variables, stdout=subprocess.PIPE)
    assert started.stdout.readline() == "busy\n"
    assert len(list(tmp_path.iterdir())) == 1
    started.send_signal(number)
    _, said = started.communicate(timeout=20)
    assert started.returncode == status
    assert said.startswith(f"isara_jax: {words}") and said.endswith("the same command continues\n")
    assert not list(tmp_path.iterdir())


# What a run does: it looks between its stages, each a long call into C, whether it is to end.
SAVES = """
import hashlib, os
from isara_jax.shell import endings
endings.grant(float(os.environ["GRACE"]))
with storage.scratch() as folder, endings.saving_when_asked():
    print(folder, flush=True)
    while True:
        hashlib.pbkdf2_hmac("sha256", b"", b"", int(os.environ["STAGE"]))
        if endings.asked_to_end():
            break
    endings.end_preempted("iteration 3")
"""
ASKED = "isara_jax: told to end (SIGTERM); saves and ends within {} s\n"


@pytest.mark.parametrize(
    ("grace", "stage", "signals", "status", "said"),
    [
        (60, 10**6, [signal.SIGTERM] * 2, 75,  # by a launcher that signals a group and its members
         "told to end (SIGTERM): saved iteration 3; the same command continues"),
        (1, 2**31 - 1, [signal.SIGTERM], 75,
         "nothing could be saved within 1 s; what was saved stays, the same command continues"),
        (60, 2**31 - 1, [signal.SIGTERM, signal.SIGINT], 130, ""),
    ],
)  # fmt: skip
def test_a_preempted_run_saves_first(grace, stage, signals, status, said):
    """Within its grace period, after which the launcher would kill it; a second signal ends it."""
    variables = {"GRACE": str(grace), "STAGE": str(stage)}
    started = start(SAVES, variables=variables, stdout=subprocess.PIPE)
    folder = pathlib.Path(started.stdout.readline().strip())
    started.send_signal(signals[0])
    assert started.stderr.readline() == ASKED.format(grace)
    for number in signals[1:]:
        started.send_signal(number)
    assert started.wait(timeout=20) == status
    assert started.stderr.read() == (f"isara_jax: {said}\n" if said else "")
    if said:
        assert not folder.exists()
    else:
        folder.rmdir()  # at once


def test_what_cannot_be_continued_is_not_said_to_be():
    """Launchers would start it again and again."""
    started = start(
        "import time\nprint('there', flush=True)\ntime.sleep(60)",
        resumes=False,
        stdout=subprocess.PIPE,
    )
    started.stdout.readline()
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=20) == 143
    assert started.stderr.read() == "isara_jax: told to end (SIGTERM)\n"


def test_what_hangs_does_not_keep_a_signal_waiting():
    """Tidying up has its time; another signal ends even that."""
    body = (
        "from isara_jax.shell import endings\nimport time\n"
        "with endings.tidied(lambda: time.sleep(99)):"
    )
    started = start(
        f"{body}\n    print('busy', flush=True)\n    time.sleep(99)", stdout=subprocess.PIPE
    )
    assert started.stdout.readline() == "busy\n"
    started.send_signal(signal.SIGINT)
    assert started.stderr.readline().startswith("isara_jax: interrupted")
    started.send_signal(signal.SIGINT)
    assert started.wait(timeout=20) == 130


def test_ctrl_c_while_xla_compiles(random_model, tmp_path):
    """The run as users start it, interrupted in its first compilation."""
    flags = ("--config=configs/safety.py", f"--workdir={tmp_path}", "--config.slots=8")
    small = (
        "--config.samples_per_iteration=8",
        "--config.evaluation.n=4",
        "--config.task.n_seeds=8",
    )
    started = subprocess.Popen(
        [sys.executable, "-m", "isara_jax.main", *flags, *small,
         f"--config.model.path={random_model}", "--config.compilation_cache=False"],
        cwd=ROOT, env=environment.of(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while "Compiling" not in started.stdout.readline():
        assert started.poll() is None, started.stderr.read()
    time.sleep(1)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130
    assert said == "isara_jax: interrupted; what was saved stays, the same command continues\n"


def test_without_a_home_the_cache_is_ones_own_folder(tmp_path, monkeypatch, capsys):
    """A container's user may be a number; what others could have put there is not used."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def nobody(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    storage._tell_once.cache_clear()
    folder = storage.cache()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert storage.cache() == folder
    assert capsys.readouterr().err.count("is in " + str(folder)) == 1
    folder.rmdir()
    (tmp_path / "theirs").mkdir()
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(config.UserError, match="set XDG_CACHE_HOME"):
        storage.cache()


@pytest.mark.parametrize("names", ["cuda", "cuda,cpu", "tpu", "rocm", "cpuu", "cpu,cpuu"])
def test_a_platform_that_is_not_there_is_named(names, monkeypatch):
    """JAX would say it by an assertion, or take another one in silence."""
    monkeypatch.setenv("JAX_PLATFORMS", names)
    lacking = names.replace("cpu,", "").split(",")[0]
    with pytest.raises(config.UserError, match=f"JAX_PLATFORMS={names}: no {lacking} here .*=cpu,"):
        mesh.check_platforms()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    mesh.check_platforms()


@pytest.mark.parametrize(("names", "lacking"), [("cpu,bogus", "bogus"), ("cpu,,x", "''")])
def test_a_platform_that_keeps_jax_from_starting_another_is_named(names, lacking):
    """JAX starts all of them, and is asked for the first."""
    code = "from isara_jax.devices import mesh; mesh.check_platforms()"
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment.of() | {"JAX_PLATFORMS": names},
        capture_output=True, text=True,
    )  # fmt: skip
    assert f"JAX_PLATFORMS={names}: no {lacking} here" in found.stderr
    assert "; set JAX_PLATFORMS=cpu" in found.stderr


def test_an_older_python_is_told_what_is_needed():
    """Not a traceback from an import that it lacks."""
    code = "import sys; sys.version_info = (3, 10, 1); import isara_jax.shell.command"
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment.of(), capture_output=True, text=True
    )
    assert found.returncode == 1 and found.stderr.startswith("isara_jax: this is Python")
    assert found.stderr.count("\n") == 1 and os.linesep not in found.stdout


ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from isara_jax.shell import command
command.start()
import jax, numpy as np, jax.numpy as jnp

@jax.jit
def ask(x):
    y = jax.lax.fori_loop(0, 5, lambda _, y: jnp.tanh(y @ y), x)
    row = jax.ShapeDtypeStruct((1, 512), jnp.float32)
    return jax.pure_callback(lambda a: np.asarray(a)[:1], row, y) + y

x = jax.device_put(np.ones((512, 512), np.float32))
jax.block_until_ready(ask(ask(x) + x))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="one core cannot be chosen here")
def test_one_core_is_enough():
    """What asks ScaNN waited for ever where a container had a single core."""
    variables = {k: v for k, v in environment.of().items() if k != "NPROC"}
    subprocess.run([sys.executable, "-c", ONE_CORE], env=variables, check=True, timeout=120)
