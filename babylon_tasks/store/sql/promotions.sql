-- Promotions: which step a lineage's name answers with. rl.promote moves it.

-- hold_versions --
SELECT rl.hold_versions(%(model_name)s, ARRAY(
    SELECT s.model_name || '-' || s.version FROM rl.steps s
     WHERE s.model_name = %(model_name)s AND s.step = ANY (%(steps)s::int[])))

-- publish --
-- A step serves by itself. Returns the versions up to it that came to be seen by that.
WITH moved AS MATERIALIZED (
    SELECT %(step)s::int AS step,
           rl.promote(%(model_name)s, %(step)s, 'automatic', %(holder)s, %(why)s) AS from_step
)
SELECT s.version
  FROM moved m
  JOIN rl.steps s ON s.model_name = %(model_name)s AND s.given_up_at IS NULL
                 AND s.step > m.from_step AND s.step <= m.step
 ORDER BY s.step

-- move --
SELECT rl.promote(%(model_name)s, %(to_step)s, %(kind)s, %(holder)s, %(why)s)

-- pause --
WITH paused AS (
    UPDATE rl.heads SET promotion_paused_at = rl.clock_timestamp()
     WHERE model_name = %(model_name)s AND promotion_paused_at IS NULL
    RETURNING published_step AS step
)
INSERT INTO rl.promotions (model_name, kind, from_step, to_step, holder, why, at)
SELECT %(model_name)s, 'pause', step, step, %(holder)s, %(why)s, rl.clock_timestamp() FROM paused

-- resume --
WITH resumed AS (
    UPDATE rl.heads SET promotion_paused_at = NULL
     WHERE model_name = %(model_name)s AND promotion_paused_at IS NOT NULL
    RETURNING published_step AS step
)
INSERT INTO rl.promotions (model_name, kind, from_step, to_step, holder, why, at)
SELECT %(model_name)s, 'resume', step, step, %(holder)s, %(why)s, rl.clock_timestamp() FROM resumed

-- current_pause --
-- By the first of what was done since, in whose transaction the pause began. A person may have set it
-- by SQL, without a row.
SELECT h.promotion_paused_at AS since, COALESCE(p.holder, '(unknown)') AS holder,
       COALESCE(p.why, '(unknown)') AS why
  FROM rl.heads h
  LEFT JOIN LATERAL (SELECT holder, why FROM rl.promotions
                      WHERE model_name = h.model_name AND kind IN ('pause', 'rollback', 'app')
                        AND at >= h.promotion_paused_at
                      ORDER BY id LIMIT 1) p ON true
 WHERE h.model_name = %(model_name)s AND h.promotion_paused_at IS NOT NULL

-- history --
SELECT kind, from_step, to_step, holder, why, at FROM rl.promotions
 WHERE model_name = %(model_name)s ORDER BY id DESC

-- last_move --
-- What a lineage's name answers with by now, and since when. Of step 0, the base model, no version.
SELECT p.kind, p.to_step AS step, s.version, p.holder, p.why, p.at
  FROM rl.promotions p
  LEFT JOIN rl.steps s ON s.model_name = rl.lineage_of_step(p.model_name, p.to_step)
                      AND s.step = p.to_step
 WHERE p.model_name = %(model_name)s AND p.from_step <> p.to_step
 ORDER BY p.id DESC LIMIT 1

-- previous_step --
-- Older than the promoted one, so that a second rollback goes on back; the base model and the step
-- that it was forked from are always there. Without history (of a release before), the newest one.
SELECT COALESCE(
           (SELECT p.from_step
              FROM rl.promotions p
              LEFT JOIN rl.steps s ON s.model_name = p.model_name AND s.step = p.from_step
                                  AND s.removed_at IS NULL AND s.given_up_at IS NULL
             WHERE p.model_name = h.model_name AND p.from_step < h.published_step
               AND (s.step IS NOT NULL OR p.from_step IN (0, COALESCE(l.forked_step, 0)))
             ORDER BY p.id DESC LIMIT 1),
           (SELECT max(s.step) FROM rl.steps s
             WHERE s.model_name = h.model_name AND s.step < h.published_step
               AND s.removed_at IS NULL AND s.given_up_at IS NULL),
           CASE WHEN h.published_step > COALESCE(l.forked_step, 0)
                THEN COALESCE(l.forked_step, 0) END) AS step
  FROM rl.heads h
  LEFT JOIN rl.lineages l ON l.name = h.model_name
 WHERE h.model_name = %(model_name)s
