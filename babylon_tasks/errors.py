"""One tree of errors, split by what the caller can do about them.

All of them carry only their message, so they survive pickling between processes.
"""


class BabylonError(Exception):
    """Base of every error this project raises on purpose."""


class UserError(BabylonError):
    """A person must change something; the message says what, in one line. Exit code 2."""


class Retryable(BabylonError):
    """The same work may succeed later: a server away, a process killed."""


class Final(BabylonError):
    """The same work will fail again; the window is set aside with this message."""


class ServerUnavailable(UserError, Retryable):
    """Postgres or Redis does not answer. A command says so; a worker waits for the next sweep."""


class ServerRefused(ServerUnavailable):
    """Postgres is there, but DATABASE_URL does not fit it: a person must change one of them.

    A role does not start (exit code 2). One that runs waits as in an outage, since a failover may
    refuse it for a moment.
    """


class RemoteUnavailable(UserError, Retryable):
    """W&B does not answer or is overloaded; no window is to blame."""


class NotRecorded(UserError):
    """No trace of these windows has the log-probabilities that W&B needs; they wait."""


class MachineAtFault(UserError):
    """Different windows failed here with the same error: nothing more is tried on this machine."""


class LineageAtFault(MachineAtFault):
    """The same for one lineage; others may go on."""


class LeaseLost(Retryable):
    """The lease ran out or went to another holder: the work done since then must be discarded."""


class BadWeights(Final):
    """The files of a step are there, and no answer can be computed with them."""


class DamagedRow(Final):
    """Postgres cannot read a row of the window."""


class SlowRead(Retryable):
    """The window's rows come too slowly, from a server that answers others."""


class StaleClaim(Retryable):
    """The rows a commit relied on have changed since they were read; claim again."""


class StoreUnavailable(UserError):
    """A remote CHECKPOINT_STORE does not take a checkpoint now."""


class CheckpointUnreadable(UserError):
    """This node cannot read the checkpoint that the database names."""


class CheckpointRemoved(UserError):
    """The step's files were removed, as the retention settings say."""


class TrainerDied(Retryable):
    """The trainer process ended or stalled in the middle of a step."""


class JudgeUnavailable(Retryable):
    """The judge cannot be asked now; no window is to blame. Try again after `wait_seconds`."""

    def __init__(self, message: str, wait_seconds: float = 0.0) -> None:
        super().__init__(message, wait_seconds)
        self.wait_seconds = wait_seconds

    def __str__(self) -> str:
        return str(self.args[0])


class JudgePaused(JudgeUnavailable):
    """The judge works, but this task's time is over: another task continues."""


class JudgeFault(Retryable):
    """The judge gave no usable answer, even after several tries and with smaller groups."""
