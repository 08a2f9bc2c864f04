-- Scores, and the traces that were set aside.

-- write_scores --
INSERT INTO rl.scores (trajectory_id, model_name, scorer, window_id, agent_id, score, raw_score,
                       components, reasoning, content_hash, judge_model, rubric_hash, judge_tokens,
                       judge_usd, exam_only, scored_at)
SELECT s.trajectory_id, %(model_name)s, %(scorer)s, %(window_id)s, s.agent_id, s.score,
       s.raw_score, s.components, s.reasoning, s.content_hash, s.judge_model, s.rubric_hash,
       s.judge_tokens, s.judge_usd, s.exam_only, rl.now()
  FROM unnest(%(trajectory_ids)s::text[], %(agent_ids)s::text[], %(scores)s::float8[],
              %(raw_scores)s::float8[], %(components)s::jsonb[], %(reasonings)s::text[],
              %(content_hashes)s::text[], %(judge_models)s::text[], %(rubric_hashes)s::text[],
              %(judge_tokens)s::int[], %(judge_usd)s::numeric[], %(exam_only)s::boolean[])
       AS s (trajectory_id, agent_id, score, raw_score, components, reasoning, content_hash,
             judge_model, rubric_hash, judge_tokens, judge_usd, exam_only)
ON CONFLICT (trajectory_id, model_name, scorer) DO UPDATE
   SET window_id = excluded.window_id, agent_id = excluded.agent_id, score = excluded.score,
       raw_score = excluded.raw_score, components = excluded.components,
       reasoning = excluded.reasoning, content_hash = excluded.content_hash,
       judge_model = excluded.judge_model, rubric_hash = excluded.rubric_hash,
       judge_tokens = excluded.judge_tokens, judge_usd = excluded.judge_usd,
       exam_only = excluded.exam_only,
       scored_at = excluded.scored_at

-- forget_scores --
-- Earlier scores of trajectories that were deleted or set aside since must not train.
DELETE FROM rl.scores
 WHERE model_name = %(model_name)s AND scorer = %(scorer)s AND window_id = %(window_id)s
   AND trajectory_id <> ALL (%(trajectory_ids)s)

-- read_scores --
SELECT trajectory_id, score, content_hash, judge_model, rubric_hash, exam_only FROM rl.scores
 WHERE model_name = %(model_name)s AND scorer = %(scorer)s AND window_id = %(window_id)s

-- which_are_later --
-- Those of these traces that exist, and whether they were written after the window was scored.
SELECT t."trajectoryId" AS trajectory_id,
       COALESCE(t."createdAt" > w.scored_at AT TIME ZONE 'utc', false) AS later
  FROM public.trajectories t
  JOIN rl.windows w ON w.model_name = %(model_name)s AND w.window_id = %(window_id)s
 WHERE t."trajectoryId" = ANY (%(trajectory_ids)s::text[])

-- compare_scores --
-- The scores of a window by all scorers, ordered by agent.
SELECT s.agent_id, s.trajectory_id, jsonb_object_agg(s.scorer, s.score) AS scores,
       jsonb_object_agg(s.scorer, s.components) AS components
  FROM rl.scores s
 WHERE s.model_name = %(model_name)s AND s.window_id = %(window_id)s
 GROUP BY s.agent_id, s.trajectory_id
 ORDER BY s.agent_id, s.trajectory_id

-- forget_judgments --
-- Only our rows: the app's own rows have other ids.
DELETE FROM public.reward_judgments WHERE "groupId" = %(window_id)s AND starts_with(id, 'rl-')

-- tell_app_judgments --
-- As the app's own judge writes them. A trajectory that was deleted meanwhile gets no row, nor does
-- one that no judge was asked about.
INSERT INTO public.reward_judgments (id, "trajectoryId", "judgeModel", "judgeVersion",
                                     "overallScore", "componentScoresJson", rank, "normalizedScore",
                                     "groupId", reasoning, "criteriaJson", "judgedAt")
SELECT 'rl-' || md5(s.trajectory_id), s.trajectory_id, s.judge_model, %(judge_version)s,
       s.score, s.components::text, rank() OVER (ORDER BY s.score DESC),
       COALESCE((s.score - min(s.score) OVER ())
                / NULLIF(max(s.score) OVER () - min(s.score) OVER (), 0), 0.5),
       s.window_id, s.reasoning, %(criteria)s, s.scored_at AT TIME ZONE 'utc'
  FROM rl.scores s
  JOIN public.trajectories t ON t."trajectoryId" = s.trajectory_id
 WHERE s.model_name = %(model_name)s AND s.scorer = %(scorer)s AND s.window_id = %(window_id)s
   AND s.judge_model IS NOT NULL
ON CONFLICT ("trajectoryId") DO UPDATE
   SET "judgeModel" = excluded."judgeModel", "judgeVersion" = excluded."judgeVersion",
       "overallScore" = excluded."overallScore",
       "componentScoresJson" = excluded."componentScoresJson", rank = excluded.rank,
       "normalizedScore" = excluded."normalizedScore", "groupId" = excluded."groupId",
       reasoning = excluded.reasoning, "strengthsJson" = NULL, "weaknessesJson" = NULL,
       "criteriaJson" = excluded."criteriaJson", "judgedAt" = excluded."judgedAt"

-- tell_app_scores --
UPDATE public.trajectories t
   SET "aiJudgeReward" = s.score, "aiJudgeReasoning" = s.reasoning,
       "judgedAt" = s.scored_at AT TIME ZONE 'utc', "updatedAt" = rl.now() AT TIME ZONE 'utc'
  FROM rl.scores s
 WHERE s.model_name = %(model_name)s AND s.scorer = %(scorer)s AND s.window_id = %(window_id)s
   AND t."trajectoryId" = s.trajectory_id

-- quarantine --
INSERT INTO rl.quarantine_by_lineage (model_name, trajectory_hash, trajectory_id, window_id, reason,
                                      detail, at)
SELECT %(model_name)s, sha256(convert_to(q.trajectory_id, 'UTF8')), q.trajectory_id, %(window_id)s,
       q.reason, q.detail, rl.now()
  FROM unnest(%(trajectory_ids)s::text[], %(reasons)s::text[], %(details)s::text[])
       AS q (trajectory_id, reason, detail)
ON CONFLICT (model_name, trajectory_hash) DO UPDATE
   SET window_id = excluded.window_id, reason = excluded.reason, detail = excluded.detail,
       at = excluded.at

-- release_quarantine --
-- A trace that the app has repaired counts again. Rows that release 0.1.0 wrote when it last scored
-- this lineage's window (migration 012 says how they are known) are replaced by our own.
DELETE FROM rl.quarantine q
 USING rl.windows w
 WHERE w.model_name = %(model_name)s AND w.window_id = %(window_id)s AND q.window_id = w.window_id
   AND (q.model_name = w.model_name AND q.trajectory_id <> ALL (%(trajectory_ids)s)
        OR q.model_name IS NULL AND q.at = w.scored_at)
