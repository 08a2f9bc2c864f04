-- What cannot be read depends on the lineage (its MAX_TRACE_BYTES), so its rows are keyed by it.
--
-- Workers of release 0.1.0 go on writing rl.quarantine ON CONFLICT (trajectory_id), which needs a
-- unique index of exactly that column. So new workers write into a table that inherits from it: who
-- reads rl.quarantine reads both. A row without a lineage is of release 0.1.0. It was written in the
-- transaction that scored its window, so it belongs to the lineage whose rl.windows.scored_at is its
-- `at`. Until it is upgraded it still deletes other lineages' rows of the window that it scores; these
-- rows are for people, nothing is decided by them.
--
-- Runs any number of times.

ALTER TABLE rl.quarantine ADD COLUMN IF NOT EXISTS model_name text;
COMMENT ON COLUMN rl.quarantine.model_name IS
    'The lineage that cannot read it; NULL: written by release 0.1.0.';
COMMENT ON TABLE rl.quarantine IS
    'Trajectories set aside because they cannot be read, each with its reason; rows with a lineage '
    'are those of rl.quarantine_by_lineage.';

DO $$
BEGIN
    IF to_regclass('rl.quarantine_by_lineage') IS NOT NULL THEN
        RETURN;
    END IF;
    CREATE TABLE rl.quarantine_by_lineage (
        model_name      text  NOT NULL,
        trajectory_hash bytea NOT NULL,
        PRIMARY KEY (model_name, trajectory_hash)
    ) INHERITS (rl.quarantine);
    COMMENT ON TABLE rl.quarantine_by_lineage IS
        'The rows of rl.quarantine that have a lineage. Read them there; they are written here.';
    COMMENT ON COLUMN rl.quarantine_by_lineage.trajectory_hash IS
        'SHA-256 of trajectory_id, which alone may be as long as an index can hold.';
    CREATE INDEX quarantine_by_lineage_window_idx
        ON rl.quarantine_by_lineage (window_id, model_name);

    -- So far a window's last scorer wrote for all lineages that had scored it. One statement, so that
    -- no row of an old worker comes between.
    WITH moved AS (
        DELETE FROM ONLY rl.quarantine q
         WHERE EXISTS (SELECT FROM rl.windows w
                        WHERE w.window_id = q.window_id AND w.scored_at IS NOT NULL)
        RETURNING q.trajectory_id, q.window_id, q.reason, q.detail, q.at
    )
    INSERT INTO rl.quarantine_by_lineage (model_name, trajectory_hash, trajectory_id, window_id,
                                          reason, detail, at)
    SELECT w.model_name, sha256(convert_to(m.trajectory_id, 'UTF8')), m.trajectory_id, m.window_id,
           m.reason, m.detail, m.at
      FROM moved m
      JOIN rl.windows w ON w.window_id = m.window_id AND w.scored_at IS NOT NULL;
END
$$;
