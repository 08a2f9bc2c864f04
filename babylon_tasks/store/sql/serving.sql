-- Serving: what the endpoint asks every second, so nothing here reads more than a few rows.

-- serving_rows --
-- A lineage without a head serves the base model; a head without a lineage is of release 0.1.0. The
-- newest step and the newest removal, of the lineage and of those that it was forked from, tell
-- whether its steps have to be read again: one index entry each. UNION, not UNION ALL: it ends even
-- if a row that was changed by hand leads back.
WITH RECURSIVE up AS (
    SELECT n.name AS lineage, n.name
      FROM (SELECT name FROM rl.lineages UNION SELECT model_name FROM rl.heads) n (name)
    UNION
    SELECT up.lineage, l.forked_from
      FROM up JOIN rl.lineages l ON l.name = up.name
     WHERE l.forked_from IS NOT NULL
), seen AS (
    SELECT up.lineage,
           string_agg(concat_ws(' ', up.name, newest.step, gone.removed_at), ', ' ORDER BY up.name)
               AS steps_seen
      FROM up
      LEFT JOIN LATERAL (SELECT s.step FROM rl.steps s WHERE s.model_name = up.name
                          ORDER BY s.step DESC LIMIT 1) newest ON true
      LEFT JOIN LATERAL (SELECT s.removed_at FROM rl.steps s
                          WHERE s.model_name = up.name AND s.removed_at IS NOT NULL
                          ORDER BY s.removed_at DESC LIMIT 1) gone ON true
     GROUP BY up.lineage
)
SELECT seen.lineage AS name, COALESCE(l.base_model, h.base_model) AS base_model, l.base_revision,
       COALESCE(h.step, 0) AS step, COALESCE(h.published_step, 0) AS published_step,
       h.promotion_paused_at, seen.steps_seen,
       share.starts_at AS share_starts_at, share.step AS share_step,
       share.percent::float8 AS share_percent, share.draw AS share_draw,
       next.starts_at AS next_starts_at, next.step AS next_step,
       next.percent::float8 AS next_percent, next.draw AS next_draw
  FROM seen
  LEFT JOIN rl.lineages l ON l.name = seen.lineage
  LEFT JOIN rl.heads h ON h.model_name = seen.lineage
  LEFT JOIN LATERAL (SELECT * FROM rl.shares s
                      WHERE s.model_name = seen.lineage AND s.starts_at <= rl.now()
                      ORDER BY s.starts_at DESC LIMIT 1) share ON true
  LEFT JOIN LATERAL (SELECT * FROM rl.shares s
                      WHERE s.model_name = seen.lineage AND s.starts_at > rl.now()
                      ORDER BY s.starts_at LIMIT 1) next ON true
 WHERE l.state IS DISTINCT FROM 'retired'
 ORDER BY seen.lineage

-- steps_to_serve --
-- A step without a checkpoint or a version is of a release before them, and cannot be served.
WITH RECURSIVE up AS (
    SELECT %(model_name)s::text AS name, NULL::int AS last_step
    UNION
    SELECT l.forked_from, least(up.last_step, l.forked_step)
      FROM up JOIN rl.lineages l ON l.name = up.name
     WHERE l.forked_from IS NOT NULL
)
SELECT DISTINCT ON (s.step) s.model_name, s.step, s.version, s.checkpoint,
       NULLIF(s.metrics ->> 'inference_name', '') AS inference_name, s.removed_at
  FROM up JOIN rl.steps s ON s.model_name = up.name
 WHERE (up.last_step IS NULL OR s.step <= up.last_step)
   AND s.version IS NOT NULL AND s.checkpoint IS NOT NULL
 ORDER BY s.step
