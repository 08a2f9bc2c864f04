-- transactional: false
--
-- The index by which the windows to train are found, on the app's busiest table. It is built
-- CONCURRENTLY: the app goes on reading and writing meanwhile. That cannot happen inside a
-- transaction, so this file holds exactly one statement.
--
-- The key is "the window of a row": "windowId", or where that is null the first 16 characters of
-- "scenarioId" (older rows: `2025-01-15T10:00`, alone or as a prefix). COLLATE "C" makes range
-- scans over ids right under any collation of the database. INCLUDE names the columns of the
-- expression, which an index-only scan needs; listing windows then never touches the traces.
-- A query uses it only if it repeats the expression, the collation and the predicate literally.
--
-- The build waits for every older transaction, however long that lasts.
-- pg_stat_progress_create_index shows which one, and `babylon migrate` prints it. An interrupted
-- build leaves an invalid index, which IF NOT EXISTS takes for a good one. `babylon migrate` drops
-- it first; by hand, run
--     DROP INDEX CONCURRENTLY public.rl_trajectories_window_idx;

CREATE INDEX CONCURRENTLY IF NOT EXISTS rl_trajectories_window_idx
    ON public."trajectories"
        ((COALESCE("windowId", left("scenarioId", 16)) COLLATE "C"), "agentId")
    INCLUDE ("windowId", "scenarioId")
    WHERE "isTrainingData" AND NOT "isEvaluation";
