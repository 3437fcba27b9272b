"""The rows of a parquet file as lines of JSON; run by `files.confined`, it imports nothing of ours.

A page of a kilobyte may unpack into two gigabytes, whatever the file says of it elsewhere.
"""

import json
import sys
from typing import Any

OTHER = "\0other"  # the only field of a value of another kind
_ROWS = 256  # decoded at once


def _other(value: Any) -> dict[str, list[str]]:
    """What JSON does not have, such as bytes and dates: its kind, and how it reads."""
    return {OTHER: [type(value).__name__, str(value)]}


def _print_rows(path: str, most: int) -> None:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    written = sys.stdout.write(json.dumps(file.schema_arrow.names) + "\n")
    for batch in file.iter_batches(_ROWS, use_threads=False):
        if batch.nbytes > most:
            raise MemoryError
        for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            written += sys.stdout.write(json.dumps(cells, default=_other) + "\n")
            if written > most:
                raise MemoryError


if __name__ == "__main__":
    _print_rows(sys.argv[1], int(sys.argv[2]))
