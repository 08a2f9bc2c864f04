-- Who holds a head waits for no row of the app in Postgres' own way.
--
-- The app's statement holds its row before it waits for the head. If it had waited for longer than
-- deadlock_timeout less what a worker then waited for the row, Postgres saw a deadlock and ended one of
-- them: it might be the app's. So workers try for the row now and again, and give up.
--
-- Runs any number of times.

CREATE OR REPLACE FUNCTION rl.hold_versions(lineage text, ids text[]) RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ends_at timestamptz := clock_timestamp() + interval '500 ms';
BEGIN
    LOOP
        BEGIN
            PERFORM FROM public.trained_models m WHERE m."modelId" = ANY ($2)
                ORDER BY m."modelId" FOR NO KEY UPDATE NOWAIT;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() >= ends_at THEN
                RAISE EXCEPTION 'the app changes a version of % just now', $1
                      USING ERRCODE = 'lock_not_available', HINT = 'try again';
            END IF;
        END;
        PERFORM pg_sleep(0.02);
    END LOOP;
END
$$;
COMMENT ON FUNCTION rl.hold_versions(text, text[]) IS
    'Locks the app''s rows of versions, by "modelId", so that nothing waits for them afterwards.';

CREATE OR REPLACE FUNCTION rl.statuses_after(lineage text, from_step integer, to_step integer)
    RETURNS TABLE ("modelId" text, status text) LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp AS $$
    SELECT m."modelId", each.status
      FROM rl.steps s
      JOIN public.trained_models m ON m."modelId" = s.model_name || '-' || s.version
     CROSS JOIN LATERAL (
          SELECT CASE WHEN s.removed_at IS NOT NULL OR s.given_up_at IS NOT NULL THEN 'archived'
                      WHEN s.step > $3 AND m.status = 'training' THEN 'training'
                      WHEN s.step > $3 THEN 'archived'
                      -- What a rollback had archived is used again; what the app did stays.
                      WHEN m.status = 'archived' AND s.step <= $2 THEN 'archived'
                      ELSE 'ready' END AS status) each
     WHERE s.model_name = $1 AND s.step <> $3
       AND m.status IN ('training', 'ready', 'deployed', 'archived')
       AND m.status <> each.status
$$;
COMMENT ON FUNCTION rl.statuses_after(text, integer, integer) IS
    'The app''s rows that get another status when a lineage''s published step moves; not its own.';

-- As in 016, but for the locks.
CREATE OR REPLACE FUNCTION rl.show_promoted(lineage text, from_step integer, to_step integer,
                                            shown text DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    PERFORM rl.hold_versions($1, ARRAY(
        SELECT c."modelId" FROM rl.statuses_after($1, $2, $3) c
         UNION SELECT s.model_name || '-' || s.version FROM rl.steps s
                WHERE s.model_name = $1 AND s.step = $3
                  AND s.model_name || '-' || s.version IS DISTINCT FROM $4));
    UPDATE public.trained_models m
       SET status = c.status,
           "archivedAt" = CASE WHEN c.status = 'archived' THEN rl.now() AT TIME ZONE 'UTC' END,
           "updatedAt" = rl.now() AT TIME ZONE 'UTC'
      FROM rl.statuses_after($1, $2, $3) c
     WHERE m."modelId" = c."modelId";
    -- After it, since only one may be deployed.
    UPDATE public.trained_models m
       SET status = 'deployed', "archivedAt" = NULL,
           "deployedAt" = CASE WHEN $2 = $3 AND m."deployedAt" IS NOT NULL THEN m."deployedAt"
                               ELSE rl.now() AT TIME ZONE 'UTC' END,
           "updatedAt" = rl.now() AT TIME ZONE 'UTC'
      FROM rl.steps s
     WHERE s.model_name = $1 AND s.step = $3 AND m."modelId" = s.model_name || '-' || s.version
       AND m.status <> 'deployed' AND m."modelId" IS DISTINCT FROM $4;
END
$$;
