-- The tables of training, in a schema of their own: upstream has tables with similar names in
-- `public`, and Prisma would report ours there as drift. Their names and columns are a contract
-- between all roles; later migrations only add to them.
--
-- Window ids (`YYYY-MM-DDTHH:00`) are COLLATE "C", so that their order is the order of time under
-- any collation of the database. All times are timestamptz by the database's clock.
--
-- Runs any number of times.

DO $$
BEGIN
    -- CREATE SCHEMA IF NOT EXISTS would need the right CREATE on the database even if `rl` exists.
    IF to_regnamespace('rl') IS NULL THEN
        CREATE SCHEMA rl;
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS rl.windows (
    window_id    text COLLATE "C" NOT NULL,
    model_name   text        NOT NULL,
    state        text        NOT NULL
        CHECK (state IN ('due', 'scored', 'trained', 'skipped', 'failed')),
    scorer       text,                               -- whose scores count: heuristic, ruler, …
    score_rev    integer     NOT NULL DEFAULT 0,     -- grows with each scoring; a commit names it
    attempts     integer     NOT NULL DEFAULT 0,     -- failures of this window alone
    not_before   timestamptz NOT NULL DEFAULT now(), -- when the next attempt may start
    last_error   text,
    reason       text,                               -- why it was skipped or failed
    batch_id     text,                               -- the app's request that waits for it
    trained_step integer,                            -- rl.steps.step
    agents       integer     NOT NULL DEFAULT 0,
    trajectories integer     NOT NULL DEFAULT 0,
    late         integer     NOT NULL DEFAULT 0,     -- came after scoring, never trained
    text_bytes   bigint      NOT NULL DEFAULT 0,     -- prompts and responses: a token estimate
    due_at       timestamptz NOT NULL DEFAULT now(),
    scored_at    timestamptz,
    trained_at   timestamptz,
    skipped_at   timestamptz,
    failed_at    timestamptz,
    claimed_by   text,                               -- who worked on it last
    PRIMARY KEY (window_id, model_name)
);
COMMENT ON TABLE rl.windows IS
    'One row per hour of agents and model lineage: how far its training is, and why not further.';

-- The sweep reads these every few seconds. Trained windows, which are nearly all, are not in them.
CREATE INDEX IF NOT EXISTS windows_due_idx
    ON rl.windows (model_name, window_id) WHERE state = 'due';
CREATE INDEX IF NOT EXISTS windows_scored_idx
    ON rl.windows (model_name, window_id) WHERE state = 'scored';
CREATE INDEX IF NOT EXISTS windows_batch_idx
    ON rl.windows (batch_id) WHERE batch_id IS NOT NULL;

CREATE TABLE IF NOT EXISTS rl.scores (
    trajectory_id text             NOT NULL,
    model_name    text             NOT NULL,
    scorer        text             NOT NULL,
    window_id     text COLLATE "C" NOT NULL,
    agent_id      text             NOT NULL,
    score         double precision NOT NULL
        CHECK (score >= 0 AND score <= 1 AND score <> 'NaN'),
    raw_score     double precision,                   -- before normalising to 0..1
    components    jsonb,                              -- the parts that make up the score
    reasoning     text,
    content_hash  text             NOT NULL,          -- of the prompts and responses judged
    judge_model   text,
    judge_tokens  integer,
    judge_usd     numeric,
    scored_at     timestamptz      NOT NULL DEFAULT now(),
    PRIMARY KEY (trajectory_id, model_name, scorer)
);
COMMENT ON TABLE rl.scores IS
    'What a scorer thought of one trajectory, of exactly which text, and what asking cost.';
CREATE INDEX IF NOT EXISTS scores_window_idx ON rl.scores (model_name, window_id, scorer);

CREATE TABLE IF NOT EXISTS rl.steps (
    model_name       text             NOT NULL,
    step             integer          NOT NULL CHECK (step >= 1),
    token            bigint           NOT NULL,           -- the lease under which it was made
    trainer          text             NOT NULL,
    window_ids       text[]           NOT NULL,
    trajectories     integer          NOT NULL,
    trainable_tokens bigint           NOT NULL,
    metrics          jsonb            NOT NULL DEFAULT '{}',  -- finite numbers only
    gpu_seconds      double precision NOT NULL DEFAULT 0,
    cost_usd         numeric,                             -- NULL: not known
    checkpoint       text,                                -- where the weights are
    version          text,                                -- vMAJOR.MINOR.PATCH
    started_at       timestamptz      NOT NULL,
    committed_at     timestamptz      NOT NULL DEFAULT now(),
    PRIMARY KEY (model_name, step),
    UNIQUE (model_name, token)                            -- one lease, one step
);
COMMENT ON TABLE rl.steps IS
    'Every committed training step: from which windows, by whom, at what cost, to which files.';

CREATE TABLE IF NOT EXISTS rl.heads (
    model_name     text    NOT NULL PRIMARY KEY,
    step           integer NOT NULL DEFAULT 0,
    published_step integer NOT NULL DEFAULT 0,
    base_model     text    NOT NULL,
    CHECK (published_step <= step)
);
COMMENT ON TABLE rl.heads IS
    'One row per model lineage: its newest step and the step that serves (0: the base model).';

CREATE TABLE IF NOT EXISTS rl.leases (
    resource    text        NOT NULL PRIMARY KEY,
    holder      text,
    token       bigint      NOT NULL,
    expires_at  timestamptz NOT NULL,
    acquired_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE rl.leases IS
    'Who may write a resource now; a write carries the token, so a late one matches no row.';

-- One sequence for all resources: no token is given twice, even after a lease row was deleted.
CREATE SEQUENCE IF NOT EXISTS rl.lease_tokens AS bigint;
COMMENT ON SEQUENCE rl.lease_tokens IS 'Fencing tokens of rl.leases; they only grow.';

CREATE TABLE IF NOT EXISTS rl.quarantine (
    trajectory_id text        NOT NULL PRIMARY KEY,
    window_id     text COLLATE "C",
    reason        text        NOT NULL,
    detail        text,
    at            timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE rl.quarantine IS
    'Trajectories set aside because they cannot be read, each with its reason.';
CREATE INDEX IF NOT EXISTS quarantine_window_idx ON rl.quarantine (window_id);
