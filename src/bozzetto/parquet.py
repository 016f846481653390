"""Parquet: the columns of a file, refused if they unfold to far more than the file holds."""

from pathlib import Path
from typing import Any

__all__ = ["read_columns"]

_LEAST, _FOLDS = 32 << 20, 50  # bytes that any file may unfold to; times its own size beyond
_ROWS = 256  # read at a time: as a dictionary, one value may stand in every row


def read_columns(path: Path, columns: list[str]) -> Any:
    """Columns as a `pyarrow.Table`.

    Raises:
        ValueError: if they take more than 32 MiB and 50 times the file's size.
        OSError, pyarrow.ArrowException: if the file is damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    limit, taken, batches = _LEAST + _FOLDS * path.stat().st_size, 0, []
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
            batches.append(batch)
            if (taken := taken + batch.nbytes) > limit:
                raise ValueError(f"{path} unfolds to more than {limit} bytes")
        names = file.schema_arrow
        schema = pa.schema([names.field(name) for name in columns])
    return pa.Table.from_batches(batches, None if batches else schema)
