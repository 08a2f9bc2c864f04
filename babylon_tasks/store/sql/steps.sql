-- Steps: the commit of one, its files, and its model version.

-- read_step --
-- What its ancestors gave up after the fork is on a fork's way all the same.
SELECT model_name, step, COALESCE(parent_step, step - 1) AS parent_step,
       CASE WHEN model_name = %(model_name)s THEN given_up_at END AS given_up_at, version,
       checkpoint, window_ids, trajectories, trainable_tokens, metrics, gpu_seconds,
       cost_usd, seconds, tokens_per_second, mfu, peak_memory_bytes, trainer, started_at,
       committed_at, removed_at
  FROM rl.steps
 WHERE model_name = rl.lineage_of_step(%(model_name)s, %(step)s) AND step = %(step)s

-- list_steps --
SELECT step, COALESCE(parent_step, step - 1) AS parent_step, given_up_at, version, trainer,
       trajectories, (metrics ->> 'loss')::float8 AS loss,
       (metrics ->> 'policy_change')::float8 AS policy_change, checkpoint, committed_at, removed_at
  FROM rl.steps WHERE model_name = %(model_name)s ORDER BY step DESC

-- step_of_token --
-- Whether the attempt with this token committed (asked after a lost connection).
SELECT step, version FROM rl.steps WHERE model_name = %(model_name)s AND token = %(token)s

-- begin_checkpoint --
-- Before the first file: if the process dies, the next holder of the lease knows the folder.
-- A conflict: the same note is written again, since the answer to COMMIT was lost.
INSERT INTO rl.unfinished_checkpoints (checkpoint, model_name, token, nonce, started_at)
VALUES (%(checkpoint)s, %(model_name)s, %(token)s, %(nonce)s, rl.clock_timestamp())
ON CONFLICT (checkpoint) DO NOTHING

-- finish_checkpoint --
DELETE FROM rl.unfinished_checkpoints WHERE checkpoint = %(checkpoint)s

-- unfinished_checkpoints --
-- In random order: folders that the store refuses to remove must not block the others.
SELECT checkpoint, nonce FROM rl.unfinished_checkpoints
 WHERE model_name = %(model_name)s ORDER BY random() LIMIT %(limit)s

-- steps_with_files --
SELECT step, given_up_at IS NOT NULL AS given_up FROM rl.steps
 WHERE model_name = %(model_name)s AND removed_at IS NULL

-- give_up_steps --
-- After it no row names the files: they are removed even if this process dies, if the folder has the
-- nonce. The app's rows are locked, so that none is deployed meanwhile. A row that the app has locked
-- is left for the next time, since nothing here may wait for the app.
WITH asked AS (
    SELECT step, version FROM rl.steps
     WHERE model_name = %(model_name)s AND step = ANY (%(steps)s)
       AND removed_at IS NULL AND nonce IS NOT NULL
), rows_of_app AS (
    SELECT "modelId" FROM public.trained_models
     WHERE "modelId" IN (SELECT %(model_name)s || '-' || version FROM asked)
), not_deployed AS (
    SELECT "modelId" FROM public.trained_models
     WHERE "modelId" IN (SELECT "modelId" FROM rows_of_app) AND status <> 'deployed'
       FOR UPDATE SKIP LOCKED
), going AS (
    SELECT step FROM asked
     WHERE %(model_name)s || '-' || version NOT IN (SELECT "modelId" FROM rows_of_app)
        OR %(model_name)s || '-' || version IN (SELECT "modelId" FROM not_deployed)
     ORDER BY step LIMIT %(limit)s
), gone AS (
    UPDATE rl.steps SET removed_at = rl.clock_timestamp()
     WHERE model_name = %(model_name)s AND step IN (SELECT step FROM going)
    RETURNING step, version, checkpoint, token, nonce
), archived AS (
    UPDATE public.trained_models m
       SET status = 'archived', "archivedAt" = rl.now() AT TIME ZONE 'utc',
           "updatedAt" = rl.now() AT TIME ZONE 'utc'
      FROM gone
     WHERE m."modelId" = %(model_name)s || '-' || gone.version
       AND m.status IN ('training', 'ready')
), noted AS (
    INSERT INTO rl.unfinished_checkpoints (checkpoint, model_name, token, nonce, started_at)
    SELECT checkpoint, %(model_name)s, token, nonce, rl.clock_timestamp() FROM gone
    ON CONFLICT DO NOTHING
)
SELECT step FROM gone

-- insert_step --
INSERT INTO rl.steps (model_name, step, parent_step, recipe, token, trainer, window_ids, trajectories, trainable_tokens,
                      metrics, gpu_seconds, cost_usd, checkpoint, nonce, version, seconds,
                      tokens_per_second, mfu, peak_memory_bytes, started_at, committed_at)
VALUES (%(model_name)s, %(step)s, %(expected_step)s, %(recipe)s, %(token)s, %(trainer)s, %(window_ids)s, %(trajectories)s,
        %(trainable_tokens)s, %(metrics)s, %(gpu_seconds)s, %(cost_usd)s, %(checkpoint)s,
        (SELECT nonce FROM rl.unfinished_checkpoints WHERE checkpoint = %(checkpoint)s),
        %(version)s,
        %(seconds)s || jsonb_build_object('commit', round(extract(epoch FROM
            rl.clock_timestamp() - rl.now())::numeric, 6)),
        %(tokens_per_second)s, %(mfu)s, %(peak_memory_bytes)s,
        rl.now() - make_interval(secs => %(total_seconds)s), rl.clock_timestamp())

-- steps_to_log --
SELECT s.model_name, s.step, COALESCE(s.parent_step, s.step - 1) AS parent_step, s.given_up_at,
       s.version, s.checkpoint, s.window_ids, s.trajectories, s.trainable_tokens, s.metrics,
       s.gpu_seconds, s.cost_usd, s.seconds, s.tokens_per_second, s.mfu, s.peak_memory_bytes,
       s.trainer, s.started_at, s.committed_at, s.removed_at,
       (SELECT COALESCE(jsonb_object_agg(f.name, f.total), '{}')
          FROM (SELECT e.key AS name, sum(e.value::bigint)::bigint AS total
                  FROM rl.windows w, jsonb_each_text(w.funnel) e
                 WHERE w.model_name = s.model_name AND w.window_id = ANY (s.window_ids)
                 GROUP BY e.key) f) AS funnel,
       (SELECT COALESCE(jsonb_object_agg(v.version, v.share), '{}')
          FROM (SELECT e.key AS version,
                       sum((e.value ->> 'badly')::float8) / sum((e.value ->> 'calls')::float8)
                           AS share
                  FROM rl.windows w, jsonb_each(w.by_version) e
                 WHERE w.model_name = s.model_name AND w.window_id = ANY (s.window_ids)
                 GROUP BY e.key) v) AS badly_by_version
  FROM rl.steps s
 WHERE s.model_name = %(model_name)s AND s.logged_at IS NULL
 ORDER BY s.step LIMIT %(limit)s

-- steps_logged --
UPDATE rl.steps SET logged_at = rl.now()
 WHERE model_name = %(model_name)s AND step = ANY (%(steps)s::int[])

-- steps_of_lineage --
-- Of the lineage, and of those that it was forked from, up to the fork. UNION, not UNION ALL: it ends
-- even if a row that was changed by hand leads back.
WITH RECURSIVE up AS (
    SELECT %(model_name)s::text AS name, NULL::int AS last_step
    UNION
    SELECT l.forked_from, least(up.last_step, l.forked_step)
      FROM up JOIN rl.lineages l ON l.name = up.name
     WHERE l.forked_from IS NOT NULL
)
SELECT s.model_name, s.version, s.step, COALESCE(s.parent_step, s.step - 1) AS parent_step
  FROM up JOIN rl.steps s ON s.model_name = up.name
 WHERE up.last_step IS NULL OR s.step <= up.last_step

-- lock_versions --
-- The lineages that the app knows get their versions one at a time, since these go into its table;
-- the lock ends with the transaction.
SELECT pg_advisory_xact_lock(hashtext('rl.versions'))

-- taken_versions --
SELECT version FROM rl.steps WHERE model_name = %(model_name)s AND version IS NOT NULL
UNION
SELECT version FROM public.trained_models WHERE version IS NOT NULL
UNION
SELECT substr("modelId", length(%(model_name)s) + 2) FROM public.trained_models
 WHERE starts_with("modelId", %(model_name)s || '-')

-- insert_model --
INSERT INTO public.trained_models (id, "modelId", version, "baseModel", "trainingBatch", status,
                                   "storagePath", "avgReward", "updatedAt")
VALUES (%(model_id)s, %(model_id)s, %(version)s, %(base_model)s, %(batch_id)s, 'training',
        %(checkpoint)s, %(avg_reward)s, rl.now() AT TIME ZONE 'utc')

-- mark_trajectories_used --
-- Joined to the ids, not filtered by them, and only through the scores of the step's windows: on
-- tables without statistics the planner would test each row against the whole array, or read all
-- scores of the lineage.
UPDATE public.trajectories t
   SET "usedInTraining" = true, "trainedInBatch" = %(batch_id)s,
       "aiJudgeReward" = s.score, "aiJudgeReasoning" = s.reasoning,
       "judgedAt" = s.scored_at AT TIME ZONE 'utc', "updatedAt" = rl.now() AT TIME ZONE 'utc'
  FROM rl.windows w
  JOIN rl.scores s ON s.model_name = w.model_name AND s.window_id = w.window_id
                  AND s.scorer = w.scorer
  JOIN unnest(%(trajectory_ids)s::text[]) AS trained (trajectory_id)
    ON trained.trajectory_id = s.trajectory_id
 WHERE w.model_name = %(model_name)s AND w.window_id = ANY (%(window_ids)s)
   AND t."trajectoryId" = s.trajectory_id
