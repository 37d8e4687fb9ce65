"""Rows of the files that hold them, jsonl, JSON, CSV, TSV, parquet and Arrow, each with its place for messages."""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from nanochat import untrusted
from nanochat.errors import DataError
from nanochat.readers.columns import AGAIN, ARROW, COLUMN, PARQUET, choose_column, find_column, record_batches, schema_of, text_arrays
from nanochat.readers.files import File
from nanochat.readers.json_values import BLOCK, json_values
from nanochat.readers.parquet_pages import CELL_BYTES
from nanochat.readers.textfile import TEXT, Allowance, open_text
from nanochat.tokenizer.conversation import json_type

DELIMITERS = ",;\t|"
WRAPPERS = ("data", "rows", "items", "records", "examples")  # fields of an object that holds all rows of a JSON file
ROW_FIELDS = {COLUMN, "messages", "conversations", "instruction", "prompt"}  # of an object that is a row itself
LOOKED_AT = 100  # rows that say which field holds the text
NULL = "rows without text"
NAMING = "--data PATH:COLUMN"
_NUMBER = re.compile(r"[-+\d.,:eE%/ TZ]*")  # and dates
_MISSING = object()


def records(file: File, whole: Callable[[Any], bool] = lambda first: False, allowance: Allowance = TEXT) -> Iterator[tuple[str, Any]]:
    """(place, row) of each row of a file of rows. A JSON list whose first element `whole` says yes to is one row.

    Raises DataError if the file cannot be read, also midway.
    """
    if file.kind in (PARQUET, ARROW):
        yield from _table_rows(file)
        return
    with open_text(file, allowance, newline="" if file.kind in ("csv", "tsv") else None) as text:
        if file.kind in ("csv", "tsv"):
            yield from _csv_rows(file, text)
        elif file.kind == "jsonl":
            yield from _jsonl(file, text, whole)
        else:
            for where, value in json_values(text.read, str(file), whole):
                wrapper = value if isinstance(value, dict) and not ROW_FIELDS & value.keys() else {}
                rows = next((wrapper[key] for key in WRAPPERS if isinstance(wrapper.get(key), list)), None)
                yield from ((where, row) for row in rows) if rows else [(where, value)]


def _table_rows(file: File) -> Iterator[tuple[str, Any]]:
    import pyarrow

    number = 0
    try:
        for batch in record_batches(file.path, file.kind):
            if name := duplicate(batch.schema.names):
                raise DataError(f"{file} has two columns named {name!r}", "rename one of them, or leave it out")
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as {file.kind}: {untrusted.reason(error)}", AGAIN) from error


def _jsonl(file: File, text: TextIO, whole: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    """The value of each line that is not blank; read as other JSON where the first of them is none, or an array of rows."""
    head = ""
    while not head.strip() and (line := text.readline(BLOCK)):
        head += line
    try:
        first = untrusted.parse_json(head) if head.endswith("\n") else None
    except ValueError:
        first = None
    if not isinstance(first, dict) and not (isinstance(first, list) and first and whole(first[0])):
        yield from json_values(_after(head, text), str(file), whole)
        return
    # Not splitlines, which also ends lines at U+0085 and U+2028, within texts.
    lines = itertools.chain(io.StringIO(head, newline="\n"), iter(lambda: text.readline(CELL_BYTES + 1), ""))
    for number, line in enumerate(lines, 1):
        if len(line) > CELL_BYTES:
            raise DataError(f"{file}:{number} has more than {CELL_BYTES >> 20} MB", "divide it into documents, one on each line")
        if not line.strip():
            continue
        try:
            yield f"{file}:{number}", untrusted.parse_json(line)
        except ValueError as error:
            raise DataError(f"{file}:{number} is not JSON: {untrusted.reason(error)}", "write one JSON value on each line") from error


def _after(head: str, text: TextIO) -> Callable[[int], str]:
    """A reader of `head` and then of the rest of `text`."""
    parts = iter([head] if head else [])
    return lambda size: next(parts, "") or text.read(size)


def _csv_rows(file: File, text: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a table as text, by its header; one column without a header is `text`."""
    csv.field_size_limit(CELL_BYTES)
    head = text.readline(BLOCK)
    delimiter = "\t" if file.kind == "tsv" else max(DELIMITERS, key=head.count)
    rows = csv.reader(itertools.chain([head], iter(lambda: text.readline(CELL_BYTES + 1), "")), delimiter=delimiter)
    names: list[str] = []
    try:
        for row in rows:
            if not names:
                names = [name.strip().removeprefix("\ufeff") for name in row]
                if len(names) == 1 and (len(names[0]) > 40 or " " in names[0]):  # a text, not the name of a column
                    names = ["text"]
                else:
                    continue
            yield f"{file}:{rows.line_num}", dict(itertools.zip_longest(names, row[: len(names)]))
    except csv.Error as error:
        raise DataError(f"{file}:{rows.line_num} is not CSV: {error}", "write it again with its texts in quotes") from error


def duplicate(names: list[str]) -> str:
    """A name that comes twice, or ""."""
    return next((name for place, name in enumerate(names) if name in names[:place]), "")


def row_texts(file: File, named: str = "", left: Counter[str] | None = None) -> Iterator[str]:
    """The texts of a file of rows: of the column or field that is `named`, else of the one that is found; nulls are counted in `left`.

    Raises DataError if no column is one of text, or a row has another value than text in it.
    """
    left = Counter() if left is None else left
    if file.kind in (PARQUET, ARROW):
        column = table_column(file, named)
        for values in text_arrays(file.path, column, file.kind, str(file)):
            left[NULL] += values.null_count
            yield from values.drop_null().to_pylist()
        return
    rows = records(file)
    first = list(itertools.islice(rows, LOOKED_AT))
    column = _field_of_text(file, first, named)
    for where, row in itertools.chain(first, rows):
        value = row if isinstance(row, str) and not column else _value(where, row, column)
        if value is None:
            left[NULL] += 1
        elif isinstance(value, str):
            yield value
        else:
            raise DataError(f'{where}: "{column}" is a {json_type(value)}, not a string', "write the text as a JSON string")


def table_column(file: File, named: str = "") -> str:
    """The column of text of a parquet or Arrow file. Raises DataError."""
    import pyarrow

    try:
        return find_column(schema_of(file.path, file.kind), file, named, NAMING)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as {file.kind}: {untrusted.reason(error)}", AGAIN) from error


def _field_of_text(file: File, first: list[tuple[str, Any]], named: str) -> str:
    """The field that holds the text of the `first` rows; "" if the rows are texts. Raises DataError if none does."""
    if first and all(isinstance(row, str) for _, row in first) and not named:
        return ""
    where, row = next(((where, row) for where, row in first if row is not None), ("", {}))
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {json_type(row)} instead of an object", 'write each row as an object such as {"text": "..."}')
    strings = dict.fromkeys(name for _, row in first if isinstance(row, dict) for name, value in _leaves(row) if isinstance(value, str))
    names = [*strings, *(name for name in row if name not in strings and name in (named, COLUMN))]  # so that its value is looked at
    words = [
        name for name in strings if any(not _NUMBER.fullmatch(str(_at(row, name) or "0")) for _, row in first if isinstance(row, dict))
    ]
    if column := choose_column(names, named, words):
        return column
    fields = ", ".join(row) or "none"
    if named or not strings:
        raise DataError(f'{where} has no field "{named or COLUMN}" of text; its fields are: {fields}', f"name one of them: {NAMING}")
    raise DataError(f'{file}: which field holds the text? It has no "{COLUMN}"; its fields are: {fields}', f"name it: {NAMING}")


def _leaves(row: dict[str, Any], prefix: str = "", depth: int = 8) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict) and depth:
            yield from _leaves(value, f"{prefix}{name}.", depth - 1)
        else:
            yield prefix + name, value


def _at(row: Any, column: str) -> Any:
    """The value of a field, a.b for that of an object in it; _MISSING where there is none."""
    if isinstance(row, dict) and column in row:
        return row[column]
    for name in column.split("."):
        if row is None:
            return None
        row = row.get(name, _MISSING) if isinstance(row, dict) else _MISSING
    return row


def _value(where: str, row: Any, column: str) -> Any:
    """The value of a row's field, None for a null row. Raises DataError if it has none."""
    if row is None:
        return None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {json_type(row)} instead of an object", 'write each row as an object such as {"text": "..."}')
    value = _at(row, column)
    if value is _MISSING:
        raise DataError(
            f'{where} has no field "{column}"; its fields are: {", ".join(row) or "none"}', f"add it, or name another: {NAMING}"
        )
    return value
