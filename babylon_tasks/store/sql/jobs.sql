-- Jobs at W&B: each model has at most one open job, and only the holder of its lease writes.

-- open_job --
SELECT windows, remote_step, job_id,
       extract(epoch FROM rl.clock_timestamp() - intended_at)::float8 AS age_seconds
  FROM rl.jobs WHERE model_name = %(model_name)s AND ended_at IS NULL

-- follow_job --
-- From now on another attempt continues the job.
UPDATE rl.jobs SET token = %(token)s WHERE model_name = %(model_name)s AND ended_at IS NULL

-- intend_job --
-- A conflict: the same intent is written again, since the answer to COMMIT was lost.
INSERT INTO rl.jobs (model_name, step, token, windows, remote_step, intended_at)
VALUES (%(model_name)s, %(step)s, %(token)s, %(windows)s, %(remote_step)s, rl.clock_timestamp())
ON CONFLICT (model_name) WHERE ended_at IS NULL DO NOTHING

-- post_job --
UPDATE rl.jobs
   SET state = 'posted', job_id = %(job_id)s, posted_at = rl.clock_timestamp()
 WHERE model_name = %(model_name)s AND ended_at IS NULL

-- end_job --
UPDATE rl.jobs
   SET state = %(state)s, why = %(why)s, ended_at = rl.clock_timestamp()
 WHERE model_name = %(model_name)s AND ended_at IS NULL

-- finish_job --
-- Part of the commit of the step that the job trained.
UPDATE rl.jobs
   SET state = 'done', ended_at = rl.clock_timestamp()
 WHERE model_name = %(model_name)s AND token = %(token)s AND ended_at IS NULL
