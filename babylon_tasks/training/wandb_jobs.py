"""The backend that trains on W&B: what it accepts, what it is sent, and the state of its jobs.

A job continues after the worker that posted it has died, and a second POST would start a second
job. So the intent is committed before the POST, and the job's id right after it, under the lease's
token; the next holder of the model's lease continues from these rows.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Container, Sequence
from pathlib import Path

import msgspec

from babylon_tasks.errors import NotRecorded, UserError
from babylon_tasks.records.scores import no_signal
from babylon_tasks.records.steps import JobNote, OpenJob, Remote, Sample, StepResult
from babylon_tasks.records.windows import State, Window
from babylon_tasks.settings import DAY, Settings
from babylon_tasks.store import attempts, jobs, leases, transitions
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.database import Connection
from babylon_tasks.store.jobs import Job, Sent
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper
from babylon_tasks.work.samples import StepSamples

log = logging.getLogger(__name__)

# The base models that W&B documents; its client would send any name.
OFFERED = ("OpenPipe/Qwen3-14B-Instruct", "Qwen/Qwen3-30B-A3B-Instruct-2507")

_NOT_RECORDED = (
    "no trace has the log-probabilities of its responses, which W&B needs: let the agents ask the "
    "endpoint, which remembers them (CAPTURE_CALLS), set LOGPROBS_URL to a server that can give "
    "them (and LOGPROBS_MODEL for calls without a version), or TRAINER=torch to train here without "
    "them"
)

_samples = msgspec.json.Decoder(Sample)


def require_usable(settings: Settings) -> None:
    """Refuse settings with which W&B cannot train, before anything is sent.

    Raises:
        UserError: The key is missing or malformed, or W&B does not offer the base model.
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


class WandbBackend:
    """A `TrainingBackend` whose trainer process posts a job to W&B and waits for it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._name = context.lineage.name
        self._job: Job | None = None  # the open one, as the attempt found it
        self._job_is_wanted = False  # it trains exactly this attempt's windows and traces
        self._sent: Sent = {}

    def require_usable(self) -> None:
        """Refuse settings with which W&B cannot train.

        Raises:
            UserError: As the function `require_usable` does.
        """
        require_usable(self._context.settings)

    def next_windows(self, tx: Connection, excluded: Container[str]) -> list[Window] | None:
        """Return the windows of a job that may still run: they train together, before others."""
        windows = _windows_of_open_job(tx, self._name)
        if windows is None or any(window.window_id in excluded for window in windows):
            return None
        return windows

    def on_attempt(self, tx: Connection, token: int) -> None:
        """Follow the open job, if there is one, under this attempt's token."""
        jobs.follow(tx, self._name, token)

    def prepare(self, keeper: LeaseKeeper, samples: StepSamples, path: Path) -> StepSamples:
        """Leave out calls without log-probabilities, and windows that then have no signal.

        The samples in `path` are written again. The windows left out are tried again later, since
        a change of settings can help; with LOGPROBS_URL they are scored again, which asks that
        server. No window is left out if a job at W&B already trains exactly these windows.

        Raises:
            NotRecorded: No window remains.
            LeaseLost: Another worker has taken over.
            ServerUnavailable: Postgres does not answer.
        """
        with self._context.database.transaction() as tx:
            self._job = jobs.read_open(tx, self._name)
        self._job_is_wanted = self._job is not None and self._job.windows == _sent(samples)
        kept, unrecorded = self._leave_out(keeper, samples, path)
        _put_back(self._context, keeper, unrecorded)
        if not kept.windows:
            raise NotRecorded(_NOT_RECORDED)
        self._sent = _sent(kept)
        return kept

    def remote(self) -> Remote:
        """Return the address of W&B, and the job that is open there."""
        settings, job = self._context.settings, self._job
        return Remote(
            url=settings.serverless_url,
            entity=settings.wandb_entity,
            project=settings.wandb_project,
            usd_per_job=settings.serverless_usd_per_job,
            lost_seconds=settings.serverless_lost_seconds,
            job=OpenJob(job.remote_step, job.job_id, job.age_seconds, self._job_is_wanted)
            if job
            else None,
        )

    def note_job(self, keeper: LeaseKeeper, step: int, note: JobNote) -> None:
        """Store the trainer's note about its job; repeat this while Postgres is away.

        Raises:
            LeaseLost: Another worker has taken over; nothing was written.
        """
        claim, sent = keeper.claim, self._sent
        lease_seconds = self._context.settings.lease_seconds

        def write(tx: Connection) -> None:
            leases.renew(tx, [claim.lease], lease_seconds)
            jobs.note(tx, claim, step, sent, note)

        keeper.until_written(f"note the job's state {note.state!r}", write)
        details = [f"job {note.job_id}"] if note.job_id else []
        details += [note.why] if note.why else []
        log.info("W&B job for step %d: %s", step, " ".join([note.state, *details]))

    def still_running(self, windows: Sequence[Window]) -> list[Window]:
        """Return the windows of a failed step that W&B may still train.

        The step may have had more windows, which were left out before the job was posted. The
        result is empty if the open job is about other windows too.

        Raises:
            ServerUnavailable: Postgres does not answer.
        """
        with self._context.database.transaction() as tx:
            job = jobs.read_open(tx, self._name)
        if job is None:
            return []
        revs = {window_id: sent["score_rev"] for window_id, sent in job.windows.items()}
        running = [window for window in windows if revs.get(window.window_id) == window.score_rev]
        return running if len(running) == len(revs) else []

    def cost_usd(self, result: StepResult) -> float | None:
        """Return the job's price, if it is set; GPU_USD_PER_HOUR is not for W&B's GPUs."""
        return result.cost_usd

    def _leave_out(
        self, keeper: LeaseKeeper, samples: StepSamples, path: Path
    ) -> tuple[StepSamples, list[Window]]:
        """Return the samples that can be trained, and the windows that cannot."""
        kept = StepSamples(ages=samples.ages, sources=samples.sources, attached=samples.attached)
        unrecorded: list[Window] = []
        windows = {window.window_id: window for window in samples.windows}
        new = path.with_suffix(".recorded")
        with path.open("rb") as lines, new.open("wb") as to:
            decoded = (_samples.decode(line) for line in lines)
            for window_id, group in itertools.groupby(decoded, lambda sample: sample.window_id):
                keeper.beat()
                everything = list(group)
                recorded = [each for each in map(_recorded, everything) if each.calls]
                rewards = [sample.reward for sample in recorded]
                if no_signal(rewards, self._context.settings.min_reward_spread):
                    if not self._job_is_wanted:
                        unrecorded.append(windows[window_id])
                        continue
                    recorded = everything
                to.writelines(msgspec.json.encode(sample) + b"\n" for sample in recorded)
                kept.windows.append(windows[window_id])
                for sample in recorded:  # a trajectory's own score comes before what it did badly
                    kept.rewards.setdefault(sample.trajectory_id, sample.reward)
                funnel = kept.funnels[window_id] = samples.funnels[window_id].copy()
                calls = sum(len(sample.calls) for sample in recorded)
                funnel["without_logprobs"], funnel["sent"] = funnel["sent"] - calls, calls
        new.replace(path)
        return kept, unrecorded


def _windows_of_open_job(tx: Connection, model_name: str) -> list[Window] | None:
    """Return the windows of the open job, which must be claimed together, before all others.

    None if there is no job, or if its result can no longer become a step: a window was scored again
    or ended, or the step failed and its windows must be split. Empty if one of the windows waits
    for its next attempt.
    """
    job = jobs.read_open(tx, model_name)
    if job is None:
        return None
    windows = window_rows.read(tx, model_name, list(job.windows))
    together = len(job.windows)
    scored = [
        w
        for w in windows
        if w.state == State.SCORED
        and w.score_rev == job.windows[w.window_id]["score_rev"]
        and (w.may_share is None or w.may_share >= together)
    ]
    if len(scored) < together:
        return None
    ready = window_rows.scored(tx, model_name, list(job.windows))
    return ready if len(ready) == together else []


def _sent(samples: StepSamples) -> Sent:
    """Return what identifies each window's samples: equal values mean equal traces.

    (A trace that was rewritten after it was scored never gets here.)
    """
    return {
        window.window_id: {
            "score_rev": window.score_rev,
            "gone": samples.funnels[window.window_id]["gone"],
        }
        for window in samples.windows
    }


def _recorded(sample: Sample) -> Sample:
    calls = [call for call in sample.calls if call.logprobs is not None]
    return msgspec.structs.replace(sample, calls=calls)


def _put_back(context: Context, keeper: LeaseKeeper, windows: Sequence[Window]) -> None:
    if not windows:
        return
    settings, claim = context.settings, keeper.claim
    ids = [window.window_id for window in windows]
    with context.database.transaction() as tx:
        leases.renew(tx, [claim.lease], settings.lease_seconds)  # refuses a zombie
        token = claim.lease.token
        attempts.end(tx, claim.model_name, [token], Ending.GIVEN_BACK, _NOT_RECORDED, ids)
        for window in windows:
            transitions.put_back(
                tx,
                claim,
                window,
                # Scoring again asks the server again; it may have been away.
                state=State.DUE if settings.logprobs_url else State.SCORED,
                last_error=_NOT_RECORDED,
                wait_seconds=(settings.retry_seconds, DAY),
            )
