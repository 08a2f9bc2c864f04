-- What the endpoint remembers: its answers, which version answered whom, and the app's counters.

-- copy_calls --
COPY rl.calls (at, model_name, step, prompt_hash, response_hash, agent, backend, finish_reason,
               token_ids, logprobs, prompt_tokens, latency_ms, first_token_ms) FROM STDIN

-- add_assignments --
-- In the order of the key: two endpoints that write the same rows never wait for each other in a circle.
INSERT INTO rl.assignments AS a (model_name, window_id, agent, step, answers, first_at, last_at,
                                 failed, malformed, pinned)
SELECT * FROM unnest(%(lineages)s::text[], %(windows)s::text[], %(agents)s::text[], %(steps)s::int[],
                     %(answers)s::bigint[], %(first)s::timestamptz[], %(last)s::timestamptz[],
                     %(failed)s::bigint[], %(malformed)s::bigint[], %(pinned)s::bigint[])
 ORDER BY 1, 2, 3, 4
ON CONFLICT (model_name, window_id, agent, step) DO UPDATE
   SET answers = a.answers + excluded.answers, first_at = LEAST(a.first_at, excluded.first_at),
       last_at = GREATEST(a.last_at, excluded.last_at), failed = a.failed + excluded.failed,
       malformed = a.malformed + excluded.malformed, pinned = a.pinned + excluded.pinned

-- any_calls --
SELECT EXISTS (SELECT FROM rl.calls) AS any

-- find_calls --
-- For each call the answer of the same agent, and of these the last before its trace was written, if
-- there is one. What another agent that has traces was answered is that agent's: other models may have
-- said the same. (Its LIMIT is there so that no plan reads all traces at once.) An answer that was
-- given very often is looked for among some.
SELECT w.n, c.model_name, c.step, c.finish_reason,
       CASE WHEN %(with_tokens)s THEN c.token_ids END AS token_ids,
       CASE WHEN %(with_tokens)s THEN c.logprobs END AS logprobs
  FROM unnest(%(prompts)s::bytea[], %(responses)s::bytea[], %(agents)s::text[], %(written)s::float8[])
       WITH ORDINALITY AS w (prompt_hash, response_hash, agent, written_at, n)
 CROSS JOIN LATERAL (
       SELECT * FROM (
              SELECT * FROM rl.calls
               WHERE prompt_hash = w.prompt_hash AND response_hash = w.response_hash
               LIMIT 1000) AS same
        WHERE same.agent IS NULL OR same.agent = w.agent
           OR (SELECT true FROM public.trajectories t WHERE t."agentId" = same.agent LIMIT 1) IS NULL
        ORDER BY same.agent IS NOT DISTINCT FROM w.agent DESC,
                 COALESCE(extract(epoch FROM at)::float8 <= w.written_at, true) DESC,
                 abs(extract(epoch FROM at)::float8 - COALESCE(w.written_at, 'infinity')), id DESC
        LIMIT 1) AS c

-- forget_old_calls --
-- The oldest come first; ids are given out in the order of time, nearly.
DELETE FROM rl.calls
 WHERE id IN (SELECT id FROM rl.calls ORDER BY id LIMIT %(at_once)s)
   AND at < rl.now() - make_interval(secs => %(seconds)s)

-- span_of_calls --
-- Never less than the number of rows.
SELECT COALESCE(max(id) - min(id) + 1, 0) AS calls FROM rl.calls

-- count_calls --
SELECT count(*) AS calls FROM rl.calls

-- forget_oldest_calls --
DELETE FROM rl.calls WHERE id IN (SELECT id FROM rl.calls ORDER BY id LIMIT %(at_once)s)

-- forget_assignments --
-- By the index: of each name in turn.
WITH RECURSIVE names AS (
    SELECT min(model_name) AS name FROM rl.assignments
     UNION ALL
    SELECT (SELECT min(a.model_name) FROM rl.assignments a WHERE a.model_name > names.name)
      FROM names WHERE names.name IS NOT NULL
)
DELETE FROM rl.assignments
 WHERE ctid = ANY (ARRAY(SELECT a.ctid
                           FROM names
                           JOIN rl.assignments a ON a.model_name = names.name
                            AND a.window_id < to_char((rl.now() - make_interval(days => %(days)s))
                                                      AT TIME ZONE 'utc', 'YYYY-MM-DD"T"HH24:MI')
                          LIMIT %(at_once)s))

-- most_assignments --
-- Never less than the number of rows, of which each takes more than 64 bytes.
SELECT pg_relation_size('rl.assignments') / 64 AS calls

-- count_assignments --
SELECT count(*) AS calls FROM rl.assignments

-- forget_oldest_assignments --
DELETE FROM rl.assignments
 WHERE ctid = ANY (ARRAY(SELECT ctid FROM rl.assignments ORDER BY window_id LIMIT %(at_once)s))

-- one_forgets --
-- Until the transaction ends.
SELECT pg_try_advisory_xact_lock(hashtext('rl.calls')) AS mine

-- wait_for_nobody --
-- The app may lock its whole table, to change it.
SELECT set_config('lock_timeout', '100ms', true)

-- add_inferences --
-- Of the primary lineage's versions. Those whose row the app has locked are returned: the next time.
WITH added AS MATERIALIZED (
    SELECT a.model_name, a.step, a.answers, a.model_name || '-' || s.version AS "modelId"
      FROM unnest(%(lineages)s::text[], %(steps)s::int[], %(answers)s::bigint[])
           AS a (model_name, step, answers)
      JOIN rl.lineages l ON l.name = a.model_name AND l.is_primary
      JOIN rl.steps s ON s.model_name = a.model_name AND s.step = a.step AND s.version IS NOT NULL
), known AS MATERIALIZED (
    SELECT m.id, m."modelId" FROM public.trained_models m
     WHERE m."modelId" IN (SELECT "modelId" FROM added)
), free AS MATERIALIZED (
    SELECT m.id, m."modelId" FROM public.trained_models m
     WHERE m.id IN (SELECT id FROM known) FOR UPDATE SKIP LOCKED
), counted AS (
    UPDATE public.trained_models m
       SET "totalInferences" = LEAST(m."totalInferences" + added.answers, 2147483647)
      FROM added JOIN free USING ("modelId")
     WHERE m.id = free.id
)
SELECT added.model_name, added.step FROM added JOIN known USING ("modelId")
 WHERE "modelId" NOT IN (SELECT "modelId" FROM free)

-- count_agents --
-- Of the primary lineage's versions, those that answered in these windows. A row that the app has
-- locked is passed over: the next time.
WITH agents AS MATERIALIZED (
    SELECT a.model_name || '-' || s.version AS "modelId", count(DISTINCT a.agent) AS agents
      FROM rl.lineages l
      JOIN rl.assignments a ON a.model_name = l.name AND a.window_id = ANY (%(windows)s)
      JOIN rl.steps s ON s.model_name = a.model_name AND s.step = a.step AND s.version IS NOT NULL
     WHERE l.is_primary
     GROUP BY 1
), own AS MATERIALIZED (
    SELECT s.model_name || '-' || s.version AS "modelId"
      FROM rl.lineages l JOIN rl.steps s ON s.model_name = l.name AND s.version IS NOT NULL
     WHERE l.is_primary
), changed AS MATERIALIZED (
    SELECT m.id, COALESCE(agents.agents, 0) AS agents
      FROM own JOIN public.trained_models m USING ("modelId") LEFT JOIN agents USING ("modelId")
     WHERE m."agentsUsing" IS DISTINCT FROM COALESCE(agents.agents, 0)
       FOR UPDATE OF m SKIP LOCKED
)
UPDATE public.trained_models m SET "agentsUsing" = changed.agents FROM changed WHERE m.id = changed.id
