"""Privacy budget of answers with noise: charge before the query runs, and reuse the answer of a repeated question.

Works between the gate and the stream. The noised table is small and is kept in the owner's database. The reader's
answer is computed from it by the public statement (`policies.enforce.noised_query`). Must not know any transport.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from connector.dataplane.read_request import END_OF_STREAM, ReadRequest
from connector.engine.pool.pool import Pool, Watch
from connector.engine.pool.protocol import Job
from connector.errors import Invalid, Limited, Unavailable
from connector.store import Store, Transaction
from connector.usage.held_agreement import ReadGrant
from policies.contracts import coverage

if TYPE_CHECKING:
    from policies.enforce.noised_query import PrivateQuery

_T = TypeVar("_T")
MICRO = 1_000_000  # the ledger counts millionths of epsilon: whole numbers add up exactly
_USUAL_SHARE = 10  # without a chosen epsilon an answer spends a tenth of the budget
# Limits the noised answer, never the true groups: their number must not be revealed.
_GROUPS_MAX = 100_000
_ANSWER_MAX = 16 * 2**20
_PAUSE, _PAUSE_MAX = 0.05, 0.5  # seconds between looks whether another read has answered


class AnswerInProgress(Unavailable):
    """Another read is computing the answer to the same question."""


@dataclass(frozen=True, slots=True)
class NoiseCharge:
    """Cost of one answer in millionths of epsilon: `micro` is its worth, `paid` what is charged now (0 for a repeat).

    `answer` is the kept answer of a repeat, `spent` and `most` describe the whole budget.
    """

    key: str
    micro: int
    paid: int
    spent: int  # of the whole budget, this answer included
    most: int
    answer: bytes | None = None

    def note(self) -> str:
        """Return the cost in words, for the reader and the log."""
        cost = f"{self.paid / MICRO:g} spent for it" if self.paid else "a repeat, nothing spent"
        return f"noise of epsilon {self.micro / MICRO:g} ({cost}; {self.spent / MICRO:g} of {self.most / MICRO:g} used)"


def charge(tx: Transaction, asked: ReadRequest, grant: ReadGrant, private: PrivateQuery) -> NoiseCharge:
    """Return the kept answer, or take this answer's epsilon from the budget.

    Raises: Limited where the budget is spent. AnswerInProgress while another read computes the same answer; a repeat of
    that answer costs nothing. A read that a crash cut off ends when its end is recorded.
    """
    most = round(private.budget.epsilon * MICRO)
    micro = _choose_epsilon(asked, most, grant)
    key = _question_key(grant, private)
    kept = tx.noised_answers.get(grant.agreement_id, key)
    if kept is not None and kept.epsilon_micro >= micro:
        return NoiseCharge(
            key, kept.epsilon_micro, 0, tx.noised_answers.read_spent(grant.agreement_id), most, kept.answer
        )
    if tx.reads.has(tx.noised_answers.read_charged_read(grant.agreement_id, key), consumer=grant.consumer):
        raise AnswerInProgress(
            "the same question is being answered now, and that takes longer than this read may wait; ask again in a "
            "moment: an answer of as much epsilon costs nothing then"
        )
    if not tx.noised_answers.spend(grant.agreement_id, micro=micro, most=most):
        left = max(0, most - tx.noised_answers.read_spent(grant.agreement_id)) / MICRO
        raise Limited(
            f"the answer costs epsilon {micro / MICRO:g} and {left:g} of {most / MICRO:g} is left; ask for less, "
            "ask again what was answered already (that costs nothing), or negotiate a new budget",
            code="privacy_budget_spent",
            rule=coverage.rule_path(grant.contract, "epsilonBudget"),
        )
    tx.noised_answers.record_question(grant.agreement_id, key, read_id=asked.query_id, now=tx.now)
    return NoiseCharge(key, micro, micro, tx.noised_answers.read_spent(grant.agreement_id), most)


async def retry_until_answered(begin: Callable[[], Awaitable[_T]], *, seconds: float, waits: Callable[[], bool]) -> _T:
    """Return the result of `begin`, retried while another read computes the same answer.

    Raises: AnswerInProgress after `seconds`, or once `waits` is false.
    """
    until, pause = time.monotonic() + seconds, _PAUSE
    while True:
        try:
            return await begin()
        except AnswerInProgress:
            if time.monotonic() + pause > until:
                raise
            await asyncio.sleep(pause)
            if not waits():
                raise
        pause = min(2 * pause, _PAUSE_MAX)


async def load_or_compute_answer(
    store: Store, pool: Pool, job: Job, grant: ReadGrant, charged: NoiseCharge, *, watch: Watch
) -> bytes:
    """Return the noised table as an Arrow stream: the kept one, or a new one from a worker.

    A new one is stored before it is returned. If a better one was stored meanwhile, that one is returned.
    """
    if charged.answer is not None:
        return charged.answer
    async with pool.run(job, watch=watch) as result:
        parts: list[bytes | memoryview] = [result.schema]
        size = len(result.schema)
        async for frame in result:
            parts.append(frame.payload)
            size += frame.nbytes
            if size > _ANSWER_MAX:
                raise Limited(
                    f"the answer is larger than {_ANSWER_MAX} bytes; group by fewer dimensions", code="groups_max"
                )
    answer = b"".join((*parts, END_OF_STREAM))
    return await store.write(
        lambda tx: tx.noised_answers.store(
            grant.agreement_id, charged.key, micro=charged.micro, answer=answer, now=tx.now
        )
    )


def build_noise_plan(private: PrivateQuery, charged: NoiseCharge) -> dict[str, object]:
    """Return the arguments of the worker for noise (`query.noise.add`). Delta is spent in proportion to epsilon."""
    noise, budget = private.noise, private.budget
    return {
        "columns": dict(noise.columns),
        "keys": noise.keys,
        "rows": noise.rows,
        "groups": _GROUPS_MAX,
        "epsilon": charged.micro / MICRO,
        "delta": budget.delta * charged.micro / charged.most,
    }


def _choose_epsilon(asked: ReadRequest, most: int, grant: ReadGrant) -> int:
    if asked.epsilon is None:
        return max(1, most // _USUAL_SHARE)
    micro = math.ceil(asked.epsilon * MICRO) if math.isfinite(asked.epsilon) else 0
    if not 1 <= micro <= most:
        raise Invalid(
            f"expected an epsilon above 0 and at most the agreement's {most / MICRO:g}, got {asked.epsilon}",
            code="epsilon_invalid",
            rule=coverage.rule_path(grant.contract, "epsilonBudget"),
        )
    return micro


def _question_key(grant: ReadGrant, private: PrivateQuery) -> str:
    """Return a key that is equal for questions with the same answer: dataset, version, permission and question."""
    text = f"{grant.held.dataset.id}\n{grant.held.version.digest}\n{grant.contract.permission}\n{private.question}"
    return hashlib.sha256(text.encode()).hexdigest()
