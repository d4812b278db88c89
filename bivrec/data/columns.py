"""Reading named columns of CSV, TSV, Parquet and JSON-lines files, and of folders of them (Spark's output).

Ids and texts come as strings, timestamps as int64. Rows are counted from 1; the header of a CSV file is row 1.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from bivrec.data.times import DATES, EXPECTED_TIME, SECONDS, alike, integers, read_numbers, read_times
from bivrec.errors import BivrecError

# Ids repeat, so they are held as codes into a dictionary: 25M strings would not fit the memory that their codes need.
ID = pa.dictionary(pa.int32(), pa.string())
TEXT = pa.string()
TIME = pa.int64()
INTEGER = pa.int32()
NUMBER = pa.float64()
BITS = {TIME: 63, INTEGER: 31, NUMBER: 53}
"""Of the greatest value, without its sign."""
EXPECTED = {
    ID: "an id (a string or an integer)",
    TIME: EXPECTED_TIME,
    INTEGER: "an integer",
    NUMBER: "a number",
    TEXT: "a string, an integer, or a list of strings",
}

RECBOLE = (".inter", ".item")
"""Suffixes of RecBole's files, whose header has the type of a column behind its name: `user_id:token`."""
DELIMITERS = {".csv": ",", ".tsv": "\t", **dict.fromkeys(RECBOLE, "\t")}
PARQUET = ".parquet"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".bz2", ".xz", ".zst")
ROWS_PER_CHUNK = 100_000
LONGEST_ROW = 1 << 24
"""Bytes of a row of a delimited file that can be read, a picture in a description included."""
UNKNOWN = ("", "NULL", "null", "NaN", "nan", "None", "<NA>", "N/A", "n/a", "#N/A", "\\N")
"""What databases and data frames write into delimited files for a value that is not there."""


def read_columns(
    path: Path, required: Mapping[str, pa.DataType], optional: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """The required columns and those of the optional ones that there are.

    Only texts may be empty; one that is a list, as of categories, is its strings, one after the other. A timestamp is
    an integer, which is kept, or seconds with a fraction, or a date, of such a type or as text of ISO 8601. Dates
    become seconds since 1970, UTC. Where any date or number of the column has a fraction of a second, in whatever part,
    all its times become microseconds since 1970.
    Raises BivrecError if a file cannot be read, a required column is missing, a value is of the wrong kind, or some
    timestamps are dates and some numbers.
    """
    types = {**required, **(optional or {})}
    paths = parts_of(path)
    parts = [_read_part(part, required, optional or {}) for part in paths]
    names = [name for name in types if any(name in part.column_names for part in parts)]
    parts = [_completed(part, names, types, path) for part, path in zip(parts, paths, strict=True)]
    table = _stacked(parts, types, [str(path) for path in paths])
    return _with_integers(table, types).unify_dictionaries()


def column_names(path: Path) -> list[str]:
    """The columns of a file (of a folder: of its first part), for JSON lines the keys of the first object."""
    path = parts_of(path)[0]
    kind = kind_of(path)
    if kind in DELIMITERS:
        return [name for name, _ in _header(path, _fields(path, DELIMITERS[kind]))]
    if kind == PARQUET:
        with _faults_of(path):
            return list(pq.read_schema(path).names)
    if kind in JSON_SUFFIXES:
        return list(next((values for _, values in read_json_lines(path)), {}))
    raise _unknown_format(path)


def strings(values: Iterable[Any]) -> pa.Array:
    """What is not None as a string; halves of an emoji, which JSON of titles that were cut holds, become `?`."""
    texts = [None if value is None else str(value) for value in values]
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        return pa.array([text and text.encode("utf-8", "replace").decode() for text in texts], pa.string())


def kind_of(path: Path) -> str:
    """The suffix that tells the format, without the .gz of a compressed file."""
    return Path(path.stem).suffix.lower() if _is_gzip(path) else path.suffix.lower()


def read_json_lines(path: Path, parse: Callable[[str], Any] = json.loads) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row, object) for every line of a file, gzip-compressed if it ends in .gz; blank lines are skipped."""
    row, opened = 0, gzip.open if _is_gzip(path) else open
    try:
        # -sig: without the mark that programs of Windows put first.
        with opened(path, "rt", encoding="utf-8-sig") as lines:
            for row, line in enumerate(lines, 1):
                if line.isspace():
                    continue
                if row == 1 and line.lstrip().startswith("["):
                    raise BivrecError(f"{path}: a JSON array; write one object a line, as pandas does with lines=True")
                value = parse(line)
                if not isinstance(value, dict):
                    raise BivrecError(f"{path}: row {row}: expected one JSON object a line, found {_short(line)}")
                yield row, value
    except FileNotFoundError:
        raise _missing(path) from None
    # zlib, gzip and EOFError: what damaged and truncated archives raise.
    except (OSError, EOFError, zlib.error) as fault:
        raise BivrecError(f"{path}: after row {row}: cannot be read ({fault}); fetch the file again") from None
    except UnicodeDecodeError as fault:
        raise BivrecError(f"{path}: after row {row}: not UTF-8 ({fault.reason}); convert the file") from None
    # A Python literal that is damaged or nested too deeply raises any of these.
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as fault:
        raise BivrecError(f"{path}: row {row}: not valid JSON ({fault}); mend or remove the line") from None


def parts_of(path: Path) -> list[Path]:
    """The file itself, or the parts in a folder, by name. Raises BivrecError if the folder has other things in it."""
    if not path.is_dir():
        return [path]
    if (path / "_delta_log").exists():
        raise BivrecError(f"{path}: a Delta table, whose files hold deleted rows too; write it as plain Parquet")
    # Spark writes _SUCCESS and hidden checksum files beside the parts, and empty ones for empty partitions.
    parts = sorted(part for part in path.iterdir() if part.name[0] not in "._")
    if folders := [part for part in parts if part.is_dir()]:
        raise BivrecError(
            f"{path}: has a folder in it, {folders[0].name}; expected parts such as part-00000.parquet alone: "
            "write it without partitions, or give one of the folders"
        )
    if not parts:
        raise BivrecError(f"{path}: no files in the folder; expected parts such as part-00000.parquet")
    return [part for part in parts if part.stat().st_size] or parts[:1]


def _completed(part: pa.Table, names: Sequence[str], types: Mapping[str, pa.DataType], path: Path) -> pa.Table:
    """A part with these columns, empty where it has none of the name: as texts may be."""
    for name in [name for name in names if name not in part.column_names]:
        if types[name] != TEXT:
            raise BivrecError(f"{path}: no column '{name}', which other parts of the folder have; write all alike")
        part = part.append_column(name, pa.nulls(len(part), TEXT))
    return part.select(names)


def _read_part(path: Path, required: Mapping[str, pa.DataType], optional: Mapping[str, pa.DataType]) -> pa.Table:
    kind, types = kind_of(path), {**required, **optional}
    if kind in DELIMITERS:
        return _read_delimited(path, types, tuple(required), DELIMITERS[kind], names=None, stream=None)
    if kind == PARQUET:
        return _read_parquet(path, types, tuple(required))
    if kind in JSON_SUFFIXES:
        return _read_json(path, types, tuple(required))
    raise _unknown_format(path)


def read_delimited(
    path: Path,
    types: Mapping[str, pa.DataType],
    *,
    required: Sequence[str],
    delimiter: str,
    names: Sequence[str] | None = None,
    stream: IO[bytes] | None = None,
) -> pa.Table:
    """The columns of `types` that a delimited file has; `names` are those of a file without a header.

    stream: the content of such a file, where it is to be read from elsewhere than `path`.
    Raises BivrecError as `read_columns` does.
    """
    return _with_integers(_read_delimited(path, types, required, delimiter, names, stream), types)


def _read_delimited(
    path: Path,
    types: Mapping[str, pa.DataType],
    required: Sequence[str],
    delimiter: str,
    names: Sequence[str] | None,
    stream: IO[bytes] | None,
) -> pa.Table:
    read = _counting_rows(names)
    if names:
        parse = pa_csv.ParseOptions(delimiter=delimiter, quote_char=False)
        written = {name: name for name in names}
    else:
        parse = _fields(path, delimiter)
        header = _header(path, parse)
        _check_columns(path, types, required, [name for name, _ in header])
        written = dict(header)
        types = {name: kind for name, kind in types.items() if name in written}

    def table_of(types: Mapping[str, pa.DataType]) -> pa.Table:
        convert = pa_csv.ConvertOptions(
            include_columns=[written[name] for name in types],
            column_types={written[name]: kind for name, kind in types.items()},
            null_values=UNKNOWN,
            strings_can_be_null=True,
        )
        table = pa_csv.read_csv(
            stream or _opened(path), read_options=read, parse_options=parse, convert_options=convert
        )
        return table.rename_columns(list(types))

    with _faults_of(path):
        try:
            table = table_of(types)
        except pa.ArrowInvalid:
            # The files without a header are those of public sets, whose times are known to be integers.
            if names or TIME not in types.values():
                raise
            # Perhaps times are dates. Integers, as most are, are read several times faster as such.
            table = table_of({name: TEXT if kind == TIME else kind for name, kind in types.items()})
    return _checked(path, table, types, first_row=1 if names else 2)


def _read_parquet(path: Path, types: Mapping[str, pa.DataType], required: Sequence[str]) -> pa.Table:
    with _faults_of(path):
        found = pq.read_schema(path)
    _check_columns(path, types, required, found.names)
    types = {name: kind for name, kind in types.items() if name in found.names}
    strings = [name for name, kind in types.items() if kind == ID and pa.types.is_string(found.field(name).type)]
    with _faults_of(path), pq.ParquetFile(path, read_dictionary=strings) as file:
        table = file.read(columns=list(types))
    return _checked(path, table, types, first_row=1)


def _read_json(path: Path, types: Mapping[str, pa.DataType], required: Sequence[str]) -> pa.Table:
    chunks, places = [], []
    rows = read_json_lines(path)
    while block := list(islice(rows, ROWS_PER_CHUNK)):
        for row, values in block:
            if missing := [name for name in required if name not in values]:
                raise BivrecError(f"{path}: row {row}: no {_quoted(missing)}; found {_quoted(values)}")
            for name, kind in types.items():
                if kind != TEXT and name in required and values[name] in (None, ""):
                    raise _empty(path, row, name, kind)
                if not _fits(values.get(name), kind):
                    raise BivrecError(
                        f"{path}: row {row}: {name} {_short(values[name])}: expected {EXPECTED[kind]}; mend the row"
                    )
        numbers = [row for row, _ in block]
        columns = [
            _json_column([values.get(name) for _, values in block], kind, partial(_place, path, name, numbers))
            for name, kind in types.items()
        ]
        chunks.append(pa.table(columns, names=list(types)))
        places.append(f"{path}: row {numbers[0]}")
    if not chunks:
        raise BivrecError(f"{path}: the file is empty")
    table = _stacked(chunks, types, places)
    # An id or a timestamp must not be empty, but an optional one may be absent from every row.
    absent = {name for name, kind in types.items() if kind != TEXT and table[name].null_count == len(table)}
    types = {name: kind for name, kind in types.items() if name in required or name not in absent}
    return _checked(path, table, types, first_row=1)


def _json_column(values: list[Any], kind: pa.DataType, where: Callable[[int], str]) -> pa.Array | pa.ChunkedArray:
    if kind == TIME:
        return _json_times(values, where)
    if kind in (INTEGER, NUMBER):
        return pa.array(values, kind)
    return strings(values).dictionary_encode() if kind == ID else strings(map(_one_text, values))


def _json_times(values: list[Any], where: Callable[[int], str]) -> pa.ChunkedArray:
    # As floats, large integers would lose digits.
    values = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    if any(isinstance(value, str) for value in values):
        return read_times(pa.chunked_array([strings(values)]), where)
    if any(isinstance(value, float) for value in values):
        return read_numbers(pa.chunked_array([pa.array(map(_as_float, values), pa.float64())]), where)
    return pa.chunked_array([pa.array(values, TIME)])


def _as_float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _fits(value: Any, kind: pa.DataType) -> bool:
    if value is None:
        return True
    if kind == TIME and isinstance(value, float):
        # NaN is less than nothing.
        return abs(value) < 2.0**63
    if isinstance(value, bool) or (isinstance(value, int) and kind in BITS and value.bit_length() > BITS[kind]):
        return False
    if isinstance(value, list):
        return kind == TEXT and all(part is None or isinstance(part, str) for part in value)
    return isinstance(value, {ID: int | str, TIME: int | str, TEXT: int | str, INTEGER: int, NUMBER: int | float}[kind])


def _one_text(value: Any) -> Any:
    """A list of strings as a text."""
    return ". ".join(part for part in value if part and not part.isspace()) if isinstance(value, list) else value


def _stacked(tables: Sequence[pa.Table], types: Mapping[str, pa.DataType], places: Sequence[str]) -> pa.Table:
    """The tables, which `places` name, as one; timestamps may be of either type of `times` in each of them."""
    for name in [name for name in tables[0].column_names if types[name] == TIME]:
        times = alike([table[name] for table in tables], [f"{place}: {name}" for place in places])
        tables = [_with_column(table, name, column) for table, column in zip(tables, times, strict=True)]
    return pa.concat_tables(tables)


def _with_integers(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """The table with integers for all timestamps, once it holds all parts."""
    for name in [name for name in table.column_names if types[name] == TIME]:
        table = _with_column(table, name, integers(table[name]))
    return table


def _with_column(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _checked(path: Path, table: pa.Table, types: Mapping[str, pa.DataType], first_row: int) -> pa.Table:
    """`table` in the wanted types (timestamps in one of `times`), once ids and timestamps are known to be complete."""
    columns = []
    for name, kind in types.items():
        column = table[name]
        if pa.types.is_string_view(column.type):
            # Arrow makes no dictionary of it, and trims none.
            column = column.cast(pa.large_string())
        if kind != ID and pa.types.is_dictionary(column.type):
            # Categories of pandas.
            column = column.cast(column.type.value_type)
        if kind == NUMBER and pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        if kind != TEXT and column.null_count:
            row = pc.index(column.is_null(), True).as_py() + first_row
            raise _empty(path, row, name, kind, column.null_count)
        if kind == TIME and (_is_text(column.type) or pa.types.is_floating(column.type)):
            read = read_times if _is_text(column.type) else read_numbers
            columns.append(read(column, partial(_place, path, name, range(first_row, first_row + len(column)))))
            continue
        with _faults_of(path):
            cast = _cast(column, kind, f"{path}: column '{name}'")
        if kind == ID and (row := _first_empty(cast)) is not None:
            raise _empty(path, row + first_row, name, kind)
        columns.append(cast)
    return pa.table(columns, names=list(types))


def _empty(path: Path, row: int, name: str, kind: pa.DataType, count: int = 1) -> BivrecError:
    rows = "the row" if count == 1 else f"the {count:,} rows that are like it"
    return BivrecError(f"{path}: row {row}: {name} is empty: expected {EXPECTED[kind]}; mend or remove {rows}")


def _first_empty(ids: pa.ChunkedArray) -> int | None:
    """Place of the first empty string of dictionaries; a file that knows nulls may hold it for what is not known."""
    first = 0
    for chunk in ids.chunks:
        code = pc.index(chunk.dictionary, "").as_py()
        if code >= 0 and (place := pc.index(chunk.indices, code).as_py()) >= 0:
            return int(first + place)
        first += len(chunk)
    return None


def _cast(column: pa.ChunkedArray, kind: pa.DataType, where: str) -> pa.ChunkedArray:
    found = column.type
    if found == kind or pa.types.is_null(found):
        return column.cast(kind)
    if kind == TEXT and column.null_count == len(column):
        # As pandas writes a column without a value: of floats.
        return pa.chunked_array([pa.nulls(len(column), TEXT)])
    is_text = _is_text(found)
    if kind == TIME and found == SECONDS:
        return column
    if kind == TIME and (pa.types.is_timestamp(found) or pa.types.is_date(found)):
        # Nanoseconds are cut off.
        return column.cast(DATES, safe=pa.types.is_date(found) or found.unit != "ns")
    if kind in (TIME, INTEGER, NUMBER) and pa.types.is_integer(found):
        return column.cast(kind)
    if kind == NUMBER and (pa.types.is_floating(found) or pa.types.is_decimal(found)):
        return column.cast(kind)
    if kind == ID and (is_text or pa.types.is_integer(found)):
        return column.dictionary_encode().cast(ID)
    if kind == ID and pa.types.is_decimal(found) and found.scale == 0:
        return column.cast(pa.string()).dictionary_encode()
    if kind == TEXT and pa.types.is_integer(found):
        return column.cast(TEXT)
    if kind == TEXT and (pa.types.is_list(found) or pa.types.is_large_list(found)) and _is_text(found.value_type):
        return pa.chunked_array([strings(map(_one_text, column.to_pylist()))])
    if (kind == ID and pa.types.is_dictionary(found)) or (kind == TEXT and is_text):
        return column.cast(kind)
    raise BivrecError(f"{where} is of type {found}: expected {EXPECTED[kind]}; convert the column")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _place(path: Path, name: str, rows: Sequence[int], place: int) -> str:
    return f"{path}: row {rows[place]}: {name}"


def _check_columns(path: Path, wanted: Iterable[str], required: Sequence[str], found: Sequence[str]) -> None:
    if twice := [name for name in wanted if found.count(name) > 1]:
        raise BivrecError(f"{path}: more than one column is called {_quoted(twice)}; rename all but the right one")
    if missing := [name for name in required if name not in found]:
        expected = DELIMITERS.get(kind_of(path))
        if expected and len(found) == 1 and (others := [mark for mark in ";\t|," if mark in found[0]]):
            raise BivrecError(
                f"{path}: the columns are separated by {others[0]!r}, but {expected!r} is expected of "
                f"{kind_of(path)}; convert the file"
            )
        raise BivrecError(
            f"{path}: no column {_quoted(missing)}; found {_quoted(found)}; rename the columns, or name them by "
            "the options, where there are some"
        )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _short(value: object) -> str:
    text = str(value).strip()
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _counting_rows(names: Sequence[str] | None = None) -> pa_csv.ReadOptions:
    """Arrow only counts rows, and names them in its errors, when it reads in one thread."""
    return pa_csv.ReadOptions(use_threads=False, block_size=LONGEST_ROW, column_names=names)


def _header(path: Path, parse: pa_csv.ParseOptions) -> list[tuple[str, str]]:
    """The name of each column, and how the file writes it."""
    with (
        _faults_of(path),
        pa_csv.open_csv(_opened(path), read_options=_counting_rows(), parse_options=parse) as reader,
    ):
        written = list(reader.schema.names)
    is_typed = kind_of(path) in RECBOLE
    return [(name.rpartition(":")[0] or name if is_typed else name, name) for name in written]


def _fields(path: Path, delimiter: str) -> pa_csv.ParseOptions:
    """How a file with a header tells its fields apart: CSV quotes them where it has to, of TSV it depends on who wrote
    it, and where quotes are letters, all rows between two of them would be read as one field."""
    with _faults_of(path):
        _refuse_utf16(path)
        quotes = delimiter != "\t" or _quotes_are_marks(path)
    return pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=quotes, quote_char='"' if quotes else False)


def _quotes_are_marks(path: Path) -> bool:
    """Whether what begins with a quote in a TSV ends with one, everywhere."""
    with _opened(path) as stream:
        while block := stream.read(LONGEST_ROW):
            if b'"' in block:
                break
        else:
            return False
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", errors="replace", newline="") as lines:
        try:
            # A field that is longer than csv takes is none that anybody quoted.
            for _ in csv.reader(lines, delimiter="\t", strict=True):
                pass
        except csv.Error:
            return False
    return True


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _opened(path: Path) -> pa.NativeFile:
    # Arrow itself knows .gz, but not .GZ.
    return pa.input_stream(str(path), compression="gzip" if _is_gzip(path) else None)


def _refuse_utf16(path: Path) -> None:
    """Raise BivrecError if a file begins like one of UTF-16, of which Arrow makes a single column."""
    with _opened(path) as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise BivrecError(f"{path}: not UTF-8, but UTF-16; convert the file")


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Arrow's exceptions as BivrecError; those of CSV files name the row and the value."""
    try:
        yield
    except FileNotFoundError:
        raise _missing(path) from None
    except (pa.ArrowException, OSError) as fault:
        if "invalid UTF8" in str(fault):
            where = re.search(r"Row #\d+", str(fault))
            raise BivrecError(
                f"{path}:{' ' + where[0].lower().replace('#', '') + ':' if where else ''} not UTF-8; convert the file, "
                "for instance with `iconv -f LATIN1 -t UTF-8`"
            ) from None
        raise BivrecError(f"{path}: cannot be read: {' '.join(str(fault).split())}; mend the file") from None


def _unknown_format(path: Path) -> BivrecError:
    if kind_of(path) in ARCHIVES:
        return BivrecError(f"{path}: an archive; unpack it and give the file in it")
    return BivrecError(
        f"{path}: unknown format '{kind_of(path)}'; expected .parquet, .csv, .tsv or .jsonl (text also with .gz)"
    )


def _missing(path: Path) -> BivrecError:
    return BivrecError(f"{path}: no such file; check the path")
