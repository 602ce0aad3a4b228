"""`hanse query` and `hanse stream`: rows to the screen, a file or a pipe; what each owner sent to standard error."""

from __future__ import annotations

import re
import secrets
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hanse.cli.connection import space
from hanse.cli.output import (
    AsJson,
    console,
    format_cell,
    format_size,
    open_stdout,
    poll_during,
    print_json,
    print_rows,
    print_table,
    progress,
    say,
    write_whole,
)
from hanse.errors import BadInput, GroupsLeftOut, HanseError
from hanse.notebook.html_view import format_count

if TYPE_CHECKING:
    import pyarrow as pa

    from hanse.client import Dataset, Space
    from hanse.stream import Stream

FORMATS = ("table", "csv", "json", "parquet", "arrow", "arrows")  # IANA's endings: arrow a file, arrows a stream
_SHOWN_MAX = 200  # rows that a table shows,
_GUARDED = "csv, guarded"
_FORMULA = "^[=+\\-@\t\r\n]"  # what a spreadsheet takes for the start of a formula
_LETTERS_MAX = 2**22  # and letters of them: laying out a table takes a hundred times their memory

Purpose = Annotated[str, typer.Option(help="What for, e.g. dpv:ScientificResearch.")]
Format = Annotated[str, typer.Option("--format", "-f", help=f"{', '.join(FORMATS)}; else by the file, or table.")]
Guard = Annotated[
    bool, typer.Option("--guard", help="In CSV, an apostrophe before text that a spreadsheet takes for a formula.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of the screen.")]


def register(app: typer.Typer) -> None:
    app.command()(query)
    app.command()(stream)


def query(
    sql: Annotated[str, typer.Argument(help="One SELECT; - reads it from standard input.", show_default=False)],
    purpose: Purpose = "",
    mode: Annotated[str, typer.Option(help="full (default), filter or pull: how much the owners do.")] = "",
    explain: Annotated[bool, typer.Option("--explain", help="Say what would run where; run nothing.")] = False,
    analyze: Annotated[
        bool, typer.Option("--analyze", help="Run it, and say what ran where with real figures.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Also without owners that are down or late, where that means something.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds that it may take; the connector's own limit else.")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Refuse an answer of more rows.")] = None,
    sent: Annotated[
        int | None, typer.Option("--bytes", help="Bytes that the owners' answers may take together.")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Where answers carry noise: what each owner's may cost of its budget; else a tenth."),
    ] = None,
    format_: Format = "",
    guard: Guard = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Run one query over datasets of any owners that you have agreements with, named "owner".dataset."""
    format_ = _choose_format("json" if as_json else format_, output, guard=guard)
    text = sys.stdin.read() if sql == "-" else sql
    connected = space()
    limits = {"seconds": seconds, "rows": rows, "bytes": sent}
    parameters: dict[str, Any] = {
        "purpose": purpose,
        "mode": mode,
        "partial": partial,
        "limits": {name: most for name, most in limits.items() if most is not None},
        "epsilon": epsilon,
    }
    if explain or analyze:
        if output is not None:
            raise BadInput("expected no --output with --explain or --analyze: a plan goes to standard output")
        plan = connected.explain(text, analyze=analyze, **parameters)
        print_json(plan) if as_json else console().out(plan.get("text", ""))
        return
    answer = _run_query(connected, text, **parameters)
    _write_answer(answer, format_=format_, output=output, total=None)
    for sentence in answer.left_out:
        say(sentence)
    if answer.owners:
        with _print_to_stderr():
            print_rows(answer.owners, _OWNERS, as_json=False)
    for rule, owners in _group_by_rule(answer.owners).items():
        say(f"by agreement ({', '.join(owners)}): {rule}")
    for owner in answer.missing:
        say(f"partial: without {owner.get('reason') or owner.get('owner')}")


def _group_by_rule(answers: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the rules that shaped the owners' answers, in words, each with those owners."""
    owners_by_rule: dict[str, list[str]] = {}
    for answer in answers:
        rules = answer.get("policy")
        for rule in rules if isinstance(rules, list) else []:
            owners = owners_by_rule.setdefault(str(rule), [])
            owners += [owner for owner in [str(answer.get("owner", ""))] if owner not in owners]
    return owners_by_rule


def _run_query(connected: Space, sql: str, **more: Any) -> Stream:
    """Run a query; on a terminal show meanwhile what each owner does."""
    out = console(err=True)
    if not out.is_terminal:
        return connected.query(sql, **more)
    query_id = secrets.token_hex(8)
    with (
        out.status("planning") as status,
        poll_during(lambda: status.update(escape(describe_progress(connected.progress(query_id))))),
    ):
        return connected.query(sql, **more, query_id=query_id)


def describe_progress(progress: Mapping[str, Any]) -> str:
    """Describe a query's progress, owner by owner, in one line."""
    owners = progress.get("owners", [])
    parts = [f"{owner['owner']} {_row_counts(owner)}, {format_size(owner['bytes'])}" for owner in owners]
    parts += [f"without {owner['owner']}" for owner in progress.get("missing", [])]
    waiting = dict.fromkeys(str(owner["owner"]) for owner in progress.get("waiting", []))
    parts += [f"{owner} ..." for owner in waiting]
    return ": ".join(part for part in (str(progress.get("state", "")), " · ".join(parts)) if part)


def _row_counts(one: Mapping[str, Any]) -> str:
    """Describe the rows that an owner sent, rows of data apart from result rows; older versions do not separate
    them."""
    if "result_rows" not in one:
        return format_count(one["rows"], "row")
    counts = ((one.get("data_rows"), "row"), (one["result_rows"], "result row"))
    return ", ".join(format_count(count, what) for count, what in counts if count) or format_count(0, "row")


def stream(
    dataset: Annotated[str, typer.Argument(help="participant/dataset, e.g. north/flights.", show_default=False)],
    column: Annotated[list[str] | None, typer.Option("--column", "-c", help="A column; may be repeated.")] = None,
    where: Annotated[str, typer.Option(help="A condition on its columns, e.g. 'age > 50'.")] = "",
    purpose: Purpose = "",
    rows: Annotated[int | None, typer.Option(help="At most this many rows.", min=1)] = None,
    batch_rows: Annotated[int | None, typer.Option(help="Rows in a batch.", min=1)] = None,
    format_: Format = "",
    guard: Guard = False,
    output: Output = None,
) -> None:
    """Stream the rows of a dataset that an agreement allows; negotiates an agreement first if necessary."""
    format_ = _choose_format(format_, output, guard=guard)
    got = space().agree(dataset, purpose=purpose)
    if format_ == "parquet":
        _check_plan(got, column or [], where)
    fewer = min(rows, batch_rows or rows) if rows else batch_rows
    answer = got.stream(columns=column or [], where=where, batch_rows=fewer)
    _write_answer(answer, format_=format_, output=output, total=rows)


def _choose_format(format_: str, output: Path | None, *, guard: bool) -> str:
    """Return the writer to use. Raises: BadInput before anything is read, because each read is counted."""
    chosen = format_ or (output.suffix.lstrip(".") if output is not None else "table")
    chosen = {"ndjson": "json", "jsonl": "json", "feather": "arrow", "pq": "parquet"}.get(chosen, chosen)
    if chosen not in FORMATS or (chosen == "table" and output is not None):
        known = FORMATS if output is None else FORMATS[1:]
        raise BadInput(f"expected a format among {', '.join(known)}, got {chosen!r}")
    if chosen in ("parquet", "arrow", "arrows") and output is None and sys.stdout.isatty():
        raise BadInput(f"{chosen} is binary: give --output, or write to a pipe")
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise BadInput(f"expected --output in an existing directory, got {output}")
    if guard and chosen != "csv":
        raise BadInput(f"expected --guard with csv, got {chosen}: no other format is opened as formulas")
    return _GUARDED if guard else chosen


def _check_plan(got: Dataset, columns: list[str], where: str) -> None:
    """Raises: BadInput if Parquet cannot hold these rows, before a read is counted: a plan does not count."""
    try:
        schema = got.plan(columns=columns, where=where).schema
    except HanseError:
        return  # the read will be refused for the same reason, or the dataset has no plans
    _check_parquet(schema)


def _write_answer(answer: Stream, *, format_: str, output: Path | None, total: int | None) -> None:
    """Write a stream batch by batch. A file appears only when it is complete."""
    with warnings.catch_warnings(), progress("reading", total=total) as advance, answer:
        warnings.simplefilter("ignore", GroupsLeftOut)  # `query` prints its own sentences
        batches = _advance_with(answer, advance, most=total)
        if format_ == "table":
            _print_answer_table(answer, batches)
        else:
            if format_ in _CHECKS:
                _CHECKS[format_](answer.schema)
            with _open_output(output) as sink:
                _WRITERS[format_](answer.schema.with_metadata(answer.notes() or None), batches, sink)
                _read_policy(answer)
    if output is not None:
        say(f"{output}: {format_count(answer.rows if total is None else min(answer.rows, total), 'row')}")
    for rule in _read_policy(answer):
        say(f"by agreement: {rule}")


def _read_policy(answer: Stream) -> list[str]:
    """Return the rules that the end record names; none if the stream was left before. Raises: Broken for a malformed
    record, before the file appears."""
    if not answer.end:
        return []
    _ = answer.owners, answer.missing, answer.left_out
    return answer.policy


def _advance_with(answer: Stream, advance: Callable[[float], None], *, most: int | None) -> Iterator[pa.RecordBatch]:
    """Yield up to `most` rows and advance the bar; then leave the stream, which its owner records."""
    left = most
    for batch in answer:
        part = batch if left is None else batch.slice(0, left)
        yield part
        advance(part.num_rows)
        if left is not None and (left := left - part.num_rows) <= 0:
            return


def _open_output(output: Path | None) -> AbstractContextManager[IO[bytes]]:
    return open_stdout() if output is None else write_whole(output)


def _csv(schema: pa.Schema, batches: Iterator[pa.RecordBatch], sink: IO[bytes], *, guard: bool = False) -> None:
    """In a single column nulls are `""`: most readers skip an empty line. `guard`: prefix texts that are formulas."""
    import pyarrow as pa
    from pyarrow import csv

    from hanse.cli import cell_text

    alone = len(schema) == 1
    shown = [kind if cell_text.is_plain(kind) and not alone else pa.string() for kind in schema.types]
    names = [f"'{name}" if guard and re.match(_FORMULA, name) else name for name in schema.names]
    kinds = pa.schema(list(zip(names, shown, strict=True)))
    with csv.CSVWriter(sink, kinds) as writer:
        for batch in batches:
            columns = [cell_text.fields(one).cast(kind) for one, kind in zip(batch.columns, shown, strict=True)]
            columns = (
                [_guard_formulas(one, kind) for one, kind in zip(columns, schema.types, strict=True)]
                if guard
                else columns
            )
            columns = [one.fill_null("") for one in columns] if alone else columns
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=kinds))


def _guard_formulas(shown: pa.Array, kind: pa.DataType) -> pa.Array:
    """Prefix an apostrophe to values of a CSV column that would be formulas. Numbers stay numbers, also negative
    ones."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from hanse.cli import cell_text

    if cell_text.is_plain(kind) or pa.types.is_decimal(kind):
        return shown
    formula = pc.fill_null(pc.match_substring_regex(shown, _FORMULA), False)
    return pc.if_else(formula, pc.binary_join_element_wise("'", shown, ""), shown)


def _json(schema: pa.Schema, batches: Iterator[pa.RecordBatch], sink: IO[bytes]) -> None:
    import json

    from hanse.cli import cell_text

    for batch in batches:
        for row in cell_text.rows(batch):
            line = json.dumps(dict(zip(schema.names, row, strict=True)), ensure_ascii=False)
            sink.write(f"{line}\n".encode())


def _parquet(schema: pa.Schema, batches: Iterator[pa.RecordBatch], sink: IO[bytes]) -> None:
    """Parquet has no seconds: they become milliseconds."""
    import pyarrow as pa
    from pyarrow import parquet

    from hanse.cli import cell_text

    kinds = [pa.timestamp("ms", kind.tz) if cell_text.in_seconds(kind) else kind for kind in schema.types]
    shown = pa.schema([field.with_type(kind) for field, kind in zip(schema, kinds, strict=True)], schema.metadata)
    with parquet.ParquetWriter(sink, shown, compression="zstd") as writer:
        for batch in batches:
            columns = [cell_text.milliseconds(one) if cell_text.in_seconds(one.type) else one for one in batch.columns]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=shown))


def _check_json(schema: pa.Schema) -> None:
    """Raises: BadInput for columns with the same name, because JSON readers keep a single one."""
    if repeated := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise BadInput(
            f"expected columns of different names for json, got several called {', '.join(repeated)}; name each with "
            "AS, or ask for csv"
        )


def _check_parquet(schema: pa.Schema) -> None:
    """Raises: BadInput for columns that Parquet cannot hold: intervals, also nested ones."""
    import pyarrow as pa
    from pyarrow import parquet

    def unfit(part: pa.Schema) -> bool:
        try:
            parquet.ParquetWriter(pa.BufferOutputStream(), part).close()
        except pa.ArrowNotImplementedError:
            return True
        return False

    if unfit(schema):
        names = ", ".join(field.name for field in schema if unfit(pa.schema([field])))
        raise BadInput(
            f"expected columns that Parquet can hold, got intervals in {names}; leave them out, or ask for csv, "
            "json or arrow"
        )


def _arrow(schema: pa.Schema, batches: Iterator[pa.RecordBatch], sink: IO[bytes]) -> None:
    import pyarrow as pa

    with pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _arrows(schema: pa.Schema, batches: Iterator[pa.RecordBatch], sink: IO[bytes]) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


_CHECKS: dict[str, Callable[[Any], None]] = {"json": _check_json, "parquet": _check_parquet}
_WRITERS: dict[str, Callable[[Any, Iterator[Any], IO[bytes]], None]] = {
    "csv": _csv,
    _GUARDED: partial(_csv, guard=True),
    "json": _json,
    "parquet": _parquet,
    "arrow": _arrow,
    "arrows": _arrows,
}


def _print_answer_table(answer: Stream, batches: Iterator[pa.RecordBatch]) -> None:
    """Print the first rows as a table, at least one; the rest is counted."""
    from hanse.cli import cell_text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in answer.schema.names:
        table.add_column(escape(name), overflow="fold")
    held = received = letters = 0
    for batch in batches:
        received += batch.num_rows
        for row in cell_text.rows(batch.slice(0, max(0, _SHOWN_MAX - held) if letters < _LETTERS_MAX else 0)):
            cells = [escape(format_cell(value)) for value in row]
            if held and letters + sum(map(len, cells)) > _LETTERS_MAX:
                letters = _LETTERS_MAX
                break
            table.add_row(*cells)
            held, letters = held + 1, letters + sum(map(len, cells))
    print_table(table)
    if received > held:
        say(f"... and {received - held:,} rows more; use --output to get all of them")


def _owner(row: dict[str, Any]) -> str:
    who = row.get("owner") or row.get("participant") or ""
    return f"{who}/{row['dataset']}" if row.get("dataset") else str(who)


_WITHHELD = {"nothing": "nothing", "possibly": "possibly some", "some": "some"}


def _withheld(row: dict[str, Any]) -> str:
    from hanse.stream import read_withheld

    return read_withheld(row)


_OWNERS: dict[str, Any] = {
    "owner": _owner,
    "rows of data": lambda row: row.get("data_rows", row.get("rows")),
    "result rows": "result_rows",
    "sent": lambda row: format_size(row["bytes"]) if isinstance(row.get("bytes"), int | float) else "",
    "ms": "ms",
    "withheld": lambda row: _WITHHELD[_withheld(row)],
}


@contextmanager
def _print_to_stderr() -> Iterator[None]:
    """Print tables for people to standard error: the answer may go to a pipe."""
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = stdout
