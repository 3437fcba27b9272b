"""What people start runs with, here and elsewhere: scripts, manifests, requirements."""

import ast
import importlib.metadata
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from isara_jax.shell import endings

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch", ROOT / ".ci" / "run"])
JOBSETS = ("gke_jobset.yaml", "gke_jobset_gpu.yaml")
KUBERNETES = "1.33"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_sound(script):
    """A script that git stored without its mode, or in which shellcheck finds a mistake."""
    assert os.access(script, os.X_OK) or script.name == "environment.sh"  # which is sourced
    subprocess.run(["bash", "-n", script], check=True)
    _lint("shellcheck", "--external-sources", "--shell=bash", script)


def _lint(tool, *arguments):
    """Passes if the tool, which lies beside the interpreter, finds nothing to complain about."""
    command = [pathlib.Path(sys.executable).with_name(tool), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_unsupported_python_is_named(tmp_path):
    """An old interpreter ends in one sentence, before anything is installed."""
    fake = _program(
        tmp_path / "python", '[ "$1" = --version ] && echo Python 3.9.1 && exit; exit 1'
    )
    done = subprocess.run(
        ["bash", "-c", ". launch/environment.sh requirements.txt"],
        cwd=ROOT, env=os.environ | {"PYTHON": str(fake)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs Python 3.11 to 3.13" in done.stderr and "Python 3.9.1" in done.stderr


def test_the_readme_names_the_two_commands():
    """What CI runs is what the README tells a newcomer to run."""
    readme = (ROOT / "README.md").read_text()
    assert "./launch/local.sh" in readme and "./launch/test.sh" in readme
    assert "./launch/test.sh" in (ROOT / ".ci" / "run").read_text()


# Cloud TPU VMs.

TPU_STEPS = ("create", "install", "run", "fetch", "stop", "delete")
AWKWARD = '--config.evaluation.judges=("it\'s a dir/$HOME", "*")'  # a shell would change it


def _program(path, body):
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return path


def _tpu_vm(*arguments, path, cwd=ROOT, **environment):
    return subprocess.run(
        [cwd / "launch" / "tpu_vm.sh", *arguments], capture_output=True, text=True, timeout=60,
        env=os.environ | environment | {"PATH": f"{path}:{os.environ['PATH']}"},
    )  # fmt: skip


@pytest.fixture
def no_gcloud(tmp_path):
    """A PATH on which gcloud leaves a trace, and fails."""
    _program(tmp_path / "gcloud", f"touch {tmp_path}/called; exit 1")
    yield tmp_path
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("kind", "flags", "created"),
    [
        ("v5litepod-16", (), "tpu-vm create tpu --zone=z --accelerator-type=v5litepod-16 "
                             "--version=v2-alpha-tpuv5-lite"),
        ("v6e-8", ("--spot",), "tpu-vm create tpu --zone=z --accelerator-type=v6e-8 "
                               "--version=v2-alpha-tpuv6e --spot"),
        ("v5p-32", ("--queued",), "queued-resources create tpu --zone=z --node-id=tpu "
                                  "--accelerator-type=v5p-32 --runtime-version=v2-alpha-tpuv5"),
    ],
)  # fmt: skip
def test_a_dry_run_prints_every_command_and_runs_none(kind, flags, created, no_gcloud):
    """Someone reads what a VM will be asked before paying for it, and can paste it into a shell."""
    done = _tpu_vm(
        *TPU_STEPS, "--dry_run", "--name=tpu", "--zone=z", f"--type={kind}", *flags,
        "--workdir=gs://bucket/a run", AWKWARD, path=no_gcloud,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.split("Costs money")[0])
    lines = " ".join(words)
    assert f"gcloud compute tpus {created} " in lines
    assert "git archive" in lines and "scp" in words and "tpu:isara_jax.tar.gz" in words
    assert "gcloud storage rsync gs://bucket/a run runs/a run " in lines
    deleted = "queued-resources delete" if "--queued" in flags else "tpu-vm delete"
    assert f"{deleted} tpu --zone=z" in lines and "--quiet" in words
    remote = [w.removeprefix("--command=") for w in words if w.startswith("--command=")]
    install, run, stop = remote
    assert "launch/requirements-tpu.txt" in install and "--stop" in stop
    assert shlex.split(run)[-3:] == [
        "--workdir=gs://bucket/a run", AWKWARD, "--config=configs/safety.py",
    ]  # fmt: skip
    for command in remote:
        subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
def test_gcloud_knows_the_commands(tmp_path):
    """Commands, flags and arguments as gcloud itself parses them, which asks no server for that."""
    printed = [
        _tpu_vm(*TPU_STEPS, "--dry_run", *flags, path=tmp_path).stdout.splitlines()
        for flags in ((), ("--spot", "--workdir=gs://b/w"), ("--queued",))
    ]
    commands = {line for line in sum(printed, []) if line.startswith("gcloud ")}
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([{"command_string": f"{c} --project=p"} for c in commands]))
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"],
        env=os.environ | {"CLOUDSDK_CONFIG": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    if "Invalid choice" in done.stderr:
        pytest.skip("this gcloud does not check commands")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == len(commands) >= 10
    assert not [(r["command_string"], r["error_message"]) for r in results if not r["success"]]


def test_what_still_costs_money_is_said(no_gcloud):
    """Nobody finds out from the bill; after `delete` only the bucket is left."""
    kept = _tpu_vm("fetch", "--dry_run", "--name=tpu", path=no_gcloud).stdout
    assert "Costs money until it is deleted" in kept and "delete --name=tpu" in kept
    gone = _tpu_vm("delete", "--dry_run", "--workdir=gs://b/w", path=no_gcloud).stdout
    assert "until it is deleted" not in gone and gone.endswith("gs://b/w\n")


def test_a_mistyped_flag_costs_nothing(no_gcloud):
    """A VM of the wrong zone or type is made by no typo."""
    done = _tpu_vm("create", "--zome=z", path=no_gcloud)
    assert done.returncode == 2 and "--zome=z" in done.stderr


FAKE_GCLOUD = r"""
shift 2 # compute tpus
for word; do case $word in --command=*) command=${word#*=} ;; esac; done
echo "$1 $2" >>calls
case "$1 $2" in
  "tpu-vm list") cat vms ;;
  "queued-resources list") ;;
  "tpu-vm create") printf '%s\tREADY\n' "$3" >>vms ;;
  "tpu-vm delete") : >vms ;;
  "tpu-vm scp") for host in host*; do cp "$3" "$host/${4#*:}"; done ;;
  "tpu-vm ssh")
    hosts=()
    for host in host*; do
      (cd "$host" && HOME=$PWD HOST=$host bash -c "$command") & hosts+=($!)
    done
    for host in "${hosts[@]}"; do wait "$host" || status=$?; done
    exit "${status:-0}" ;;
  *) exit 64 ;;
esac
"""
# Python on such a host: makes an environment of itself, and writes down what the job was given.
FAKE_PYTHON = r"""
case "$*" in
  *"uv python find"*) echo "$0" ;;
  "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m isara_jax.main"*) printf '%s\n' "$@" >>~/given; echo "job on $HOST"; sleep 1; exit $FAILS ;;
esac
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A checkout, and a cloud whose VM has two hosts: folders beside each other."""
    checkout = tmp_path / "checkout"
    shutil.copytree(LAUNCH, checkout / "launch")
    shutil.copy(ROOT / "requirements.txt", checkout)
    git = ["git", "-C", checkout, "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=x"], check=True)
    for folder in ("bin", "host0", "host1"):
        (tmp_path / folder).mkdir()
    (tmp_path / "vms").write_text("tpu-of-others\tREADY\n")
    _program(tmp_path / "bin" / "gcloud", f"cd {tmp_path}\n{FAKE_GCLOUD}")
    _program(tmp_path / "bin" / "python3", FAKE_PYTHON)
    return tmp_path


def test_a_job_runs_on_all_hosts_of_a_tpu(cloud):
    """Every host gets the flags as they were typed; an existing VM is used; a failure is seen."""
    flags = ("--name=tpu", "--workdir=gs://b/w", AWKWARD, "--config=a.py")
    call = {"path": cloud / "bin", "cwd": cloud / "checkout"}
    done = _tpu_vm("create", "install", "run", *flags, **call, FAILS="0")
    assert done.returncode == 0, done.stderr
    given = ["-m", "isara_jax.main", "--workdir=gs://b/w", AWKWARD, "--config=a.py"]
    for host in ("host0", "host1"):
        assert (cloud / host / "given").read_text().splitlines() == given
        assert f"job on {host}" in done.stdout
    failed = _tpu_vm("create", "run", "delete", *flags, **call, FAILS="3")
    assert failed.returncode == 3
    assert "Costs money until it is deleted" in failed.stdout  # the step that would was not reached
    assert (cloud / "calls").read_text().split("\n").count("tpu-vm create") == 1


def test_a_detached_job_outlives_its_connection(tmp_path):
    """A laptop that sleeps ends no run; whoever asks again sees all of it, and its exit status."""
    command = ["bash", "-c", f"echo $$ >>{tmp_path}/starts; sleep 2; echo done; exit 3"]
    attach = [LAUNCH / "detached.sh", tmp_path / "job", *command]
    first = subprocess.Popen(attach, stdout=subprocess.PIPE, start_new_session=True)
    while not (tmp_path / "starts").exists():
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)  # as when the connection is gone
    again = subprocess.run(attach, capture_output=True, text=True, timeout=30)
    assert (again.returncode, again.stdout) == (3, "done\n")
    assert len((tmp_path / "starts").read_text().split()) == 1


def test_a_detached_job_can_be_stopped(tmp_path):
    """Also one that does not listen to SIGTERM; with its children."""
    command = ["bash", "-c", "trap '' TERM; sleep 60 & echo $!; wait"]
    script = [LAUNCH / "detached.sh", tmp_path / "job"]
    with subprocess.Popen([*script, *command], stdout=subprocess.PIPE, text=True) as job:
        child = int(job.stdout.readline())
        subprocess.run([*script, "--stop"], check=True)
        assert job.wait(timeout=30) == 137
    status = pathlib.Path(f"/proc/{child}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


# Slurm.


@pytest.fixture
def slurm(tmp_path):
    """The batch script in a checkout; srun writes down what it got and lasts until told."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    _program(tmp_path / ".venv" / "bin" / "python", "")
    _program(
        tmp_path / "srun", "trap 'sleep 0.3; echo 75 >end' TERM; " 'printf "%s\\n" "$@" >given; '
        "while [ ! -e end ]; do sleep 0.1; done; exit $(cat end)",
    )  # fmt: skip
    _program(tmp_path / "scontrol", 'echo "$@" >requeued')
    job = subprocess.Popen(
        [LAUNCH / "slurm.sbatch", AWKWARD], cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
    )  # fmt: skip
    while not (tmp_path / "given").exists():
        assert job.poll() is None
        time.sleep(0.05)
    yield tmp_path, job
    (tmp_path / "end").write_text("0")
    job.wait(timeout=30)


def test_a_slurm_job_whose_time_is_up_is_queued_again(slurm):
    """Otherwise a long run ends with its first time limit; it saves before it is."""
    folder, job = slurm
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == endings.PREEMPTED
    assert (folder / "end").read_text().split() == ["75"]  # it was told, and waited for
    assert (folder / "requeued").read_text().split() == ["requeue", "7"]


def test_a_slurm_job_whose_processes_are_preempted_is_queued_again(slurm):
    """Slurm may tell them alone, and then does not queue it by itself."""
    folder, job = slurm
    (folder / "end").write_text(str(endings.PREEMPTED))
    assert job.wait(timeout=30) == endings.PREEMPTED
    assert (folder / "requeued").read_text().split() == ["requeue", "7"]


def test_a_slurm_job_fails_as_its_processes_do(slurm):
    """A failed run is no success to what depends on it; its flags arrived as they were given."""
    folder, job = slurm
    (folder / "end").write_text("3")
    assert job.wait(timeout=30) == 3
    assert not (folder / "requeued").exists()
    given = (folder / "given").read_text().splitlines()
    assert given[given.index("-m") :] == [
        "-m", "isara_jax.main", "--workdir=runs/safety", "--config=configs/safety.py", AWKWARD,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "folder", "config"),
    [
        ((), "safety", "configs/safety.py"),
        (("--config=configs/truthfulness.py:tiny_opt",), "truthfulness", None),
        (("--config.seed=1", "--config=/a b/mine.py:/models/x.py"), "mine", None),
    ],
)
def test_each_configuration_runs_in_a_folder_of_its_own(flags, folder, config, tmp_path):
    """A second domain would otherwise be refused as another run in the first one's folder."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "launch").mkdir()
    shutil.copy(LAUNCH / "local.sh", tmp_path / "launch")
    (tmp_path / "launch" / "environment.sh").touch()
    _program(tmp_path / ".venv" / "bin" / "python", 'printf "%s\\n" "$@" >given')
    subprocess.run([tmp_path / "launch" / "local.sh", *flags], check=True)
    given = (tmp_path / "given").read_text().splitlines()
    first = [f"--config={config}"] if config else []
    assert given == ["-m", "isara_jax.main", f"--workdir=runs/{folder}", *first, *flags]


@pytest.mark.parametrize(
    ("node", "accepted"),
    [
        ({}, True),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "8"}, True),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "1"}, False),
        ({"SLURM_GPUS_ON_NODE": "8"}, False),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_PER_TASK": "1"},
         False),
    ],
)  # fmt: skip
def test_a_slurm_job_leaves_no_gpu_idle(node, accepted, tmp_path):
    """JAX gives a process one of the node's GPUs: the others would be paid for and not used."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    _program(tmp_path / ".venv" / "bin" / "python", "")
    _program(tmp_path / "srun", "exit 0")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    environment |= node | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [LAUNCH / "slurm.sbatch"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode == 0) is accepted
    assert accepted or "--gpus-per-node=8 --ntasks-per-node=8" in done.stderr


# Kubernetes. JobSet's own fields, as its API v1alpha2 documents them; jobs by Kubernetes' schema.


def _fields(required=(), **properties):
    return {
        "type": "object", "properties": properties, "required": list(required),
        "additionalProperties": False,
    }  # fmt: skip


_NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_RULE = _fields(
    ["name", "action"],
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons={
        "type": "array",
        "items": {
            "enum": [
                "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes",
                "MaxFailedIndexesExceeded", "PodFailurePolicy",
            ]
        },
    },
    targetReplicatedJobs={"type": "array", "items": _NAME},
)  # fmt: skip
JOBSET = _fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=_fields(
        ["name"], name=_NAME,
        annotations={"type": "object", "additionalProperties": {"type": "string"}},
    ),
    spec=_fields(
        ["replicatedJobs"],
        network=_fields(
            enableDNSHostnames={"type": "boolean"}, publishNotReadyAddresses={"type": "boolean"},
            subdomain=_NAME,
        ),
        failurePolicy=_fields(
            maxRestarts={"type": "integer", "minimum": 0},
            rules={"type": "array", "items": _RULE, "maxItems": 20},
        ),
        replicatedJobs={
            "type": "array", "minItems": 1,
            "items": _fields(
                ["name", "template"], name=_NAME, replicas={"type": "integer", "minimum": 1},
                template=_fields(["spec"], spec={"type": "object"}),
            ),
        },
    ),
)  # fmt: skip


def _jobset(text):
    """The manifest's JobSet, valid throughout, with its only job and that job's only container."""
    [manifest] = yaml.safe_load_all(text)
    jsonschema.validate(manifest, JOBSET)
    [replicated] = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    name = f"{manifest['metadata']['name']}-{replicated['name']}-0"
    kubernetes_validate.validate(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": job},
        KUBERNETES, strict=True,
    )  # fmt: skip
    [container] = job["template"]["spec"]["containers"]
    return manifest, job, container


@pytest.mark.parametrize("file", JOBSETS)
def test_jobsets_are_valid_and_restart_as_a_whole(file):
    """A cluster takes the manifest; a lost host restarts all: none can go on alone."""
    manifest, job, container = _jobset((LAUNCH / file).read_text())
    assert job["completions"] == job["parallelism"]
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    codes, condition = job["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"]["values"] == [endings.PREEMPTED]  # which does not count
    assert codes["onExitCodes"]["containerName"] == container["name"]
    assert codes["action"] == condition["action"] == "FailJob"
    [rule] = manifest["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert manifest["spec"]["network"]["enableDNSHostnames"]
    assert any(
        a.startswith("--workdir=gs://") for a in container["args"]
    )  # where all continue from


@pytest.mark.parametrize("old", ["maxRestarts", "backoffLimit", "nodeSelector", "resources"])
def test_a_mistyped_field_is_seen(old):
    """The validation itself: a misspelt field of a JobSet, a job, a pod or a container."""
    text = (LAUNCH / JOBSETS[0]).read_text().replace(f"{old}:", f"{old}x:")
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        _jobset(text)


def test_the_tpu_jobset_fills_its_slice():
    """Hosts times chips is the topology: GKE lets a pod wait forever where they differ."""
    _, job, container = _jobset((LAUNCH / "gke_jobset.yaml").read_text())
    selector = job["template"]["spec"]["nodeSelector"]
    shape = selector["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] * chips == math.prod(map(int, shape))


def test_the_gpu_jobset_names_its_coordinator():
    """The first pod, by the name JobSet gives it; as many processes as pods, each numbered."""
    manifest, job, container = _jobset((LAUNCH / "gke_jobset_gpu.yaml").read_text())
    flags = dict(a.removeprefix("--").split("=", 1) for a in container["args"])
    name, [replicated] = manifest["metadata"]["name"], manifest["spec"]["replicatedJobs"]
    assert flags["coordinator"].split(":")[0] == f"{name}-{replicated['name']}-0-0.{name}"
    assert int(flags["num_processes"]) == job["completions"]
    assert flags["process_id"] == "$(PROCESS_ID)"
    assert "PROCESS_ID" in [variable["name"] for variable in container["env"]]


# Requirements and the image.


@pytest.mark.parametrize("accelerator", ["gpu", "tpu"])
def test_requirements_of_accelerators_name_what_jax_offers(accelerator):
    """The package's own requirements and one extra that the installed JAX knows."""
    lines = (LAUNCH / f"requirements-{accelerator}.txt").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    included = [line.removeprefix("-r ") for line in lines if line.startswith("-r ")]
    assert [(LAUNCH / name).resolve() for name in included] == [ROOT / "requirements.txt"]
    wanted = {r.name: r for r in map(Requirement, lines[len(included) :])}
    offered = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    assert wanted["jax"].extras and wanted["jax"].extras <= set(offered)


def test_the_image_is_built_of_what_is_there():
    """Each file that is copied exists, as does the program it starts; hadolint agrees."""
    _lint("hadolint", LAUNCH / "Dockerfile")
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if re.match("[A-Z]+ ", line)]
    for copied in (step[1].split()[:-1] for step in steps if step[0] == "COPY"):
        assert all((ROOT / source).exists() for source in copied)
    of = dict(steps)
    assert (ROOT / of["ARG"].split("=")[1]).exists()
    assert ast.literal_eval(of["ENTRYPOINT"]) == ["python", "-m", "isara_jax.main"]
    assert of["USER"] not in ("0", "root")
