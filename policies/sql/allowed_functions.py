"""The functions that a query may call: sqlglot's class, its permitted arguments, and the engine's names.

An allow-list. Left out on purpose: functions that read files, settings, catalogues, variables or clocks; that build
large values in one call that cannot be interrupted (repeat, lpad, range, replace, list and string aggregation); that
raise errors with values in them (error, strptime, date parsing); randomness. Data only.
"""

from __future__ import annotations

from sqlglot import exp

_THIS = frozenset({"this"})
_TWO = frozenset({"this", "expression"})

# Class: (arguments that may be filled, names under which DuckDB's parser reports it).
AGGREGATES: dict[type[exp.Expr], tuple[frozenset[str], tuple[str, ...]]] = {
    exp.Count: (frozenset({"this", "expressions", "big_int"}), ("count", "count_star")),
    exp.Sum: (_THIS, ("sum",)),
    exp.Avg: (_THIS, ("avg",)),
    exp.Min: (_THIS, ("min",)),
    exp.Max: (_THIS, ("max",)),
    exp.Stddev: (_THIS, ("stddev",)),
    exp.StddevPop: (_THIS, ("stddev_pop",)),
    exp.StddevSamp: (_THIS, ("stddev_samp",)),
    exp.Variance: (_THIS, ("variance",)),
    exp.VariancePop: (_THIS, ("var_pop",)),
    exp.Corr: (_TWO, ("corr",)),
    exp.CovarPop: (_TWO, ("covar_pop",)),
    exp.CovarSamp: (_TWO, ("covar_samp",)),
    exp.RegrSlope: (_TWO, ("regr_slope",)),
    exp.RegrIntercept: (_TWO, ("regr_intercept",)),
    exp.RegrR2: (_TWO, ("regr_r2",)),
    exp.RegrCount: (_TWO, ("regr_count",)),
    exp.LogicalAnd: (_THIS, ("bool_and",)),
    exp.LogicalOr: (_THIS, ("bool_or",)),
    exp.BitwiseAndAgg: (_THIS, ("bit_and",)),
    exp.BitwiseOrAgg: (_THIS, ("bit_or",)),
    exp.BitwiseXorAgg: (_THIS, ("bit_xor",)),
    exp.CountIf: (_THIS, ("count_if",)),
    exp.ApproxDistinct: (_THIS, ("approx_count_distinct",)),
    exp.Median: (_THIS, ("median",)),
    exp.Skewness: (_THIS, ("skewness",)),
    exp.Kurtosis: (_THIS, ("kurtosis",)),
    exp.AnyValue: (_THIS, ("any_value",)),
}

WINDOW_ONLY: dict[type[exp.Expr], tuple[frozenset[str], tuple[str, ...]]] = {
    exp.RowNumber: (frozenset(), ("row_number",)),
    exp.Rank: (frozenset(), ("rank",)),
    exp.DenseRank: (frozenset(), ("dense_rank",)),
    exp.PercentRank: (frozenset(), ("percent_rank",)),
    exp.CumeDist: (frozenset(), ("cume_dist",)),
    exp.Ntile: (_THIS, ("ntile",)),
    exp.Lag: (frozenset({"this", "offset", "default"}), ("lag",)),
    exp.Lead: (frozenset({"this", "offset", "default"}), ("lead",)),
    exp.FirstValue: (_THIS, ("first_value",)),
    exp.LastValue: (_THIS, ("last_value",)),
}

SCALARS: dict[type[exp.Expr], tuple[frozenset[str], tuple[str, ...]]] = {
    exp.Abs: (_THIS, ("abs",)),
    exp.Ceil: (_THIS, ("ceil",)),
    exp.Floor: (_THIS, ("floor",)),
    exp.Round: (frozenset({"this", "decimals"}), ("round",)),
    exp.Sign: (_THIS, ("sign",)),
    exp.Sqrt: (_THIS, ("sqrt",)),
    exp.Ln: (_THIS, ("ln",)),
    exp.Exp: (_THIS, ("exp",)),
    exp.Pow: (_TWO, ("power",)),
    exp.Sin: (_THIS, ("sin",)),
    exp.Cos: (_THIS, ("cos",)),
    exp.Radians: (_THIS, ("radians",)),
    exp.Degrees: (_THIS, ("degrees",)),
    exp.Atan2: (_TWO, ("atan2",)),
    exp.Greatest: (frozenset({"this", "expressions", "ignore_nulls"}), ("greatest",)),
    exp.Least: (frozenset({"this", "expressions", "ignore_nulls"}), ("least",)),
    exp.Coalesce: (frozenset({"this", "expressions"}), ("coalesce",)),
    exp.Nullif: (_TWO, ("nullif",)),
    exp.If: (frozenset({"this", "true", "false"}), ()),
    exp.Case: (frozenset({"this", "ifs", "default"}), ()),
    exp.Length: (_THIS, ("length",)),
    exp.Lower: (_THIS, ("lower",)),
    exp.Upper: (_THIS, ("upper",)),
    exp.Trim: (frozenset({"this", "position"}), ("trim", "ltrim", "rtrim")),
    exp.Substring: (frozenset({"this", "start", "length"}), ("substring",)),
    exp.Left: (_TWO, ("left",)),
    exp.Right: (_TWO, ("right",)),
    exp.StartsWith: (_TWO, ("starts_with",)),
    exp.EndsWith: (_TWO, ("ends_with",)),
    exp.Contains: (_TWO, ("contains",)),
    exp.StrPosition: (frozenset({"this", "substr"}), ("strpos",)),
    exp.Extract: (_TWO, ("date_part",)),
    exp.DateTrunc: (frozenset({"this", "unit"}), ("date_trunc",)),
    exp.TimestampTrunc: (frozenset({"this", "unit"}), ("date_trunc",)),
    exp.DateDiff: (frozenset({"this", "expression", "unit", "date_part_boundary"}), ("date_diff",)),
    exp.Year: (_THIS, ("year",)),
    exp.Quarter: (_THIS, ("quarter",)),
    exp.Month: (_THIS, ("month",)),
    exp.Week: (_THIS, ("week",)),
    exp.WeekOfYear: (_THIS, ("weekofyear",)),
    exp.Day: (_THIS, ("day",)),
    exp.DayOfMonth: (_THIS, ("dayofmonth",)),
    exp.DayOfWeek: (_THIS, ("dayofweek",)),
    exp.DayOfWeekIso: (_THIS, ("isodow",)),
    exp.DayOfYear: (_THIS, ("dayofyear",)),
    exp.Hour: (_THIS, ("hour",)),
    exp.Minute: (_THIS, ("minute",)),
    exp.Second: (_THIS, ("second",)),
    exp.IsNan: (_THIS, ("isnan",)),
    exp.IsInf: (_THIS, ("isinf",)),
}

FUNCTIONS = {**AGGREGATES, **WINDOW_ONLY, **SCALARS}

# Names of operators and intervals in the engine's syntax tree.
_OPERATORS = ("+", "-", "*", "/", "//", "%", "||", "~~", "!~~", "~~*", "!~~*", "like_escape", "not_like_escape",
              "ilike_escape", "not_ilike_escape")  # fmt: skip
_INTERVALS = ("to_years", "to_months", "to_weeks", "to_days", "to_hours", "to_minutes", "to_seconds", "to_quarters")
_UNASKED = ("trunc", "row")  # added by the engine's parser to intervals and to row values in IN

ENGINE_FUNCTIONS: frozenset[str] = frozenset(
    {name for _, names in FUNCTIONS.values() for name in names} | {*_OPERATORS, *_INTERVALS, *_UNASKED}
)
