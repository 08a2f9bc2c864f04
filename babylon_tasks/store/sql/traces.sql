-- Traces (asyncpg: positional parameters).

-- declare_traces --
-- The rows of one window that count, and those that are for exams alone ("isEvaluation", whatever
-- "isTrainingData" says): either kind has an index of its own, so they are looked up apart. A text above
-- the limit is not sent. "stepsJson" may be text, json or jsonb, and an id of any type: each is read as
-- text.
DECLARE traces NO SCROLL CURSOR FOR
SELECT r."trajectoryId"::text AS trajectory_id,
       r."agentId"::text AS agent_id,
       octet_length(r."stepsJson"::text) AS bytes,
       CASE WHEN octet_length(r."stepsJson"::text) <= $2 THEN r."stepsJson"::text END AS steps,
       extract(epoch FROM r."createdAt")::float8 AS written_at,
       r.evaluation
  FROM (SELECT t."trajectoryId", t."agentId", t."scenarioId", t."stepsJson", t."createdAt",
               false AS evaluation
          FROM public.trajectories t
         WHERE "isTrainingData" AND NOT "isEvaluation"
           AND (COALESCE("windowId", left("scenarioId", 16)) COLLATE "C") = $1
        UNION ALL
        SELECT t."trajectoryId", t."agentId", t."scenarioId", t."stepsJson", t."createdAt",
               true AS evaluation
          FROM public.trajectories t
         WHERE "isEvaluation"
           AND (COALESCE("windowId", left("scenarioId", 16)) COLLATE "C") = $1) r
 WHERE NOT COALESCE("scenarioId" LIKE ANY ($3::text[]), false)
   AND ($4::text[] IS NULL OR "agentId" LIKE ANY ($4::text[]))
 ORDER BY "createdAt", "trajectoryId"

-- fetch_traces --
-- Few at a time: each may have MAX_TRACE_BYTES.
FETCH FORWARD 4 FROM traces
