-- What the lineage's own versions did in a window, and how much of it badly.
--
-- Workers of release 0.1.0 score windows without it. Where one of them scores a window again that a
-- newer worker had scored, the counts of the earlier scoring stay; they are for people, nothing is
-- decided by them.
--
-- Runs any number of times.

ALTER TABLE rl.windows ADD COLUMN IF NOT EXISTS by_version jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN rl.windows.by_version IS
    'By version of the lineage: its runs, the LLM calls it answered in them, and those done badly.';
