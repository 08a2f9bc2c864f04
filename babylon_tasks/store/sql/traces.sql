-- Traces (asyncpg: positional parameters).

-- select_traces --
-- The rows of one window that count; a text above the limit is not sent.
SELECT "trajectoryId" AS trajectory_id,
       "agentId" AS agent_id,
       octet_length("stepsJson") AS bytes,
       CASE WHEN octet_length("stepsJson") <= $2 THEN "stepsJson" END AS steps
  FROM public.trajectories
 WHERE "isTrainingData" AND NOT "isEvaluation"
   AND (COALESCE("windowId", left("scenarioId", 16)) COLLATE "C") = $1
   AND NOT COALESCE("scenarioId" LIKE ANY ($3::text[]), false)
   AND ($4::text[] IS NULL OR "agentId" LIKE ANY ($4::text[]))
 ORDER BY "createdAt", "trajectoryId"
