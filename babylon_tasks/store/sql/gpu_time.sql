-- GPU time: what steps and exams have used.

-- gpu_today --
-- Of all lineages, since midnight UTC. W&B's steps have no GPU seconds, but may have a price.
SELECT s.steps, s.gpu_seconds, s.usd, s.unpriced, e.exams, e.exam_seconds
  FROM (SELECT date_trunc('day', rl.now() AT TIME ZONE 'utc') AT TIME ZONE 'utc' AS midnight) t
 CROSS JOIN LATERAL (
      SELECT count(*)::int AS steps, COALESCE(sum(gpu_seconds), 0)::float8 AS gpu_seconds,
             sum(cost_usd)::float8 AS usd,
             count(*) FILTER (WHERE cost_usd IS NULL)::int AS unpriced
        FROM rl.steps WHERE committed_at >= t.midnight) s
 CROSS JOIN LATERAL (
      SELECT count(*)::int AS exams, COALESCE(sum(seconds), 0)::float8 AS exam_seconds
        FROM rl.exams WHERE decided_at >= t.midnight) e
