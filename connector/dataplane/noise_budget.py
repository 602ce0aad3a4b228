"""Answers with noise: the budget is charged before the question runs, and the same question is answered once.

Between the gate and the stream of such a read. The noised table is small; it is kept in the owner's database, and
what its reader gets is made of it by the public statement (`policies.enforce.noised_query`). Knows no transport.
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
from connector.errors import BadInput, Busy, Limited
from connector.store import Store, Transaction
from connector.usage.held_agreement import ReadGrant
from policies.contracts import coverage

if TYPE_CHECKING:
    from policies.enforce.noised_query import PrivateQuery

_T = TypeVar("_T")
MICRO = 1_000_000  # the ledger counts millionths of epsilon: whole numbers add up exactly
_USUAL_SHARE = 10  # an answer whose epsilon nobody chose spends a tenth of the budget
# Of the answer with its noise, never of the groups that there truly are: how many these are is nobody's to know.
_GROUPS_MAX = 100_000
_ANSWER_MAX = 16 * 2**20
_PAUSE, _PAUSE_MAX = 0.05, 0.5  # until it is looked again whether another read has answered the same question


class AnswerInProgress(Busy):
    """Another read is to answer the same question."""


@dataclass(frozen=True, slots=True)
class NoiseCharge:
    """What one answer costs: `micro` epsilon it is worth, `paid` of them now (none for a repeat), `answer` if kept."""

    key: str
    micro: int
    paid: int
    spent: int  # of the whole budget, this answer included
    most: int
    answer: bytes | None = None

    def note(self) -> str:
        """For the reader and the log."""
        cost = f"{self.paid / MICRO:g} spent for it" if self.paid else "a repeat, nothing spent"
        return f"noise of epsilon {self.micro / MICRO:g} ({cost}; {self.spent / MICRO:g} of {self.most / MICRO:g} used)"


def charge(tx: Transaction, asked: ReadRequest, grant: ReadGrant, private: PrivateQuery) -> NoiseCharge:
    """Find the kept answer, or take this one's epsilon from the budget; Limited where it is not there any more.
    BeingAnswered while another read is to answer the question: where its answer is as good, it will cost nothing. One
    that a crash cut off is over when its end is recorded."""
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
    """What `begin` gives; where another read is to answer the same question, once that has, or has ended without.

    BeingAnswered where it has not after `seconds`, or nobody `waits` for it any more.
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
    """The noised table as an Arrow stream: the kept one, or a new one from a worker, kept before anybody sees it:
    where a better one is kept by then, that."""
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
    """What the worker needs to add the noise (`query.noise.add`). Delta is spent in the same share as epsilon."""
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
        raise BadInput(
            f"expected an epsilon above 0 and at most the agreement's {most / MICRO:g}, came {asked.epsilon}",
            code="epsilon_invalid",
            rule=coverage.rule_path(grant.contract, "epsilonBudget"),
        )
    return micro


def _question_key(grant: ReadGrant, private: PrivateQuery) -> str:
    """The same for every question with the same answer: dataset, version, permission, and what is asked."""
    text = f"{grant.held.dataset.id}\n{grant.held.version.digest}\n{grant.contract.permission}\n{private.question}"
    return hashlib.sha256(text.encode()).hexdigest()
