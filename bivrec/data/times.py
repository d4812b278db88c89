"""Times that a table holds as text, integers and dates of ISO 8601, or as numbers with a decimal point."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from bivrec.errors import BivrecError

EXPECTED_TIME = "an integer or a date such as 2023-11-14 or 2023-11-14T22:50:02Z"
_FRACTION = r"[.,][0-9]+"
_ZONE = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
_CLOCK = rf"[T ][0-9]{{2}}:[0-9]{{2}}(:[0-9]{{2}}({_FRACTION})?)?"
_DATE = rf"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}({_CLOCK}{_ZONE}?)?$"


def read_times(texts: pa.ChunkedArray, where: Callable[[int], str]) -> pa.ChunkedArray:
    """Int64: integers as they are, dates as seconds since 1970 in UTC, which is the zone where none is given.

    Fractions of a second are cut off, nulls stay. Raises BivrecError at the first value that is neither; `where` names
    the place of a position in the column.
    """
    parts, first = [], 0
    for chunk in texts.chunks:
        part = _read(chunk)
        if part is None:
            row = _first_fault(chunk)
            value = chunk[row].as_py()
            shown = value if len(value) <= 60 else value[:60] + "..."
            raise BivrecError(f"{where(first + row)} {shown!r}: expected {EXPECTED_TIME}; mend or remove the row")
        parts.append(part)
        first += len(chunk)
    return pa.chunked_array(parts, pa.int64())


def read_whole_numbers(numbers: pa.ChunkedArray, where: Callable[[int], str]) -> pa.ChunkedArray:
    """Int64. Raises BivrecError, as `read_times` does, at the first value that is no whole number of 64 bits."""
    numbers = numbers.cast(pa.float64())
    # NaN equals nothing.
    fits = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), 2.0**63))
    if (row := pc.index(fits, False).as_py()) >= 0:
        raise BivrecError(f"{where(row)} {numbers[row]}: expected {EXPECTED_TIME}; mend or remove the row")
    return numbers.cast(pa.int64())


def _seconds(texts: pa.Array) -> pa.Array:
    """Null where a text is of neither form. Raises ArrowInvalid for a day or an hour that there is not."""
    texts = pc.utf8_trim_whitespace(texts)
    is_date = pc.match_substring_regex(texts, _DATE)
    zoned = pc.match_substring_regex(texts, f":[0-9.,]+{_ZONE}$")
    whole = pc.replace_substring_regex(texts, _FRACTION, "")
    # pandas writes whole numbers as 1.0 where a value of the column is missing.
    integers = pc.if_else(pc.match_substring_regex(texts, r"^-?[0-9]+(\.0+)?$"), whole, None)
    # Arrow takes a zone as an error for one type, and its absence for the other.
    in_utc = pc.if_else(pc.and_not(is_date, zoned), whole, None)
    in_zone = pc.if_else(pc.and_(is_date, zoned), whole, None)
    return pc.coalesce(
        integers.cast(pa.int64()),
        in_utc.cast(pa.timestamp("s")).cast(pa.int64()),
        in_zone.cast(pa.timestamp("s", "UTC")).cast(pa.int64()),
    )


def _read(texts: pa.Array) -> pa.Array | None:
    """None if any of them is no time."""
    try:
        times = _seconds(texts)
    except pa.ArrowInvalid:
        return None
    return times if times.null_count == texts.null_count else None


def _first_fault(texts: pa.Array) -> int:
    """Place of the first value that cannot be read, where there is one: by bisection, since Arrow does not say."""
    readable, faulty = 0, len(texts)
    while faulty - readable > 1:
        middle = (readable + faulty) // 2
        if _read(texts.slice(0, middle)) is None:
            faulty = middle
        else:
            readable = middle
    return readable
