"""Upstream's entry point: `MODE=list|single|continuous python -m babylon_tasks`.

It claims windows and runs the stages as the workers do, in this process and one trainer process
below it. It needs neither Redis nor running workers; running workers do no harm.
"""

from __future__ import annotations

import signal
import sys
import time

from babylon_tasks import pipeline
from babylon_tasks.cli import run
from babylon_tasks.cli.common import ready_context, ready_fleet
from babylon_tasks.cli.progress_line import Progress, progress
from babylon_tasks.cockpit.story import no_windows
from babylon_tasks.edge import require_our_workers
from babylon_tasks.errors import NotRecorded, Retryable, UserError
from babylon_tasks.intake import stage as intake
from babylon_tasks.intake.refusals import given_up
from babylon_tasks.local import ask
from babylon_tasks.logs import configure_logging
from babylon_tasks.records.windows import State, Window, due_at
from babylon_tasks.settings import Settings, load_settings
from babylon_tasks.settings.group import load
from babylon_tasks.settings.run_arguments import RunArguments
from babylon_tasks.store import steps, training_batches
from babylon_tasks.store import windows as window_rows
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import require_still_active
from babylon_tasks.work.signals import interrupt, stop

try:
    from workers.gpu import slots
    from workers.gpu.client import TrainerProcess
    from workers.lifecycle import check_trainer
    from workers.unable import Unable
    from workers.watch.step_log import StepLogger, log_steps
except ModuleNotFoundError:
    if code := run(require_our_workers):
        sys.exit(code)
    raise

_HELD_ELSEWHERE_SECONDS = 1.0


def main() -> int:
    """Run the mode that MODE names; `single` without it.

    Raises:
        UserError: Training is not allowed, the trainer's packages are missing, or the mode failed.
    """
    settings, arguments = load_settings(), load(RunArguments)
    configure_logging(settings.log_level, settings.log_format)
    if arguments.mode == "list":
        return list_ready(settings)
    settings.require_training_allowed()
    check_trainer(settings)
    return single(settings, arguments) if arguments.mode == "single" else continuous(settings)


def list_ready(settings: Settings) -> int:
    """Print the windows that a step could take now.

    Raises:
        UserError: There is none; the message says why.
    """
    context = ready_context(settings)
    with context.database.transaction() as tx:
        listed = window_rows.listing(tx, context.lineage.name, context.settings)
    ready = [window for window in listed if window.can_train]
    if not ready:
        raise no_windows(context, listed)
    print(f"Ready windows ({len(ready)}):")
    for window in ready:
        print(f"  {window.window_id}: {window.agents} agents")
    return 0


def single(settings: Settings, arguments: RunArguments) -> int:
    """Train one window, alone, and ask the new version a question.

    Raises:
        UserError: The lineage is paused, no window is ready, the named one cannot be trained, or
            the model cannot be asked; the message says why.
    """
    signal.signal(signal.SIGTERM, interrupt)
    context = ready_context(settings)
    context.lineage.require_active()
    window = _choose_window(context, arguments)
    print(f"Training on: {window.window_id}", flush=True)
    if window.state != State.TRAINED:
        with progress("claiming the window") as shown:
            window = _work_off(context, window, arguments.model_version, shown)
    if window.state != State.TRAINED or window.trained_step is None:
        why = window.reason or window.last_error
        raise UserError(f"window {window.window_id} is {window.state}: {why}")
    with context.database.transaction() as tx:
        step = steps.read(tx, context.lineage.name, window.trained_step)
    assert step is not None
    if step.given_up_at is not None:
        raise UserError(given_up(window))
    where = step.inference_name or step.files()
    print(f"Model: {context.lineage.name}-{step.version} (step {step.step}): {where}", flush=True)
    with progress("asking the new version"):
        if step.inference_name:
            answer = ask.ask_wandb(step.inference_name)
        else:
            with ask.serving({}) as url:
                answer = ask.ask(url, f"{context.lineage.name}@{step.step}")
    print(f"Response: {answer}", flush=True)
    log_steps(settings)
    return 0


def continuous(settings: Settings) -> int:
    """Train whatever becomes due, until Ctrl-C or SIGTERM.

    Raises:
        UserError: A person must change something.
    """
    signal.signal(signal.SIGTERM, stop)
    fleet = ready_fleet(settings)
    trainer, unable = slots.make_trainer(0), Unable()
    step_logger = StepLogger(settings)
    next_look = 0.0
    try:
        while True:
            worked = False
            try:
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + settings.produce_seconds
                    pipeline.produce(*fleet.active())
                for context in fleet.in_turn("score"):
                    worked |= bool(pipeline.score(context))
                for context in fleet.in_turn("train", unable.lineages()):
                    if _train(context, trainer, unable):
                        worked = True
                        step_logger.step_committed()
                for context in fleet.to_publish():
                    pipeline.publish(context)
            # A server does not answer, another worker took over, or traces lack log-probabilities.
            except (Retryable, NotRecorded) as error:
                print(error, file=sys.stderr, flush=True)
            if not worked:
                time.sleep(min(settings.sweep_seconds, settings.produce_seconds))
    finally:
        trainer.close()


def _train(context: Context, trainer: TrainerProcess, unable: Unable) -> bool:
    """Train a step of a lineage; tell whether it was committed.

    Raises:
        UserError: A person must change something for MODEL_NAME; another lineage is left out.
    """
    try:
        return pipeline.train(context, trainer) is not None
    except (Retryable, NotRecorded):
        raise
    except UserError as error:
        if context.lineage.own_settings:
            raise
        print(f"{context.lineage.name}: {error}", file=sys.stderr, flush=True)
        unable.failed(context.lineage.name, context.settings.retry_seconds)
        return False


def _choose_window(context: Context, arguments: RunArguments) -> Window:
    """Return the window that BATCH_ID or WINDOW_ID names, else the newest one that is ready.

    Raises:
        UserError: There is no such request, or no window is ready.
        SystemExit: The request's hour has not ended and settled yet.
    """
    settings = context.settings
    window_id, batch_id = arguments.window_id, arguments.batch_id
    if batch_id is not None:
        if not settings.primary:
            raise UserError(
                "BATCH_ID is a request of the app, and this model answers none (PRIMARY)"
            )
        with context.database.transaction() as tx:
            request = training_batches.read(tx, batch_id)
        if request is None:
            raise UserError(f"BATCH_ID={batch_id}: no such row in training_batches")
        window_id = window_id or request.window_id
    if window_id is None:
        with context.database.transaction() as tx:
            listed = window_rows.listing(tx, context.lineage.name, settings)
        ready = [window for window in listed if window.can_train]
        if not ready:
            raise no_windows(context, listed)
        window_id = ready[0].window_id
    if batch_id is not None and intake.must_wait(context, window_id):
        # The app asks for the hour that is still running: its request waits for it.
        raise SystemExit(_waits(settings, batch_id, window_id))
    window = pipeline.enqueue(context, window_id)
    if batch_id is not None:
        intake.answer_request(context, batch_id, window)
    return window


def _waits(settings: Settings, batch_id: str, window_id: str) -> int:
    """Print when the request's window can be trained, and return the exit code."""
    moment = due_at(window_id, settings.settle_seconds)
    print(
        f"Request {batch_id} waits for window {window_id}, which ends and settles at "
        f"{moment:%Y-%m-%d %H:%M} UTC: running workers, or MODE=continuous, will train it then"
    )
    return 0


def _work_off(
    context: Context, window: Window, requested_version: str | None, shown: Progress
) -> Window:
    """Score and train one window; while other workers hold it, wait for them."""
    only = [window.window_id]
    trainer = slots.make_trainer(0)
    try:
        while window.state in (State.DUE, State.SCORED):
            if window.state == State.DUE:
                worked = bool(pipeline.score(context, only, limit=1, on_doing=shown.tell))
            else:
                worked = bool(
                    pipeline.train(
                        context,
                        trainer,
                        only=only,
                        requested_version=requested_version,
                        on_doing=shown.tell,
                    )
                )
            with context.database.transaction() as tx:
                (window,) = window_rows.read(tx, context.lineage.name, only)
            if not worked:
                shown.say(f"{window.window_id} is {window.state}: another worker holds it")
                require_still_active(context)  # three steps that fail their exam pause it
                time.sleep(_HELD_ELSEWHERE_SECONDS)
    finally:
        trainer.close()
    pipeline.publish(context)
    return window


if __name__ == "__main__":
    sys.exit(run(main))
