-- transactional: false
--
-- One version of a lineage is `deployed`: 016 made the app's rows so, and its triggers keep them so;
-- this index makes it sure. A lineage's rows are those whose "modelId" is its name, `-` and the
-- version. Only rows that we wrote count, which have their "modelId" as id: other trainers' rows are
-- the app's. It is built CONCURRENTLY, as that of 003; after an interrupted build by hand, run
--     DROP INDEX CONCURRENTLY public.rl_trained_models_deployed_idx;

CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS rl_trained_models_deployed_idx
    ON public."trained_models" (left("modelId", - length(version) - 1))
    WHERE status = 'deployed' AND id = "modelId";
