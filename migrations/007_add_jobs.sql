-- Jobs that the serverless trainer posts to W&B: a row is written before, and gets the job's id right
-- after.
--
-- Runs any number of times.

CREATE TABLE IF NOT EXISTS rl.jobs (
    id          uuid        NOT NULL PRIMARY KEY DEFAULT gen_random_uuid(),
    model_name  text        NOT NULL,
    step        integer     NOT NULL,                -- of ours: the step that the job is for
    token       bigint      NOT NULL,                -- of the attempt that follows it now
    windows     jsonb       NOT NULL,                -- window id → what of it was sent
    remote_step integer     NOT NULL,                -- where W&B's model stood before
    job_id      text,                                -- NULL: whether it exists is not known
    state       text        NOT NULL DEFAULT 'intent'
        CHECK (state IN ('intent', 'posted', 'done', 'refused', 'failed', 'lost', 'abandoned')),
    why         text,                                -- why it did not become a step
    intended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    posted_at   timestamptz,
    ended_at    timestamptz,                         -- NULL: it may be running
    CHECK ((ended_at IS NULL) = (state IN ('intent', 'posted')))
);
COMMENT ON TABLE rl.jobs IS
    'Training jobs at W&B, written before each is posted: what a dead worker had begun is found here, '
    'and followed to its end by the next holder of the model''s lease.';

-- No second job of a model while the first may run.
CREATE UNIQUE INDEX IF NOT EXISTS jobs_open_idx ON rl.jobs (model_name) WHERE ended_at IS NULL;
