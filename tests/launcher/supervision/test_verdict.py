"""The first cause of a failure among what all ranks report, and what follows."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from hybridtron.launcher.config import LaunchConfig
from hybridtron.launcher.supervision import verdict as verdicts
from hybridtron.launcher.supervision.attempts import History, Report, Verdict


def report(rank: int, **keys: Any) -> Report:
    return Report(
        **{"rank": rank, "node": f"node{rank // 2}", "time": 100.0, "code": 0, "step": 7, "phase": "train", **keys}
    )


def judge(*reports: Report, history: History | None = None, can_requeue: bool = True, **launch: Any) -> Verdict:
    by_rank = {each.rank: each for each in reports}
    return verdicts.judge(
        by_rank, 4, lambda rank: f"node{rank // 2}", LaunchConfig(**launch), history or History(), can_requeue
    )  # fmt: skip


DONE = {"finished": True, "phase": "end"}
LOST = {"code": 1, "weight": verdicts.LOST_PEER, "cause": "ended with exit code 1: connection closed by peer"}
KILLED = {"code": -9, "weight": verdicts.KILLED, "cause": "was killed (signal 9)"}
ENDED = {"code": None, "weight": verdicts.ENDED}
STALLED = {"code": None, "weight": verdicts.STALLED, "cause": "made no progress"}


def test_all_ranks_finish():
    verdict = judge(*(report(rank, **DONE) for rank in range(4)))
    assert (verdict.outcome, verdict.action, verdict.code, verdict.cause) == ("finished", "end", 0, None)


@pytest.mark.parametrize(
    ("number", "action"),
    [(signal.SIGUSR1, "requeue"), (signal.SIGUSR2, "requeue"), (signal.SIGTERM, "end"), (signal.SIGINT, "end")],
)
def test_only_a_scheduler_s_warning_queues_a_stopped_job_again(number, action):
    reports = [report(0, stop_signal=int(number)), *(report(rank) for rank in (1, 2, 3))]
    assert (judge(*reports).outcome, judge(*reports).action) == ("stopped", action)
    assert judge(*reports, can_requeue=False).action == "end"


def test_a_job_that_finishes_after_the_warning_is_not_queued_again():
    assert judge(*(report(rank, stop_signal=12, **DONE) for rank in range(4))).outcome == "finished"


def test_ranks_that_lose_their_peers_while_a_stopped_job_starts_are_no_failure():
    verdict = judge(report(0, stop_signal=12, code=-12), *(report(rank, **LOST) for rank in (1, 2, 3)))
    assert (verdict.outcome, verdict.action) == ("stopped", "requeue")


WATCHDOG = {"code": -6, "weight": verdicts.ABORTED, "cause": "was killed (signal 6)"}
CAUSES = {
    "killed": ([LOST, KILLED, ENDED, LOST], "rank 1 on node0 was killed"),
    "first killed": ([{**KILLED, "time": 3.0}, {**KILLED, "time": 2.0}, ENDED, ENDED], "rank 1 on node0"),
    "behind": ([STALLED, STALLED, {**ENDED, "step": 6}, STALLED], "rank 2 on node1 made no progress after step 6"),
    "behind in a step": ([STALLED, {**STALLED, "phase": "saved"}, STALLED, STALLED], "rank 1 on node0"),
    "no report": ([LOST, LOST, None, LOST], "rank 2 on node1 is gone"),
    "watchdog": ([STALLED, WATCHDOG, {**ENDED, "phase": "step done"}, ENDED], "rank 2 on node1 made no progress"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_the_first_cause_is_named(case):
    reports, cause = CAUSES[case]
    verdict = judge(*(report(rank, **keys) for rank, keys in enumerate(reports) if keys is not None))
    assert verdict.outcome == "failed"
    assert verdict.cause is not None
    assert verdict.cause.startswith(cause)


def test_a_failure_starts_again_within_the_budget():
    reports = [report(0, **KILLED), *(report(rank, **LOST) for rank in (1, 2, 3))]
    assert judge(*reports, history=History(2, False, 5), max_restarts=3).action == "restart"
    over = judge(*reports, history=History(3, False, 5), max_restarts=3)
    assert (over.action, over.code) == ("end", 1)
    assert over.cause is not None
    assert over.cause.endswith("restarted 3 times within 24 h, as often as max_restarts says")


BAD_INPUT = {"code": 2, "weight": verdicts.ERROR, "cause": "ended with exit code 2: error"}


def test_bad_input_never_starts_again():
    reports = [report(rank, **BAD_INPUT) for rank in range(4)]
    assert (judge(*reports).action, judge(*reports).code) == ("end", 2)


def test_a_node_that_does_not_see_the_data_is_a_failure_of_a_job_that_has_run():
    reports = [report(0, **ENDED), report(1, **ENDED), report(2, **BAD_INPUT), report(3, **ENDED)]
    assert judge(*reports, history=History(1, False, 7)).action == "restart"


def test_a_job_that_is_stopped_before_any_new_step_is_not_queued_again_for_ever():
    reports = [report(rank, stop_signal=12) for rank in range(4)]
    assert judge(*reports, history=History(3, False, 7), max_restarts=3).action == "end"
    assert judge(*reports, history=History(3, False, 6), max_restarts=3).action == "requeue"  # step 7 is new
    unsaved = [report(0, stop_signal=12, **KILLED), *(report(rank, **LOST) for rank in (1, 2, 3))]
    assert judge(*unsaved, history=History(2, False, 7), max_restarts=3).action == "requeue"
    assert judge(*unsaved, history=History(3, False, 7), max_restarts=3).action == "end"


@pytest.mark.parametrize(("code", "weight"), [(130, 0), (143, 0), (-15, 0), (1, verdicts.ERROR)])
def test_a_verb_that_ends_by_the_signal_passed_on_to_it_has_not_failed(code, weight):
    child = SimpleNamespace(process=SimpleNamespace(returncode=code), lost_peer=False, cause=None)
    child.last_line, child.step, child.phase, child.finished = (lambda: "error"), 0, "start", False
    assert verdicts.ended_report(0, "a", child, stop_signal=15).weight == weight


def test_a_supervisor_that_is_gone_needs_new_tasks():
    assert judge(report(0, **LOST), report(1, **LOST), report(3, **LOST)).action == "requeue"
