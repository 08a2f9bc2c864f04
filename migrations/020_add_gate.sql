-- The gate: exams of steps, and experiments of versions among the agents.
--
-- A lineage is gated where PUBLISH is `gate` or `manual`. Then no worker of an earlier release lets a
-- step serve: it would not ask for an exam.
--
-- Runs any number of times.

ALTER TABLE rl.heads ADD COLUMN IF NOT EXISTS gated boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN rl.heads.gated IS
    'A step serves only after it passed its exam, or by hand (PUBLISH is not `always`).';

CREATE TABLE IF NOT EXISTS rl.exams (
    model_name    text        NOT NULL,
    step          integer     NOT NULL,
    served_step   integer     NOT NULL,              -- it is compared with this one
    state         text        NOT NULL CHECK (state IN ('open', 'passed', 'failed')),
    reason        text,                              -- one sentence
    window_ids    text[]      NOT NULL DEFAULT '{}', -- that it was examined on, before they train
    trajectories  integer     NOT NULL DEFAULT 0,
    metrics       jsonb       NOT NULL DEFAULT '{}', -- name → what both versions have, with intervals
    attempts      integer     NOT NULL DEFAULT 0,    -- how often it was begun
    token         bigint      NOT NULL,              -- the lease under which it was begun last
    holder        text        NOT NULL,
    opened_at     timestamptz NOT NULL,
    decided_at    timestamptz,
    seconds       float8,
    logged_at     timestamptz,                       -- since then it is on Weights & Biases
    PRIMARY KEY (model_name, step),
    CHECK ((state = 'open') = (decided_at IS NULL))
);
COMMENT ON TABLE rl.exams IS
    'One row per examined step: how it does beside the version that serves, on windows that did not '
    'train it, and whether it may serve.';

CREATE TABLE IF NOT EXISTS rl.experiments (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_name  text        NOT NULL,
    step        integer     NOT NULL,
    served_step integer     NOT NULL,
    state       text        NOT NULL
        CHECK (state IN ('running', 'promoted', 'rolled_back', 'undecided', 'stopped')),
    reason      text        NOT NULL,                -- one sentence
    percent     float8      NOT NULL,                -- of the agents, from the last decision on
    first_window text COLLATE "C" NOT NULL,          -- the first in which the step answers
    holder      text        NOT NULL,
    started_at  timestamptz NOT NULL,
    ended_at    timestamptz,
    logged_at   timestamptz,                         -- since then its end is on Weights & Biases
    CHECK ((state = 'running') = (ended_at IS NULL))
);
CREATE UNIQUE INDEX IF NOT EXISTS experiments_running_idx
    ON rl.experiments (model_name) WHERE ended_at IS NULL;
CREATE INDEX IF NOT EXISTS experiments_model_idx ON rl.experiments (model_name, step);
COMMENT ON TABLE rl.experiments IS
    'Versions that passed their exam and answer a part of the agents: what these earn decides. At '
    'most one of a lineage runs.';

CREATE TABLE IF NOT EXISTS rl.experiment_looks (
    experiment_id bigint  NOT NULL REFERENCES rl.experiments (id),
    window_id     text COLLATE "C" NOT NULL,
    decision      text    NOT NULL,                  -- go on, more agents, promoted, …
    evidence      jsonb   NOT NULL,                  -- of this window, and of all up to it
    holder        text    NOT NULL,
    at            timestamptz NOT NULL,
    PRIMARY KEY (experiment_id, window_id)
);
COMMENT ON TABLE rl.experiment_looks IS
    'What an experiment showed in each window, and what was decided after it.';

ALTER TABLE rl.shares ADD COLUMN IF NOT EXISTS draw text;
COMMENT ON COLUMN rl.shares.draw IS
    'The agents of the share are drawn anew for each window, by this text; NULL: always the same.';

ALTER TABLE rl.scores ADD COLUMN IF NOT EXISTS exam_only boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN rl.scores.exam_only IS
    'The trajectory examines versions, and never trains one.';

ALTER TABLE rl.assignments ADD COLUMN IF NOT EXISTS failed bigint NOT NULL DEFAULT 0;
ALTER TABLE rl.assignments ADD COLUMN IF NOT EXISTS malformed bigint NOT NULL DEFAULT 0;
ALTER TABLE rl.assignments ADD COLUMN IF NOT EXISTS pinned bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN rl.assignments.pinned IS
    'Answers that were asked for by the version''s own name: they say nothing in an experiment.';
COMMENT ON COLUMN rl.assignments.failed IS 'Requests that ended with an error of the version.';
COMMENT ON COLUMN rl.assignments.malformed IS 'Answers that FORM_CHECK refuses.';

-- The newest step that passed its exam and may serve next. What was experimented with is not tried
-- again, nor anything before it. What follows a step that did harm waits until the head has moved
-- back behind that; at W&B it cannot, and what follows is tried.
CREATE OR REPLACE FUNCTION rl.candidate(lineage text) RETURNS integer
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT s.step
      FROM rl.heads h
      JOIN rl.steps s ON s.model_name = h.model_name AND s.step > h.published_step
      JOIN rl.exams e ON e.model_name = s.model_name AND e.step = s.step AND e.state = 'passed'
     WHERE h.model_name = $1 AND s.given_up_at IS NULL AND s.removed_at IS NULL
       AND s.version IS NOT NULL AND s.checkpoint IS NOT NULL
       AND NOT EXISTS (
           SELECT FROM rl.experiments x
             JOIN rl.steps t ON t.model_name = x.model_name AND t.step = x.step
            WHERE x.model_name = s.model_name AND x.step > h.published_step
              AND x.ended_at IS NOT NULL AND t.given_up_at IS NULL
              AND (x.step >= s.step OR x.state = 'rolled_back' AND t.trainer <> 'serverless'))
     ORDER BY s.step DESC LIMIT 1
$$;
COMMENT ON FUNCTION rl.candidate(text) IS
    'The newest step of a lineage that passed its exam and may serve next; NULL: none.';

-- By the tokens, since a clock may go back. The pause that follows from failures is no change by a person.
CREATE OR REPLACE FUNCTION rl.failed_exams(lineage text) RETURNS integer
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT count(*)::integer
      FROM rl.exams e
      LEFT JOIN rl.lineages l ON l.name = e.model_name
     WHERE e.model_name = $1 AND e.state = 'failed'
       AND e.token > COALESCE((SELECT max(p.token) FROM rl.exams p
                                WHERE p.model_name = $1 AND p.state = 'passed'), 0)
       AND (l.changed_at IS NULL OR l.changed_by = 'the gate' OR e.decided_at > l.changed_at)
$$;
COMMENT ON FUNCTION rl.failed_exams(text) IS
    'How many exams in a row the steps of a lineage failed, since a person last changed it.';

-- Before published_step moves: a worker of release 0.1.0 does not know that promotion is paused, and
-- asks for no exam.
CREATE OR REPLACE TRIGGER keep_promoted BEFORE UPDATE OF published_step ON rl.heads FOR EACH ROW
    WHEN ((OLD.promotion_paused_at IS NOT NULL OR OLD.gated)
          AND NEW.published_step = NEW.step AND NEW.published_step <> OLD.published_step)
    EXECUTE FUNCTION rl.keep_promoted();
