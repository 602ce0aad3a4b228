"""Error codes that an owner may use. Any other becomes `peer_nonsense`, with its text in the sentence.

Code that uses the SDK decides by `error.code`, so an owner must not use codes about the reader's own connector or
token. The connector has the same list (`connector.peer_codes`).
"""

from __future__ import annotations

UNKNOWN = "peer_nonsense"
_CODE_MAX = 100  # letters

KNOWN = frozenset({
    "action_not_agreed", "aggregate_only", "aggregate_shape", "agreement_ended", "agreement_revoked",
    "agreement_unreadable", "already_exists", "answer_unsound", "arrow_columns", "arrow_invalid", "arrow_repeats",
    "arrow_too_large", "bad_input", "batch_too_long", "being_checked", "blocks_not_kept", "body_late", "body_too_large",
    "busy", "bytes_limit", "cancelled", "client_gone", "client_stalled", "codec_refused", "column_ambiguous",
    "column_unknown", "columns_repeated", "columns_together", "computation_failed", "concurrency", "conflict",
    "context_unknown", "contract_undecided", "count_spent", "cursor_invalid", "cut", "database_refused",
    "database_unreachable", "dataset_ambiguous", "dataset_missing", "dataset_unknown", "deadline_exceeded",
    "digest_mismatch", "disk_full", "encoding_unknown", "ended", "engine_failed", "envelope_invalid", "epsilon_invalid",
    "error", "facts_ended", "file_unavailable", "flight_ticket_invalid", "footer_too_large", "forbidden",
    "format_unfit", "format_unknown", "function_not_allowed", "groups_max", "http_version", "id_taken", "illegal_step",
    "incomplete", "internal", "interrupted", "job_invalid", "join_not_agreed", "lease_expired", "limited",
    "lines_unreadable", "media_type", "member_not_carried", "member_unknown", "memory_limit", "message_invalid",
    "method_not_allowed", "min_group_size", "name_taken", "no_agreement", "no_answer", "no_transfer", "noise_failed",
    "noise_unavailable", "not_a_member", "not_a_stream", "not_acceptable", "not_divisible", "not_final", "not_found",
    "not_in_force", "not_kept", "not_parquet", "not_permitted", "not_removed", "not_verbatim", "not_written",
    "nothing_received", "offer_too_large", "offer_unreadable", "one_statement", "option_invalid", "outcome_unknown",
    "parameter_repeated", "parameter_type", "parameter_unknown", "parameters_too_many", "parameters_unbound",
    "partition_unnamed", "partitions_differ", "path_refused", "pid_taken", "policy_invalid", "policy_unreadable",
    "privacy_budget_spent", "purpose_not_agreed", "push_failed", "push_refused", "push_too_large", "pushes_max",
    "query_invalid", "query_refused", "query_too_deep", "query_too_large", "query_too_long", "query_unreadable",
    "queue_full", "queue_timeout", "quota", "quota_spent", "received_full", "recheck_failed", "refused", "replaced",
    "reports_max", "request_invalid", "request_too_large", "restored", "revoked", "rows_limit", "rows_not_given",
    "runs_elsewhere", "schema_changed", "schema_not_allowed", "schemas_differ", "sender_stalled", "shown_changed",
    "shutting_down", "snapshot_changed", "source_busy", "source_unreadable", "statement_not_allowed", "store_ambiguous",
    "store_refused", "store_unreachable", "streams_max", "streams_of_consumer", "suspended", "syntax_not_allowed",
    "table_locked", "template_not_agreed", "term_unknown", "terminated", "ticket_expired", "ticket_mismatch",
    "ticket_replaced", "tickets_mixed", "time_limit", "too_many_changes", "too_many_new", "too_many_open",
    "too_many_receipts", "too_many_strangers", "too_slow", "totals_differ", "transfer_not_started", "transfer_refused",
    "type_not_allowed", "type_unread", "unauthenticated", "unimplemented", "value_unmappable", "version_changed",
    "view_failed", "withdrawn", "worker_crashed", "worker_wanted",
})  # fmt: skip


def read_code(code: str, sentence: str) -> tuple[str, str]:
    """An owner's code and sentence as errors repeat them. An empty code stays empty."""
    if not code or code in KNOWN:
        return code, sentence
    said = " ".join(code[:_CODE_MAX].split())
    return UNKNOWN, f"{said}: {sentence}" if sentence else said
