"""Settings: where the steps' files are kept, and for how long."""

from __future__ import annotations

from pydantic import Field

from babylon_tasks.settings.group import INT32, PER_LINEAGE, Group


class Checkpoints(Group):
    """Checkpoints.

    [training.md](training.md#which-checkpoints-stay) says what is never removed, whatever the
    settings are. The default of 72 matches the default `LOOKBACK_HOURS` at one step an hour: every
    version that answered in a window that may still train keeps its files. With the default
    `BASE_MODEL` and `LORA_RANK` a step takes 53 MB, so 72 steps take 3.8 GB. The process that
    trains decides by its own settings, so give all GPU workers the same.

    A bucket must exist; nothing makes it. Its user needs `s3:ListBucket`, `s3:GetObject`,
    `s3:PutObject`, `s3:DeleteObject` and `s3:AbortMultipartUpload`. Keys come from where AWS's own
    tools look: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`, or the machine's
    role. For a server that is not AWS's (MinIO, Ceph, R2) set
    `AWS_ENDPOINT_URL=https://host:9000`, scheme included, and, if it refuses uploads for their
    checksums, `AWS_REQUEST_CHECKSUM_CALCULATION=when_required`. All of these belong in the
    environment of GPU workers and endpoints. (Docker Compose hands `.env` on. A process that
    you start yourself does not read them there.)

    A server that refuses connections is reported after at most about 3 seconds; a server that
    accepts them and does not answer, after about a minute. Fetched files stay in
    `$TMPDIR/babylon-tasks-{uid}/checkpoints`, and may be deleted at any time.
    """

    checkpoint_store: str = Field(
        ".babylon/checkpoints",
        pattern=r"^(s3://.+|[^:]+)$",
        description="Where the steps are kept, one folder a step: a folder that all GPU nodes "
        "share, or `s3://bucket/prefix`, which needs the extra `s3` and `AWS_*` variables. Docker "
        "Compose has a volume at the default.",
    )
    keep_checkpoints: int = Field(
        72,
        ge=1,
        le=INT32,
        description="How many of the newest steps keep their files. Older files are removed before "
        "the next step, but never those of the served version or the one before it.",
        json_schema_extra=PER_LINEAGE,
    )
    keep_every: int | None = Field(
        None,
        ge=1,
        le=INT32,
        description="Steps whose number is a multiple of this keep their files as well; `1` keeps "
        "all.",
        json_schema_extra=PER_LINEAGE,
    )
