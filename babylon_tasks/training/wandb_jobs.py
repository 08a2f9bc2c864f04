"""W&B as the trainer: what it takes, what it is sent, and what is remembered of its jobs.

A job goes on when whoever posted it dies, and W&B has no key that would make a second POST
harmless. So the intent is committed before the POST and the job's id right after it, under the
lease's token; the next holder of the model's lease goes on with what it finds.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from babylon_tasks.errors import NotRecorded, ServerUnavailable, UserError
from babylon_tasks.records.steps import JobNote, OpenJob, Remote, Sample
from babylon_tasks.records.windows import State, Window
from babylon_tasks.scoring import filters
from babylon_tasks.settings import DAY, Settings
from babylon_tasks.store import attempts, jobs, leases
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.database import Connection
from babylon_tasks.store.jobs import Job, Sent
from babylon_tasks.store.steps import Step
from babylon_tasks.training.samples import StepSamples
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper

log = logging.getLogger(__name__)

# What W&B documents; its client sends any other name too.
OFFERED = ("OpenPipe/Qwen3-14B-Instruct", "Qwen/Qwen3-30B-A3B-Instruct-2507")

_NOTE_AGAIN_SECONDS = 1.0
_NOT_RECORDED = (
    "no trace has the log-probabilities of its responses, which W&B needs: set LOGPROBS_URL to a "
    "server that can tell them (LOGPROBS_MODEL, where calls name no version), or TRAINER=torch to "
    "train here without"
)

_samples = msgspec.json.Decoder(Sample)


def require_usable(settings: Settings) -> None:
    """Refuse what W&B would not train, before anything is sent.

    Raises:
        UserError: No key, one that cannot be, or a base model that W&B does not offer.
    """
    if settings.wandb_api_key is None:
        raise UserError("WANDB_API_KEY is not set: TRAINER=serverless trains on W&B with it")
    if not re.fullmatch(r"[!-~]+", settings.wandb_api_key.get_secret_value()):
        raise UserError("WANDB_API_KEY is no key: it has spaces, or characters beyond ASCII")
    if settings.base_model not in OFFERED:
        raise UserError(
            f"W&B does not train BASE_MODEL={settings.base_model}: set it to "
            f"{' or '.join(OFFERED)}, or TRAINER=torch to train on this machine"
        )


def require_same_kind(settings: Settings, parent: Step | None) -> None:
    """Refuse to go on here from weights that W&B holds, or there from weights that are here.

    Raises:
        UserError: The head was made by a trainer of the other kind.
    """
    if parent is None or (parent.trainer == "serverless") == (settings.trainer == "serverless"):
        return
    raise UserError(
        f"step {parent.step} of {settings.model_name} was trained by {parent.trainer}, which "
        f"{settings.trainer} cannot go on from: set TRAINER={parent.trainer}, or MODEL_NAME to a "
        "new name"
    )


def windows_of_open_job(tx: Connection, model_name: str) -> list[Window] | None:
    """The windows that the open job is about, to be claimed together and before all others.

    None where there is no such job, or its result cannot become a step any more: a window was
    scored again or ended, or the step failed and its windows must part. Empty where one of them
    waits for its next attempt.
    """
    job = jobs.read_open(tx, model_name)
    if job is None:
        return None
    found = window_rows.read(tx, model_name, list(job.windows))
    together = len(job.windows)
    scored = [
        w
        for w in found
        if w.state == State.SCORED
        and w.score_rev == job.windows[w.window_id]["score_rev"]
        and (w.may_share is None or w.may_share >= together)
    ]
    if len(scored) < together:
        return None
    ready = window_rows.scored(tx, model_name, list(job.windows))
    return ready if len(ready) == together else []


def goes_on(context: Context, windows: Sequence[Window]) -> list[Window]:
    """Those of a failed step's windows that W&B may still be training; none where it does not.

    The step may have begun with more, which were left out before the job was posted.
    """
    if context.settings.trainer != "serverless":
        return []
    with context.database.transaction() as tx:
        job = jobs.read_open(tx, context.settings.model_name)
    if job is None:
        return []
    sent = {window_id: said["score_rev"] for window_id, said in job.windows.items()}
    found = [window for window in windows if sent.get(window.window_id) == window.score_rev]
    return found if len(found) == len(sent) else []


def sent_of(material: StepSamples) -> Sent:
    """What of each window is trained on: the same twice only if its traces are the same.

    A trace that was rewritten after it was scored never comes this far.
    """
    return {
        window.window_id: {
            "score_rev": window.score_rev,
            "gone": material.funnels[window.window_id]["gone"],
        }
        for window in material.windows
    }


def remote_of(settings: Settings, job: Job | None, wanted: bool) -> Remote:
    """Where to train, for the trainer process."""
    return Remote(
        url=settings.serverless_url,
        entity=settings.wandb_entity,
        project=settings.wandb_project,
        usd_per_job=settings.serverless_usd_per_job,
        lost_seconds=settings.serverless_lost_seconds,
        job=OpenJob(job.remote_step, job.job_id, job.age_seconds, wanted) if job else None,
    )


def leave_out_unrecorded(
    context: Context, keeper: LeaseKeeper, material: StepSamples, path: Path, wanted: bool
) -> StepSamples:
    """Leave out calls without log-probabilities, and windows that teach nothing without them.

    The samples in `path` are written anew. The windows left out are tried again later, since what
    is missing is a setting's to mend; with LOGPROBS_URL they are scored again, and so asked about.
    A job about these windows that is `wanted` was sent what it needs: none of them is left out.

    Raises:
        NotRecorded: No window is left.
    """
    kept = StepSamples([], {}, {}, material.ages)
    unrecorded: list[Window] = []
    windows = {window.window_id: window for window in material.windows}
    new = path.with_suffix(".recorded")
    with path.open("rb") as lines, new.open("wb") as to:
        samples = (_samples.decode(line) for line in lines)
        for window_id, group in itertools.groupby(samples, lambda sample: sample.window_id):
            keeper.beat()
            everything = list(group)
            recorded = [each for each in map(_recorded, everything) if each.calls]
            rewards = [sample.reward for sample in recorded]
            if filters.no_signal(rewards, context.settings.min_reward_spread):
                if not wanted:
                    unrecorded.append(windows[window_id])
                    continue
                recorded = everything
            to.writelines(msgspec.json.encode(sample) + b"\n" for sample in recorded)
            kept.windows.append(windows[window_id])
            kept.rewards.update({sample.trajectory_id: sample.reward for sample in recorded})
            funnel = kept.funnels[window_id] = material.funnels[window_id].copy()
            calls = sum(len(sample.calls) for sample in recorded)
            funnel["without_logprobs"], funnel["sent"] = funnel["sent"] - calls, calls
    new.replace(path)
    _put_back(context, keeper, unrecorded)
    if not kept.windows:
        raise NotRecorded(_NOT_RECORDED)
    return kept


def _recorded(sample: Sample) -> Sample:
    calls = [call for call in sample.calls if call.logprobs is not None]
    return msgspec.structs.replace(sample, calls=calls)


def _put_back(context: Context, keeper: LeaseKeeper, windows: Sequence[Window]) -> None:
    if not windows:
        return
    settings, held = context.settings, keeper.held
    with context.database.transaction() as tx:
        leases.renew(tx, held, settings.lease_seconds)  # a zombie has no say
        attempts.end(
            tx,
            settings.model_name,
            [held[0].token],
            Ending.GIVEN_BACK,
            _NOT_RECORDED,
            [window.window_id for window in windows],
        )
        for window in windows:
            window_rows.put_back(
                tx,
                window,
                model_name=settings.model_name,
                # The server is asked while a window is scored, and may have been away.
                state=State.DUE if settings.logprobs_url else State.SCORED,
                last_error=_NOT_RECORDED,
                least_seconds=settings.retry_seconds,
                most_seconds=DAY,
                holder=context.holder,
            )


def note_job(context: Context, keeper: LeaseKeeper, step: int, sent: Sent, note: JobNote) -> None:
    """Write down what the trainer says about its job, again and again while the lease lives.

    Raises:
        LeaseLost: Another worker has taken over; nothing was written.
    """
    settings, (lease,) = context.settings, keeper.held
    while True:
        try:
            with context.database.transaction() as tx:
                leases.renew(tx, [lease], settings.lease_seconds)
                jobs.note(tx, settings.model_name, step, lease.token, sent, note)
        except ServerUnavailable as error:
            log.warning("cannot note the job's state %r yet: %s", note.state, error)
            time.sleep(_NOTE_AGAIN_SECONDS)
            keeper.beat()
        else:
            break
    told = [f"job {note.job_id}"] if note.job_id else []
    told += [note.why] if note.why else []
    log.info("W&B job for step %d: %s", step, " ".join([note.state, *told]))
