-- Lineages: one row each, a tree of steps, and whose turn it is.
--
-- Workers of release 0.1.0 go on working beside new ones. They write steps without a parent, which
-- means the step before; they refuse a lineage whose head was moved back, since they would give a
-- number twice (`babylon models reset` leaves them a sentence in rl.heads.base_model).
--
-- Runs any number of times.

CREATE TABLE IF NOT EXISTS rl.lineages (
    name          text        NOT NULL PRIMARY KEY,
    base_model    text        NOT NULL,              -- hub id or folder
    base_revision text,                              -- NULL: pinned by the first step
    is_primary    boolean     NOT NULL DEFAULT false, -- the app knows it
    own_settings  boolean     NOT NULL DEFAULT false,
    state         text        NOT NULL DEFAULT 'active'
        CHECK (state IN ('active', 'paused', 'retired')),
    forked_from   text        REFERENCES rl.lineages (name),
    forked_step   integer     CHECK (forked_step >= 0),
    config        jsonb       NOT NULL DEFAULT '{}'  -- setting → text, instead of the environment's
        CHECK (jsonb_typeof(config) = 'object'
               AND NOT jsonb_path_exists(config, '$.* ? (@.type() != "string")')),
    created_by    text        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    changed_by    text,
    changed_at    timestamptz,
    CHECK ((forked_from IS NULL) = (forked_step IS NULL))
);
COMMENT ON TABLE rl.lineages IS
    'One row per lineage: what it starts from, how its recipe differs from the settings, and '
    'whether it is served.';
COMMENT ON COLUMN rl.lineages.own_settings IS
    'Made by workers of that MODEL_NAME: its settings are in their environment, and only they serve '
    'it. Otherwise every worker of this database serves it.';

-- What release 0.1.0 knows by the name of its head alone.
INSERT INTO rl.lineages (name, base_model, own_settings, created_by)
SELECT model_name, base_model, true, 'migration 011' FROM rl.heads
ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS rl.turns (
    model_name text        NOT NULL,
    stage      text        NOT NULL CHECK (stage IN ('score', 'train')),
    taken_at   timestamptz NOT NULL,
    PRIMARY KEY (model_name, stage)
) WITH (fillfactor = 50);
COMMENT ON TABLE rl.turns IS
    'When a worker last took work of a lineage: the one that has waited longest is next.';
INSERT INTO rl.turns (model_name, stage, taken_at)
SELECT l.name, stage, now() FROM rl.lineages l CROSS JOIN unnest(ARRAY['score', 'train']) AS stage
ON CONFLICT DO NOTHING;

ALTER TABLE rl.steps ADD COLUMN IF NOT EXISTS parent_step integer CHECK (parent_step < step);
COMMENT ON COLUMN rl.steps.parent_step IS
    'The step whose weights it started from (0: the base model; the first step of a fork: one of '
    'forked_from). NULL: the step before, as release 0.1.0 writes it.';
UPDATE rl.steps SET parent_step = step - 1 WHERE parent_step IS NULL;

ALTER TABLE rl.steps ADD COLUMN IF NOT EXISTS given_up_at timestamptz;
COMMENT ON COLUMN rl.steps.given_up_at IS
    'When the head was moved to a step that does not come after this one; NULL: it is on the way '
    'from the root to the head.';

ALTER TABLE rl.steps ADD COLUMN IF NOT EXISTS recipe jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN rl.steps.recipe IS
    'Everything with which the step was made, so that it can be compared and made again.';

-- The head may move back while a newer step still serves.
ALTER TABLE rl.heads DROP CONSTRAINT IF EXISTS heads_check;
COMMENT ON TABLE rl.heads IS
    'One row per lineage: the step that the next one starts from, and the step that serves (0: the '
    'base model).';

CREATE TABLE IF NOT EXISTS rl.resets (
    model_name text        NOT NULL,
    token      bigint      NOT NULL,                 -- the lease under which it was made
    from_step  integer     NOT NULL,
    to_step    integer     NOT NULL,
    why        text        NOT NULL,
    holder     text        NOT NULL,
    at         timestamptz NOT NULL,
    PRIMARY KEY (model_name, token)
);
COMMENT ON TABLE rl.resets IS 'Every move of a head to another step by hand: who, when and why.';

-- Steps up to the one that a lineage was forked at are those of the lineage it was forked from. UNION,
-- not UNION ALL: it ends even if a row that was changed by hand leads back.
CREATE OR REPLACE FUNCTION rl.lineage_of_step(lineage text, step integer) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH RECURSIVE up AS (
        SELECT l.name, l.forked_from, l.forked_step FROM rl.lineages l WHERE l.name = $1
        UNION
        SELECT l.name, l.forked_from, l.forked_step
          FROM up JOIN rl.lineages l ON l.name = up.forked_from
         WHERE $2 <= up.forked_step
    )
    SELECT COALESCE(
        (SELECT name FROM up WHERE forked_step IS NULL OR $2 > forked_step LIMIT 1), $1)
$$;
COMMENT ON FUNCTION rl.lineage_of_step(text, integer) IS
    'The lineage in whose rows of rl.steps a step number of a lineage is.';
