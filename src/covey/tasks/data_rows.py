"""Reading rows of questions from files and from the Hugging Face hub, each with the place that it stands at."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from covey.tasks.row_values import holds_half_character
from covey.types import CoveyError

Format = Literal["auto", "jsonl", "json", "parquet", "hub"]
FORMATS: tuple[Format, ...] = ("auto", "jsonl", "json", "parquet", "hub")

_FORMAT_OF_SUFFIX: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of the data."""

    where: str
    """File and line, for messages."""
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A row that no question can be made of, and why."""

    where: str
    reason: str


def read_rows(path: str, *, file_format: Format = "auto", config: str = "", split: str = "train") -> Iterator[Row | BadRow]:
    """Yield the rows of a file, or of a data set on the hub, in order. `config` and `split` are those of the hub.

    Raises:
        CoveyError: there is no such file, or it cannot be read at all.
    """
    if file_format == "hub":
        yield from hub_rows(path, config=config, split=split)
        return
    file = Path(path).expanduser()
    if not os.path.isfile(file):  # Path.is_file() raises where no file could be called so.
        raise CoveyError(f"there is no file {path!r}. For a data set of the Hugging Face hub, set task.format = 'hub'")
    chosen = format_of(file) if file_format == "auto" else file_format
    readers = {"jsonl": jsonl_rows, "json": json_rows, "parquet": parquet_rows}
    yield from readers[chosen](file)


def format_of(file: Path) -> Format:
    """Return the format that the file's name says.

    Raises:
        CoveyError: it says none that is known.
    """
    suffix = Path(file.name.removesuffix(".gz")).suffix
    if suffix not in _FORMAT_OF_SUFFIX:
        known = ", ".join(_FORMAT_OF_SUFFIX)
        raise CoveyError(f"{file} ends in none of {known}; set task.format to one of {', '.join(FORMATS[1:])}")
    return _FORMAT_OF_SUFFIX[suffix]


def content_of(file: Path) -> bytes:
    """Return what is in the file, unpacked if its name ends in .gz.

    Raises:
        CoveyError: it is no gzip file, though its name says so.
    """
    content = file.read_bytes()
    if file.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise CoveyError(f"{file} cannot be unpacked ({error}); fetch it again") from error


def jsonl_rows(file: Path) -> Iterator[Row | BadRow]:
    """Yield one row for each line with an object of JSON; blank lines are passed over."""
    for number, line in enumerate(content_of(file).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield BadRow(where=where, reason=f"it is not UTF-8 (byte {error.start + 1} of the line)")
        except (ValueError, RecursionError) as error:
            yield BadRow(where=where, reason=f"it is not JSON ({error})")
        else:
            yield as_row(where, values)


def json_rows(file: Path) -> Iterator[Row | BadRow]:
    """Yield one row for each object of a list, with the line that it starts on.

    Raises:
        CoveyError: the file is no list, or broken: what stands behind the broken place cannot be read.
    """
    try:
        text = content_of(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CoveyError(f"{file} is not UTF-8 (byte {error.start + 1}); write it as UTF-8") from error
    position = _after_blanks(text, 0)
    if text[position : position + 1] != "[":
        raise CoveyError(f"{file} is no list of rows: it must start with '['. One object a line is task.format = 'jsonl'")
    decoder = json.JSONDecoder()
    position, line, counted = _after_blanks(text, position + 1), 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            values, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise CoveyError(f"{file}:{line}: it is not JSON ({error}); mend it there") from error
        yield as_row(f"{file}:{line}", values)
        position = _after_blanks(text, position)
        if text[position : position + 1] == ",":
            position = _after_blanks(text, position + 1)
        elif text[position : position + 1] != "]":
            raise CoveyError(f"{file}:{line}: behind this row stands neither ',' nor ']'; mend it there")


def parquet_rows(file: Path) -> Iterator[Row | BadRow]:
    """Yield the rows of a Parquet file, numbered from 1.

    Raises:
        CoveyError: it is no Parquet file.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        number = 0
        for batch in table.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield as_row(f"{file}, row {number}", values)
    except pyarrow.ArrowException as error:
        raise CoveyError(f"{file} cannot be read as Parquet ({error})") from error


def hub_rows(path: str, *, config: str, split: str) -> Iterator[Row | BadRow]:
    """Yield the rows of one split of a data set on the Hugging Face hub, numbered from 1.

    Raises:
        CoveyError: the package `datasets` is not installed.
    """
    try:
        import datasets  # ty: ignore[import-not-found]
    except ImportError as error:
        raise CoveyError(
            f"task.format='hub' reads {path!r} with the package datasets, which is not installed: pip install 'covey[data]'. "
            "Or give a JSONL, JSON or Parquet file"
        ) from error
    for number, values in enumerate(datasets.load_dataset(path, config or None, split=split), start=1):
        yield as_row(f"{path}[{split}], row {number}", values)


def as_row(where: str, values: object) -> Row | BadRow:
    """Return the row if its values are an object."""
    if not isinstance(values, Mapping):
        return BadRow(where=where, reason=f"it is no object with columns but {str(values)[:40]!r}")
    if holds_half_character(values):
        return BadRow(where=where, reason="it holds half a character (an escape from \\ud800 to \\udfff that stands alone)")
    return Row(where=where, values={str(name): value for name, value in values.items()})


def _after_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
