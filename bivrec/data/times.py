"""Times that a table holds as integers, as seconds with a fraction, or as dates (of Arrow, or as text of ISO 8601).

Each part of a column is read into one of three types, and `integers` makes one unit of them when all parts are known:
a fraction of a second anywhere in the column makes its times microseconds, or the order within a second were lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from bivrec.errors import BivrecError

INTEGERS = pa.int64()
"""Integers, of whatever unit."""
SECONDS = pa.duration("us")
"""Numbers of which some have a fraction, so that all are seconds since 1970."""
DATES = pa.timestamp("us")
"""Dates, in UTC."""

EXPECTED_TIME = "an integer or a date such as 2023-11-14 or 2023-11-14T22:50:02Z"
_FRACTION = r"[.,][0-9]+"
_ZONE = r"(Z| ?UTC| ?[+-][0-9]{2}(:?[0-9]{2})?)"
_CLOCK = rf"[T ][0-9]{{2}}:[0-9]{{2}}(:[0-9]{{2}}({_FRACTION})?)?"
_DATE = rf"^\s*[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}({_CLOCK}{_ZONE}?)?\s*$"
_NUMBER = r"^-?[0-9]+(\.[0-9]+)?$"


def read_times(texts: pa.ChunkedArray, where: Callable[[int], str]) -> pa.ChunkedArray:
    """INTEGERS, SECONDS or DATES, which are in UTC where no zone is given; nulls stay.

    Digits of a fraction beyond the sixth are cut off. Raises BivrecError at the first value that is neither a number
    nor a date, or not what the values before it are; `where` names the place of a position in the column.
    """
    parts: list[pa.ChunkedArray] = []
    places: list[str] = []
    for first, run in _runs(texts):
        part = _read(run)
        if part is None:
            row = _first_fault(run)
            value = run[row].as_py()
            shown = value if len(value) <= 60 else value[:60] + "..."
            raise BivrecError(f"{where(first + row)} {shown!r}: expected {EXPECTED_TIME}; mend or remove the row")
        parts.append(pa.chunked_array([part]))
        places.append(where(first))
        _check_kind(part.type, parts[0].type, places[-1])
    return pa.chunked_array([chunk for part in alike(parts, places) for chunk in part.chunks], _type_of(parts))


def read_numbers(numbers: pa.ChunkedArray, where: Callable[[int], str]) -> pa.ChunkedArray:
    """INTEGERS, or SECONDS if any has a fraction. Raises BivrecError, as `read_times` does, at the first of no use."""
    numbers = numbers.cast(pa.float64())
    # NaN equals nothing.
    whole = pc.fill_null(pc.equal(pc.floor(numbers), numbers), True)
    finite = pc.is_finite(numbers)
    unit = 1.0 if pc.all(pc.or_(whole, pc.invert(finite)), min_count=0).as_py() else 1e6
    fits = pc.and_(finite, pc.less(pc.abs(numbers), 2.0**63 / unit))
    if (row := pc.index(fits, False).as_py()) >= 0:
        raise BivrecError(f"{where(row)} {numbers[row]}: expected {EXPECTED_TIME}; mend or remove the row")
    if unit == 1.0:
        return numbers.cast(INTEGERS)
    return pc.round(pc.multiply(numbers, unit)).cast(INTEGERS).cast(SECONDS)


def alike(parts: Sequence[pa.ChunkedArray], places: Sequence[str]) -> list[pa.ChunkedArray]:
    """The parts of a column, which `places` name, in one of the three types.

    Raises BivrecError if some are dates and some numbers, or a number is too large for seconds.
    """
    filled = [(part.type, place) for part, place in zip(parts, places, strict=True) if part.null_count < len(part)]
    for kind, place in filled:
        _check_kind(kind, filled[0][0], place)
    kind = _type_of(parts)
    return [_in_type(part, kind, place) for part, place in zip(parts, places, strict=True)]


def integers(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Int64: integers as they are; of others seconds since 1970, or microseconds if any of them has a fraction."""
    if times.type == DATES:
        seconds = times.cast(pa.timestamp("s"), safe=False)
        times = seconds if seconds.cast(DATES).equals(times) else times
    return times.cast(INTEGERS)


def _type_of(parts: Sequence[pa.ChunkedArray]) -> pa.DataType:
    """Of all parts together; those without values do not count."""
    types = [part.type for part in parts if part.null_count < len(part)] or [INTEGERS]
    return SECONDS if SECONDS in types else types[0]


def _check_kind(kind: pa.DataType, before: pa.DataType, place: str) -> None:
    if (kind == DATES) != (before == DATES):
        order = "a date after numbers" if kind == DATES else "a number after dates"
        raise BivrecError(
            f"{place}: {order}: expected one of the two in the whole column, since their units differ; "
            "convert the others"
        )


def _in_type(part: pa.ChunkedArray, kind: pa.DataType, place: str) -> pa.ChunkedArray:
    if part.type == kind:
        return part
    if part.null_count == len(part):
        return pa.chunked_array([pa.nulls(len(part), kind)])
    try:
        return pc.multiply_checked(part, 1_000_000).cast(kind)
    except pa.ArrowInvalid:
        raise BivrecError(
            f"{place}: too large for seconds, which the column holds, as another value has a fraction; mend the column"
        ) from None


def _runs(texts: pa.ChunkedArray) -> Iterator[tuple[int, pa.Array]]:
    """(place of the first, texts) for stretches that look like dates throughout, or nowhere."""
    first = 0
    for chunk in texts.chunks:
        while len(chunk):
            dates = pc.match_substring_regex(chunk, _DATE)
            places = [pc.index(dates, kind).as_py() for kind in (False, True)]
            end = max(places) if min(places) >= 0 else len(chunk)
            yield first, chunk.slice(0, end)
            chunk, first = chunk.slice(end), first + end


def _read(texts: pa.Array) -> pa.Array | None:
    """Texts that all look like dates or all do not, as one of the types; None if any of them is no time."""
    texts = pc.utf8_trim_whitespace(texts)
    try:
        if pc.any(pc.match_substring_regex(texts, _DATE)).as_py():
            return _dates(texts)
        if not pc.all(pc.match_substring_regex(texts, _NUMBER), min_count=0).as_py():
            return None
        # pandas writes whole numbers as 1.0 where a value of the column is missing.
        if pc.any(pc.match_substring_regex(texts, r"\.0*[1-9]")).as_py():
            microseconds = pc.round(pc.multiply(texts.cast(pa.float64()), 1e6))
            return microseconds.cast(INTEGERS).cast(SECONDS)
        return pc.replace_substring_regex(texts, r"\.0+$", "").cast(INTEGERS)
    except pa.ArrowInvalid:
        return None


def _dates(texts: pa.Array) -> pa.Array:
    """Raises ArrowInvalid for a day or an hour that there is not."""
    texts = pc.replace_substring_regex(texts, r"[.,]([0-9]{1,6})[0-9]*", r".\1")
    # As BigQuery and Python write them; Arrow takes neither.
    texts = pc.replace_substring_regex(texts, " ?UTC$", "Z")
    texts = pc.replace_substring_regex(texts, r" ([+-][0-9:]+)$", r"\1")
    zoned = pc.match_substring_regex(texts, f":[0-9.]+{_ZONE}$")
    # Arrow takes a zone as an error for one type, and its absence for the other.
    in_utc = pc.if_else(zoned, None, texts)
    in_zone = pc.if_else(zoned, texts, None)
    return pc.coalesce(in_utc.cast(DATES), in_zone.cast(pa.timestamp("us", "UTC")).cast(DATES))


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
