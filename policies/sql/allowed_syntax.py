"""The syntax that a query may use: token kinds before parsing, node classes and their arguments after it.

Allow-lists of tokens, classes, arguments, types and units. `NODES` maps each sqlglot class to its permitted arguments,
because some syntax (locks, samples, hints, named joins) is an argument of a harmless class. Data only.
"""

from __future__ import annotations

from sqlglot import exp
from sqlglot.tokenizer_core import TokenType

from policies.sql.allowed_functions import FUNCTIONS

_QUERY = frozenset({"with_", "order", "limit", "offset"})
_SET = _QUERY | {"this", "expression", "distinct"}
_THIS = frozenset({"this"})
_TWO = frozenset({"this", "expression"})
_LIST = frozenset({"expressions"})

STRUCTURE: dict[type[exp.Expr], frozenset[str]] = {
    exp.Select: _QUERY | {"expressions", "distinct", "from_", "joins", "where", "group", "having", "qualify"},
    exp.Union: _SET,
    exp.Intersect: _SET,
    exp.Except: _SET,
    exp.Subquery: frozenset({"this", "alias", "order", "limit", "offset"}),
    exp.With: _LIST,
    exp.CTE: frozenset({"this", "alias", "materialized"}),
    exp.From: _THIS,
    exp.Table: frozenset({"this", "db", "alias"}),
    exp.TableAlias: frozenset({"this", "columns"}),
    exp.Join: frozenset({"this", "on", "using", "side", "kind"}),
    exp.Where: _THIS,
    exp.Group: frozenset({"expressions", "grouping_sets", "cube", "rollup", "all"}),
    exp.GroupingSets: _LIST,
    exp.Cube: _LIST,
    exp.Rollup: _LIST,
    exp.Having: _THIS,
    exp.Qualify: _THIS,
    exp.Order: _LIST,
    exp.Ordered: frozenset({"this", "desc", "nulls_first"}),
    exp.Limit: frozenset({"expression"}),
    exp.Offset: frozenset({"expression"}),
    exp.Distinct: _LIST,
    exp.Alias: frozenset({"this", "alias"}),
    exp.Column: frozenset({"this", "table"}),
    exp.Identifier: frozenset({"this", "quoted"}),
    exp.Star: frozenset(),
    exp.Window: frozenset({"this", "partition_by", "order", "spec", "over"}),
    exp.WindowSpec: frozenset({"kind", "start", "start_side", "end", "end_side"}),
    exp.Filter: _TWO,
    exp.IgnoreNulls: _THIS,
    exp.Exists: _THIS,
    exp.DataType: frozenset({"this", "expressions", "nested", "kind"}),  # checked further in `parse`
    exp.DataTypeParam: _THIS,
    exp.Cast: frozenset({"this", "to"}),
    exp.TryCast: frozenset({"this", "to", "safe"}),
    exp.Interval: frozenset({"this", "unit"}),
    exp.Var: _THIS,
    exp.Literal: frozenset({"this", "is_string"}),
    exp.Boolean: _THIS,
    exp.Null: frozenset(),
    exp.Paren: _THIS,
    exp.Tuple: _LIST,
}

OPERATORS: dict[type[exp.Expr], frozenset[str]] = {
    **dict.fromkeys((exp.And, exp.Or, exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Is), _TWO),
    **dict.fromkeys((exp.Add, exp.Sub, exp.Mul, exp.IntDiv, exp.Mod), _TWO),
    **dict.fromkeys((exp.NullSafeEQ, exp.NullSafeNEQ, exp.Escape), _TWO),
    **dict.fromkeys((exp.Not, exp.Neg), _THIS),
    **dict.fromkeys((exp.Like, exp.ILike), _TWO | {"negate"}),
    exp.Div: _TWO | {"typed", "safe"},
    exp.DPipe: _TWO | {"safe"},
    exp.In: frozenset({"this", "expressions", "query"}),
    exp.Between: frozenset({"this", "low", "high"}),
}

NODES: dict[type[exp.Expr], frozenset[str]] = {
    **STRUCTURE,
    **OPERATORS,
    **{node: filled for node, (filled, _) in FUNCTIONS.items()},
}

SETS = (exp.Union, exp.Intersect, exp.Except)
QUERIES = (exp.Select, *SETS)
CHAINS = (exp.And, exp.Or, exp.Add, exp.Sub, exp.Mul, exp.DPipe, *SETS)  # long chains of these are flat in the text

JOIN_SIDES = frozenset({"", "LEFT", "RIGHT", "FULL"})
JOIN_KINDS = frozenset({"", "INNER", "OUTER", "CROSS", "SEMI", "ANTI"})

_DTYPES = (
    "BOOLEAN TINYINT SMALLINT INT BIGINT INT128 UTINYINT USMALLINT UINT UBIGINT FLOAT DOUBLE DECIMAL"
    " CHAR VARCHAR TEXT DATE TIMESTAMP TIMESTAMPNTZ TIMESTAMPTZ TIME"
)
TYPES: frozenset[exp.DType] = frozenset(exp.DType[name] for name in _DTYPES.split())
INTERVALS: frozenset[str] = frozenset(
    name + plural
    for name in ["YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND"]
    for plural in ("", "S")
)
UNITS: frozenset[str] = INTERVALS | {"EPOCH", "DOY", "DAYOFYEAR", "DOW", "DAYOFWEEK", "ISODOW", "DECADE", "CENTURY"}

_PUNCTUATION = "L_PAREN R_PAREN COMMA DOT DASH PLUS STAR SLASH MOD DIV LT LTE GT GTE EQ NEQ DPIPE DCOLON SEMICOLON"
_WORDS = (
    "ALIAS ALL AND ANTI ASC BETWEEN CASE CROSS CUBE DESC DISTINCT ELSE END ESCAPE EXCEPT EXISTS FALSE FILTER FIRST FOR"
    " FROM FULL GROUP_BY GROUPING_SETS HAVING ILIKE IN INNER INTERSECT INTERVAL IS ISNULL JOIN LEFT LIKE LIMIT NOT"
    " NOTNULL NULL OFFSET ON OR ORDER_BY OUTER OVER PARTITION_BY QUALIFY RANGE RIGHT ROLLUP ROW ROWS SELECT SEMI"
    " THEN TRUE UNION USING WHEN WHERE WITH"
)
_NAMES = "VAR IDENTIFIER STRING NUMBER YEAR FORMAT SCHEMA TABLE COLUMN VIEW INDEX KEY COMMENT DEFAULT NEXT SOURCE TYPE"
_TYPES = (
    "BOOLEAN TINYINT SMALLINT INT BIGINT INT128 UTINYINT USMALLINT UINT UBIGINT FLOAT DOUBLE DECIMAL CHAR VARCHAR"
    " TEXT DATE TIME TIMESTAMP TIMESTAMPNTZ TIMESTAMPTZ DATETIME"
)
CLAUSES: frozenset[TokenType] = frozenset(
    TokenType[name] for name in ("LATERAL", "VALUES", "PIVOT", "UNPIVOT", "ANY", "SOME", "RENAME")
)  # words that are not function names
NAME_TOKENS: frozenset[TokenType] = frozenset(
    TokenType[name] for name in (*_NAMES.split(), *_TYPES.split(), "FIRST", "LEFT", "RIGHT")
) - {TokenType.STRING, TokenType.NUMBER}  # tokens that can be a function name before a parenthesis
TYPE_TOKENS: frozenset[TokenType] = frozenset(TokenType[name] for name in _TYPES.split())
TOKENS: frozenset[TokenType] = (
    frozenset(TokenType[name] for line in (_PUNCTUATION, _WORDS, _NAMES) for name in line.split()) | TYPE_TOKENS
)
