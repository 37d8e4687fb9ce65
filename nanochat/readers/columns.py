"""The text column of a parquet or Arrow file: which one it is, and its texts as UTF-8 strings in bounded batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nanochat import untrusted
from nanochat.errors import DataError
from nanochat.readers.parquet_pages import CELL_BYTES, is_bomb, open_parquet, rows_at_once

COLUMN = "text"
USUAL_COLUMNS = ("content", "raw_content", "markdown", "document", "body", "article")  # where there is no `text`
ROW_GROUP = 1000  # documents read or written at once
PARQUET, ARROW = "parquet", "arrow"
AGAIN = "copy it again from where it came, or leave it out"


def string_columns(schema: Any) -> list[str]:
    """Columns of text, fields of structs as a.b: strings of every kind, and bytes that may be UTF-8 where there is no string."""
    import pyarrow.types as types

    strings, binaries = [], []

    def visit(fields: Any, prefix: str) -> None:
        for field in fields:
            kind = field.type.value_type if types.is_dictionary(field.type) else field.type
            if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
                strings.append(prefix + field.name)
            elif types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
                binaries.append(prefix + field.name)
            elif types.is_struct(kind):
                visit(kind, f"{prefix}{field.name}.")

    visit(schema, "")
    return strings or binaries


def choose_column(names: list[str], named: str = "", only: list[str] | None = None) -> str:
    """Which of `names` holds the text: the one that is `named`, else `text`, a usual name, the only one (of `only`); or ""."""
    if named:
        return named if named in names else ""
    usual = [name for name in (COLUMN, *USUAL_COLUMNS) if name in names]
    nested = [name for name in names if name.endswith(f".{COLUMN}")]
    rest = [name for name in (names if only is None else only) if "." not in name]
    found = usual[:1] or nested or rest
    return found[0] if len(found) == 1 else ""


def find_column(schema: Any, path: Any, named: str = "", naming: str = "--dataset hf:OWNER/NAME:COLUMN") -> str:
    """The column that holds the text, see `choose_column`. Raises DataError if none does, or two have its name."""
    strings = string_columns(schema)
    column = choose_column(strings, named)
    if not column and named:
        if named in schema.names:
            raise DataError(
                f"the column {named!r} of {path} is of type {schema.field(named).type}, not string", "name a column that holds text"
            )
        raise DataError(f"{path} has no column {named!r}; its columns are: {', '.join(schema.names)}", f"name one of them: {naming}")
    if not column:
        raise DataError(
            f"{path}: which column holds the text? It has no {COLUMN!r}; its columns are: {', '.join(schema.names) or 'none'}",
            f"name it: {naming}",
        )
    if schema.names.count(column.partition(".")[0]) > 1:
        raise DataError(f"{path} has two columns named {column.partition('.')[0]!r}", "rename one of them, or leave it out")
    return column


def text_arrays(path: Path, column: str, kind: str = PARQUET, name: str = "", hint: str = AGAIN) -> Iterator[Any]:
    """The texts of `column` as pyarrow string arrays, nulls included, some ROW_GROUP at a time.

    name: of the file in messages. Raises DataError if the file cannot be read, is made to fill a memory, or holds no UTF-8.
    """
    import pyarrow

    name = name or str(path)
    row = total = 0
    try:
        find_column(schema_of(path, kind), name, column)
        for batch in record_batches(path, kind, [column]):
            values = _as_text(_field(batch, column))
            total += _check_cells(values, name, row)
            if is_bomb(total, path.stat().st_size):
                raise DataError(
                    f"{name} unpacks to more than {total:,} bytes by row {row + 1}", "leave it out, because it would fill the disk"
                )
            row += len(values)
            values.validate(full=True)
            yield values
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name} cannot be read as {kind}: {untrusted.reason(error)}", hint) from error


def record_batches(path: Path, kind: str, columns: list[str] | None = None, rows: int = ROW_GROUP) -> Iterator[Any]:
    """Batches of a parquet or Arrow file, `rows` rows at most. Raises DataError for a bomb, and what pyarrow raises."""
    if kind == PARQUET:
        with open_parquet(path) as file:
            most = rows_at_once(file, path, rows, columns[0] if columns else None)
            yield from file.iter_batches(batch_size=most, columns=columns, use_threads=False)
        return
    with _open_arrow(path) as reader:
        for batch in _arrow_batches(reader):
            yield from (batch.slice(start, rows) for start in range(0, len(batch), rows))


def schema_of(path: Path, kind: str) -> Any:
    """The schema of a parquet or Arrow file. Raises what pyarrow raises."""
    import pyarrow.parquet

    if kind == PARQUET:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.schema_arrow
    with _open_arrow(path) as reader:
        return reader.schema


def _open_arrow(path: Path) -> Any:
    """A reader of an Arrow file (Feather) or stream (what `save_to_disk` of datasets writes), memory-mapped."""
    import pyarrow.ipc

    mapped = pyarrow.memory_map(str(path))
    return pyarrow.ipc.open_file(mapped) if mapped.read(6) == b"ARROW1" else (mapped.seek(0), pyarrow.ipc.open_stream(mapped))[1]


def _arrow_batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(index) for index in range(reader.num_record_batches))
    return iter(reader)


def _field(batch: Any, column: str) -> Any:
    """The column of a batch, or the field a.b of its struct a; null where the struct is."""
    import pyarrow.compute

    if column in batch.schema.names:
        return batch.column(batch.schema.names.index(column))
    top, _, rest = column.partition(".")
    return pyarrow.compute.struct_field(batch.column(batch.schema.names.index(top)), rest.split("."))


def _as_text(values: Any) -> Any:
    """Strings of any kind as pyarrow's plain ones: dictionaries looked up, views and bytes cast."""
    import pyarrow
    import pyarrow.types as types

    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if types.is_string(values.type) or types.is_large_string(values.type):
        return values
    return values.cast(pyarrow.large_string())


def _check_cells(values: Any, name: str, row: int) -> int:
    """The bytes of a batch's texts, which begins after row `row`. Raises DataError if one is larger than any text."""
    import pyarrow.compute

    lengths = pyarrow.compute.binary_length(values).to_numpy(zero_copy_only=False)
    if len(lengths) and np.nanmax(lengths, initial=0) > CELL_BYTES:
        place = int(np.nanargmax(lengths))
        raise DataError(
            f"{name}, row {row + place + 1}: a text of more than {CELL_BYTES >> 20} MB", "divide it into documents, or leave it out"
        )
    return int(np.nansum(lengths))
