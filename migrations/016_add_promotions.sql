-- Which version answers: every change of it, and versions that take a share of the agents.
--
-- Runs any number of times.

ALTER TABLE rl.heads ADD COLUMN IF NOT EXISTS promotion_paused_at timestamptz;
COMMENT ON COLUMN rl.heads.promotion_paused_at IS
    'Since then no new step is promoted by itself: after a rollback, until a person resumes it.';

CREATE TABLE IF NOT EXISTS rl.promotions (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_name text        NOT NULL,
    kind       text        NOT NULL
        CHECK (kind IN ('automatic', 'promote', 'rollback', 'app', 'reset', 'pause', 'resume')),
    from_step  integer     NOT NULL,
    to_step    integer     NOT NULL,
    holder     text        NOT NULL,                 -- who
    why        text        NOT NULL,
    at         timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS promotions_model_idx ON rl.promotions (model_name, id);
COMMENT ON TABLE rl.promotions IS
    'Every change of the step that a lineage''s name answers with: who, when, from what and why.';

CREATE TABLE IF NOT EXISTS rl.shares (
    model_name text         NOT NULL,
    starts_at  timestamptz  NOT NULL,                -- the start of a window
    step       integer      NOT NULL,
    percent    numeric(5,2) NOT NULL CHECK (percent BETWEEN 0 AND 100),
    holder     text         NOT NULL,
    why        text         NOT NULL,
    at         timestamptz  NOT NULL,
    PRIMARY KEY (model_name, starts_at)
);
COMMENT ON TABLE rl.shares IS
    'A second version that answers so many percent of a lineage''s agents, from the start of a '
    'window on until the next row''s; 0 percent ends it. The newest that has started counts.';

-- The endpoint asks every second whether files went.
CREATE INDEX IF NOT EXISTS steps_removed_idx
    ON rl.steps (model_name, removed_at) WHERE removed_at IS NOT NULL;
