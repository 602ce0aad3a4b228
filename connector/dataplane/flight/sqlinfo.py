"""The server's capabilities, which SQL clients read first: CommandGetSqlInfo (FlightSql.proto, `SqlInfo`).

Statements and functions are those that the gate passes; a test runs each. Limits that do not exist are 0, which means
unknown in the standard. Runs inside `catalogue_process`.
"""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa

from connector import VERSION

_NUMBERS = pa.map_(pa.int32(), pa.list_(pa.field("$data$", pa.int32())))
_CHOICES = (
    pa.field("string_value", pa.string()),
    pa.field("bool_value", pa.bool_()),
    pa.field("bigint_value", pa.int64()),
    pa.field("int32_bitmask", pa.int32()),
    pa.field("string_list", pa.list_(pa.field("string_data", pa.string()))),
    pa.field("int32_to_int32_list_map", _NUMBERS),
)
_STRING, _FLAG, _COUNT, _BITS, _LIST, _MAP = range(len(_CHOICES))
SCHEMA = pa.schema(
    [
        pa.field("info_name", pa.uint32(), nullable=False),
        pa.field("value", pa.dense_union(_CHOICES), nullable=False),
    ]
)

# Functions by the kinds of JDBC and ODBC, which have none for aggregates.
NUMERIC = ("ABS", "ATAN2", "CEIL", "COS", "DEGREES", "EXP", "FLOOR", "GREATEST", "ISINF", "ISNAN", "LEAST", "LN",
           "POWER", "RADIANS", "ROUND", "SIGN", "SIN", "SQRT")  # fmt: skip
STRING = ("CONTAINS", "ENDS_WITH", "LEFT", "LENGTH", "LOWER", "LTRIM", "RIGHT", "RTRIM", "STARTS_WITH", "STRPOS",
          "SUBSTRING", "TRIM", "UPPER")  # fmt: skip
SYSTEM = ("COALESCE", "NULLIF")
DATES = ("DATE_DIFF", "DATE_PART", "DATE_TRUNC", "DAY", "DAYOFMONTH", "DAYOFWEEK", "DAYOFYEAR", "HOUR", "ISODOW",
         "MINUTE", "MONTH", "QUARTER", "SECOND", "WEEK", "WEEKOFYEAR", "YEAR")  # fmt: skip
KEYWORDS = ("ANTI", "ILIKE", "QUALIFY", "SEMI")  # in addition to those of the standard

_Value = str | bool | int | Collection[str] | Collection[tuple[int, Collection[int]]]  # the last a map
_FIRST, _SECOND = 1, 2  # bits


def infos() -> dict[int, tuple[int, _Value]]:
    """Returns the kind of value and the value of each capability, by its number in the standard."""
    server: dict[int, tuple[int, _Value]] = {
        0: (_STRING, "Hanse"),
        1: (_STRING, VERSION),
        2: (_STRING, pa.__version__),
        3: (_FLAG, True),  # read only
        4: (_FLAG, True),  # SQL
        5: (_FLAG, False),  # Substrait
        8: (_BITS, 0),  # no transactions
        9: (_FLAG, False),  # CancelQuery; reads are cancelled by CancelFlightInfo
        100: (_BITS, 0),  # statements have no end
        101: (_BITS, 0),
    }
    syntax: dict[int, tuple[int, _Value]] = {
        503: (_BITS, 1),  # names in any case
        504: (_STRING, '"'),
        505: (_BITS, 1),  # also those in quotes
        506: (_FLAG, True),  # all tables that are shown may be asked
        507: (_BITS, 3),  # nulls come last
        508: (_LIST, KEYWORDS),
        509: (_LIST, NUMERIC),
        510: (_LIST, STRING),
        511: (_LIST, SYSTEM),
        512: (_LIST, DATES),
        513: (_STRING, ""),  # a pattern for names has no escape
        514: (_STRING, ""),
        515: (_FLAG, True),  # AS
        516: (_FLAG, True),  # a text joined with null is null
        517: (_MAP, ()),  # no {fn CONVERT}
        518: (_FLAG, True),  # names for tables in a statement
        519: (_FLAG, False),  # which may be their own
        520: (_FLAG, True),  # ORDER BY expressions
        521: (_FLAG, True),  # and by what is not selected
        522: (_BITS, _FIRST | _SECOND),  # GROUP BY, likewise
        523: (_FLAG, True),  # LIKE ... ESCAPE
        524: (_FLAG, False),
        525: (_BITS, _FIRST | _SECOND),  # grammar: minimum, core
        526: (_BITS, _FIRST),  # ANSI 92: entry
        527: (_FLAG, False),
        528: (_BITS, 2),  # full outer joins
        529: (_STRING, "participant"),
        530: (_STRING, ""),
        531: (_STRING, ""),  # no catalogs
        532: (_FLAG, False),
        538: (_BITS, 0b0111),  # subqueries in comparisons, EXISTS, IN
        539: (_FLAG, True),  # that refer to the statement around them
        540: (_BITS, _FIRST | _SECOND),  # UNION, UNION ALL
        562: (_COUNT, 0),  # no isolation; JDBC reads no other number here
        564: (_BITS, _FIRST),
        567: (_BITS, _SECOND),  # results are read forward
        569: (_BITS, _SECOND),  # and only read
    }
    never = (*range(500, 503), 536, 537, 556, 563, 565, 566, *range(572, 577))
    nothing = (533, 534, 535, 568, 570, 571)
    unknown = (*range(541, 556), *range(557, 562))
    rest = {
        **dict.fromkeys(never, (_FLAG, False)),
        **dict.fromkeys(nothing, (_BITS, 0)),
        **dict.fromkeys(unknown, (_COUNT, 0)),
    }
    return dict(sorted((server | syntax | rest).items()))


def table(wanted: Collection[int]) -> pa.Table:
    """Returns a row for each wanted capability that is known; all of them where none is wanted by number."""
    found = {number: one for number, one in infos().items() if not wanted or number in wanted}
    values: list[list[_Value]] = [[] for _ in _CHOICES]
    offsets = []
    for kind, value in found.values():
        offsets.append(len(values[kind]))
        values[kind].append(value)
    union = pa.UnionArray.from_dense(
        pa.array([kind for kind, _ in found.values()], pa.int8()),
        pa.array(offsets, pa.int32()),
        [pa.array(some, field.type) for some, field in zip(values, _CHOICES, strict=True)],
        [field.name for field in _CHOICES],
    )
    return pa.table([pa.array(list(found), pa.uint32()), union.cast(SCHEMA.field(1).type)], schema=SCHEMA)
