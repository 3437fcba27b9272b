"""A domain's rows as a TFDS data set, written and read without TensorFlow."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds
from absl import logging

from isara_jax.files import storage
from isara_jax.tasks.base import Item, Pair

Row = dict[str, str]
# One layout for both splits, as TFDS wants it: a seed has no kind and no topic.
COLUMNS = ("question", "answer", "kind", "topic")


class IsaraTask(tfds.core.GeneratorBasedBuilder):
    """Questions with answers: the splits `seeds` and `held_out`."""

    VERSION = tfds.core.Version("1.0.0")
    # No checksums lie beside this file. TFDS 4.9.10 would look for them with importlib_resources,
    # on which it forgets to depend (https://github.com/tensorflow/datasets/issues/11212).
    code_path = None

    def __init__(self, splits: dict[str, list[Row]], data_dir: pathlib.Path) -> None:
        self._splits = splits
        # array_record: TFDS writes and reads it without TensorFlow.
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({c: tfds.features.Text() for c in COLUMNS}),
            disable_shuffling=True,  # any prefix of the items is a fair sample: keep their order
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Row]]]:
        # TFDS refuses empty splits; own seeds may come without held-out ones.
        return {name: self._generate_examples(rows) for name, rows in self._splits.items() if rows}

    def _generate_examples(self, rows: list[Row]) -> Iterator[tuple[int, Row]]:
        yield from enumerate(rows)


def materialize(
    seeds: Sequence[Pair], items: Sequence[Item], data_dir: pathlib.Path
) -> tuple[tuple[Pair, ...], tuple[Item, ...]]:
    """Writes the rows below `data_dir`, unless they are there already, and reads them back.

    The folder is named by a hash of the rows, because TFDS would return the old rows where the
    source has changed under the same folder. It appears whole or not at all, so that crashes and
    simultaneous runs do no harm.

    Raises:
      RuntimeError: the folder exists and holds something else, so it was damaged.
    """
    splits = {
        "seeds": [Row(question=s.question, answer=s.answer, kind="", topic="") for s in seeds],
        "held_out": [
            Row(question=i.question, answer=i.reference, kind=i.kind, topic=i.topic) for i in items
        ],
    }
    digest = hashlib.sha256(json.dumps(splits).encode()).hexdigest()
    folder = pathlib.Path(data_dir) / digest[:16]
    with _quiet():
        if not folder.exists():
            _write(splits, folder)
        stored = _read(folder)
    if stored != splits:
        raise RuntimeError(
            f"{folder}: holds other rows than were written there; delete the folder and run again"
        )
    return (
        tuple(Pair(row["question"], row["answer"]) for row in stored["seeds"]),
        tuple(Item(r["question"], r["answer"], r["kind"], r["topic"]) for r in stored["held_out"]),
    )


def _write(splits: dict[str, list[Row]], folder: pathlib.Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, because a rename is atomic within one file system only.
    with storage.scratch(folder.parent, ".incomplete-") as temporary:
        builder = IsaraTask(splits, temporary)
        builder.download_and_prepare()
        try:
            os.replace(builder.data_dir, folder)  # noqa: PTH105, the atomic one by name
        except OSError:
            if not folder.is_dir():  # else another process has written the same rows meanwhile
                raise


def _read(folder: pathlib.Path) -> dict[str, list[Row]]:
    builder = tfds.builder_from_directory(folder)
    splits: dict[str, list[Row]] = {"seeds": [], "held_out": []}
    for name in builder.info.splits:
        for row in builder.as_data_source(name):
            splits[name].append({column: row[column].decode() for column in COLUMNS})
    return splits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's progress bars, prints and log lines from whoever reads our terminal."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
