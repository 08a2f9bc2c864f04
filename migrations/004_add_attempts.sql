-- The result of every attempt, the files that an attempt may have left, and whether queues move.
--
-- Runs any number of times.

CREATE TABLE IF NOT EXISTS rl.attempts (
    model_name text             NOT NULL,
    window_id  text COLLATE "C" NOT NULL,
    token      bigint           NOT NULL,            -- of the lease; a step's windows share it
    stage      text             NOT NULL CHECK (stage IN ('score', 'train')),
    holder     text             NOT NULL,
    started_at timestamptz      NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz,                          -- NULL: under way, or its worker died
    outcome    text
        CHECK (outcome IN ('done', 'skipped', 'error', 'given_back', 'lost')),
    error      text,
    PRIMARY KEY (model_name, window_id, token),
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
);
COMMENT ON TABLE rl.attempts IS
    'Every attempt at scoring or training a window: who, when, and how it ended.';
CREATE INDEX IF NOT EXISTS attempts_open_idx
    ON rl.attempts (model_name, stage) WHERE ended_at IS NULL;

-- A step whose worker died is tried again with half as many windows, until the one at fault is alone.
ALTER TABLE rl.windows ADD COLUMN IF NOT EXISTS may_share integer;
COMMENT ON COLUMN rl.windows.may_share IS
    'How many windows may train together with this one, itself included; NULL: any number.';

CREATE TABLE IF NOT EXISTS rl.unfinished_checkpoints (
    checkpoint text        NOT NULL PRIMARY KEY,
    model_name text        NOT NULL,
    token      bigint      NOT NULL,
    nonce      uuid        NOT NULL,                 -- also in the folder: only then is it ours
    started_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE rl.unfinished_checkpoints IS
    'Written before a checkpoint''s files and deleted with the commit that names them; what stays '
    'was left by a worker that died, and is removed by the next holder of the model''s lease.';

CREATE TABLE IF NOT EXISTS rl.canaries (
    model_name text        NOT NULL,
    queue      text        NOT NULL,
    holder     text        NOT NULL,                 -- the worker that answered
    ran_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (model_name, queue)
);
COMMENT ON TABLE rl.canaries IS
    'When a message last came through Redis, a queue and a worker to Postgres.';
