-- Scores, and the traces that were set aside.

-- write_scores --
INSERT INTO rl.scores (trajectory_id, model_name, scorer, window_id, agent_id, score, raw_score,
                       components, reasoning, content_hash)
SELECT s.trajectory_id, %(model_name)s, %(scorer)s, %(window_id)s, s.agent_id, s.score,
       s.raw_score, s.components, s.reasoning, s.content_hash
  FROM unnest(%(trajectory_ids)s::text[], %(agent_ids)s::text[], %(scores)s::float8[],
              %(raw_scores)s::float8[], %(components)s::jsonb[], %(reasonings)s::text[],
              %(content_hashes)s::text[])
       AS s (trajectory_id, agent_id, score, raw_score, components, reasoning, content_hash)
ON CONFLICT (trajectory_id, model_name, scorer) DO UPDATE
   SET window_id = excluded.window_id, agent_id = excluded.agent_id, score = excluded.score,
       raw_score = excluded.raw_score, components = excluded.components,
       reasoning = excluded.reasoning, content_hash = excluded.content_hash, scored_at = now()

-- forget_scores --
-- Scores of an earlier round whose trajectory is gone or set aside must not train.
DELETE FROM rl.scores
 WHERE model_name = %(model_name)s AND scorer = %(scorer)s AND window_id = %(window_id)s
   AND trajectory_id <> ALL (%(trajectory_ids)s)

-- read_scores --
SELECT trajectory_id, score, content_hash FROM rl.scores
 WHERE model_name = %(model_name)s AND scorer = %(scorer)s AND window_id = %(window_id)s

-- quarantine --
INSERT INTO rl.quarantine (trajectory_id, window_id, reason, detail)
SELECT q.trajectory_id, %(window_id)s, q.reason, q.detail
  FROM unnest(%(trajectory_ids)s::text[], %(reasons)s::text[], %(details)s::text[])
       AS q (trajectory_id, reason, detail)
ON CONFLICT (trajectory_id) DO UPDATE
   SET window_id = excluded.window_id, reason = excluded.reason, detail = excluded.detail,
       at = now()

-- release_quarantine --
-- A trace that the app has mended counts again.
DELETE FROM rl.quarantine
 WHERE window_id = %(window_id)s AND trajectory_id <> ALL (%(trajectory_ids)s)
