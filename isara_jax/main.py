"""The command: `python -m isara_jax.main --config=configs/safety.py --workdir=runs/safety`.

Of several processes that are one run, each is started with the same flags. Those below are needed
where no launcher says who they are.
"""

from isara_jax.shell import command  # isort: skip, sets the environment of what follows

from absl import flags
from ml_collections import config_flags

from isara_jax import config
from isara_jax.devices import compilation_cache, mesh, processes
from isara_jax.host import memory, run
from isara_jax.shell import endings

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything the run writes.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port at which the other processes reach the first; it listens there."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes there are; 1: this one alone.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "The number of this process, from 0.", lower_bound=0
)
_GRACE_SECONDS = flags.DEFINE_float(
    "grace_seconds", endings.GRACE_SECONDS,
    "How long SIGTERM waits for what can be saved; whoever sends it should kill 5 s later.",
    lower_bound=0,
)  # fmt: skip


def align() -> None:
    """Aligns a model as the flags say."""
    endings.grant(_GRACE_SECONDS.value)
    with processes.joined(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value):
        mesh.check_platforms()
        resolved = config.resolve(_CONFIG.value)
        if resolved.compilation_cache:
            compilation_cache.keep_compiled_programs()
        memory.with_less(lambda c: run.run(c, _WORKDIR.value), resolved)


main = command.of(align, needs=("config", "workdir"))

if __name__ == "__main__":
    command.run(main)
