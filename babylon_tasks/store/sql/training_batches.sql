-- The rows of training_batches: the app's requests, and our own rows.

-- pending_requests --
SELECT "batchId" AS batch_id, "scenarioId" AS window_id, "modelVersion" AS version
  FROM public.training_batches
 WHERE status = 'pending'
 ORDER BY "createdAt", "batchId"
 LIMIT 1000

-- read_request --
SELECT "batchId" AS batch_id, "scenarioId" AS window_id, "modelVersion" AS version, status, error
  FROM public.training_batches WHERE "batchId" = %(batch_id)s

-- start_request --
UPDATE public.training_batches
   SET status = 'training', "startedAt" = rl.now() AT TIME ZONE 'utc'
 WHERE "batchId" = %(batch_id)s AND status = 'pending'

-- insert_batch --
INSERT INTO public.training_batches (id, "batchId", "scenarioId", "baseModel", "modelVersion",
                                     "trajectoryIds", "rewardsJson", status, "startedAt")
VALUES (%(batch_id)s, %(batch_id)s, %(window_id)s, %(base_model)s, %(version)s, '[]', '[]',
        'training', rl.now() AT TIME ZONE 'utc')

-- complete_request --
UPDATE public.training_batches
   SET status = 'completed', error = NULL, "modelVersion" = %(version)s,
       "baseModel" = %(base_model)s, "trajectoryIds" = %(trajectory_ids)s,
       "rewardsJson" = %(rewards)s, "trainingLoss" = %(loss)s,
       "startedAt" = (rl.now() - make_interval(secs => %(seconds)s)) AT TIME ZONE 'utc',
       "completedAt" = rl.now() AT TIME ZONE 'utc'
 WHERE "batchId" = %(batch_id)s

-- complete_trained --
-- The window was trained before this request came: it ends at once, with that step's version, unless
-- the lineage has given that step up.
UPDATE public.training_batches b
   SET status = 'completed', error = NULL, "modelVersion" = s.version,
       "trainingLoss" = (s.metrics ->> 'loss')::float8,
       "completedAt" = rl.now() AT TIME ZONE 'utc'
  FROM rl.windows w
  JOIN rl.steps s ON s.model_name = rl.lineage_of_step(w.model_name, w.trained_step)
                 AND s.step = w.trained_step
 WHERE b."batchId" = %(batch_id)s AND b.status IN ('pending', 'training')
   AND w.model_name = %(model_name)s AND w.window_id = %(window_id)s AND w.state = 'trained'
   AND (s.given_up_at IS NULL OR s.model_name <> w.model_name)

-- fail_request --
UPDATE public.training_batches
   SET status = 'failed', error = %(error)s, "completedAt" = rl.now() AT TIME ZONE 'utc'
 WHERE "batchId" = %(batch_id)s AND status IN ('pending', 'training')

-- reopen_request --
-- Its window was made due again by hand.
UPDATE public.training_batches
   SET status = 'training', error = NULL, "completedAt" = NULL
 WHERE "batchId" = %(batch_id)s AND status = 'failed'
