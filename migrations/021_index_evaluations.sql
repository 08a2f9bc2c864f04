-- transactional: false
--
-- The index by which a window's rows with "isEvaluation" are found: they examine versions, and train
-- none. That of 003 lacks them; they are few, and so is what this index holds. As there, a query uses it
-- only if it repeats the expression, the collation and the predicate literally. It is built
-- CONCURRENTLY, as that of 003; after an interrupted build by hand, run
--     DROP INDEX CONCURRENTLY public.rl_trajectories_evaluation_idx;

CREATE INDEX CONCURRENTLY IF NOT EXISTS rl_trajectories_evaluation_idx
    ON public."trajectories" ((COALESCE("windowId", left("scenarioId", 16)) COLLATE "C"))
    WHERE "isEvaluation";
