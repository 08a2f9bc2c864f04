-- Which version answers: every change of it, and versions that take a share of the agents.
--
-- rl.heads.published_step is what a lineage's name answers with. Whoever changes it, the app's rows
-- follow in the same transaction, and a row of rl.promotions is written: a worker of release 0.1.0
-- changes it by SQL of its own. When the app deploys a version, published_step follows that.
--
-- Locks: the app's statement holds its row before it waits for the head. So who holds the head waits
-- for a row of the app at most half a second, which is less than it takes Postgres to see a deadlock.
-- Two deployments by the app at once would wait for each other's row: they come one after the other.
--
-- Runs any number of times.

ALTER TABLE rl.heads ADD COLUMN IF NOT EXISTS promotion_paused_at timestamptz;
COMMENT ON COLUMN rl.heads.promotion_paused_at IS
    'Since then no new step is promoted by itself: after a rollback, until a person resumes it.';

CREATE TABLE IF NOT EXISTS rl.promotions (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_name text        NOT NULL,
    kind       text        NOT NULL
        CHECK (kind IN ('automatic', 'promote', 'rollback', 'app', 'reset', 'pause', 'resume')),
    from_step  integer     NOT NULL,
    to_step    integer     NOT NULL,
    holder     text        NOT NULL,                 -- who
    why        text        NOT NULL,
    at         timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS promotions_model_idx ON rl.promotions (model_name, id);
COMMENT ON TABLE rl.promotions IS
    'Every change of the step that a lineage''s name answers with: who, when, from what and why.';

CREATE TABLE IF NOT EXISTS rl.shares (
    model_name text         NOT NULL,
    starts_at  timestamptz  NOT NULL,                -- the start of a window
    step       integer      NOT NULL,
    percent    numeric(5,2) NOT NULL CHECK (percent BETWEEN 0 AND 100),
    holder     text         NOT NULL,
    why        text         NOT NULL,
    at         timestamptz  NOT NULL,
    PRIMARY KEY (model_name, starts_at)
);
COMMENT ON TABLE rl.shares IS
    'A second version that answers so many percent of a lineage''s agents, from the start of a '
    'window on until the next row''s; 0 percent ends it. The newest that has started counts.';

-- The endpoint asks every second whether files went.
CREATE INDEX IF NOT EXISTS steps_removed_idx
    ON rl.steps (model_name, removed_at) WHERE removed_at IS NOT NULL;

-- The app serves the newest row that is `ready` or `deployed`, by createdAt, and finds a pinned version
-- among the `ready` ones. So the promoted one is `deployed`, those before it that can be served are
-- `ready`, and none after it is. Those that were never promoted stay `training`, and are `ready` once
-- a later one is promoted. `shown` is the row that the caller changes itself.
CREATE OR REPLACE FUNCTION rl.show_promoted(lineage text, from_step integer, to_step integer,
                                            shown text DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '500ms' AS $$
BEGIN
    WITH changed AS (
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
    )
    UPDATE public.trained_models m
       SET status = c.status,
           "archivedAt" = CASE WHEN c.status = 'archived' THEN rl.now() AT TIME ZONE 'UTC' END,
           "updatedAt" = rl.now() AT TIME ZONE 'UTC'
      FROM changed c
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
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'the app changes a version of % just now', $1
          USING ERRCODE = 'lock_not_available', HINT = 'try again';
END
$$;
COMMENT ON FUNCTION rl.show_promoted(text, integer, integer, text) IS
    'Makes the app''s rows say which step of a lineage is promoted.';

-- The one way in which published_step is moved, by hand or by a worker. NULL: it was not moved, since
-- it is there already, or since a worker asks while promotion is paused.
CREATE OR REPLACE FUNCTION rl.promote(lineage text, to_step integer, kind text, holder text,
                                      why text, shown text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    head rl.heads;
BEGIN
    SELECT * INTO head FROM rl.heads h WHERE h.model_name = $1 FOR UPDATE;
    IF head.published_step IS NULL OR head.published_step = $2
       OR $3 = 'automatic' AND head.promotion_paused_at IS NOT NULL THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('rl.promotion', jsonb_build_object(
        'kind', $3, 'holder', $4, 'why', $5, 'shown', $6)::text, true);
    UPDATE rl.heads h
       SET published_step = $2,
           promotion_paused_at = CASE
               WHEN $3 = 'rollback' OR $3 = 'app' AND $2 < h.published_step
               THEN COALESCE(h.promotion_paused_at, rl.clock_timestamp())
               ELSE h.promotion_paused_at END
     WHERE h.model_name = $1;
    PERFORM set_config('rl.promotion', '', true);
    RETURN head.published_step;
END
$$;
COMMENT ON FUNCTION rl.promote(text, integer, text, text, text, text) IS
    'Lets another step of a lineage serve; returns the one that served, NULL if nothing was moved.';

-- Before published_step moves: a worker of release 0.1.0 does not know that promotion is paused.
CREATE OR REPLACE FUNCTION rl.keep_promoted() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF COALESCE(current_setting('rl.promotion', true), '') = '' THEN
        NEW.published_step := OLD.published_step;
    END IF;
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER keep_promoted BEFORE UPDATE OF published_step ON rl.heads FOR EACH ROW
    WHEN (OLD.promotion_paused_at IS NOT NULL AND NEW.published_step = NEW.step
          AND NEW.published_step <> OLD.published_step)
    EXECUTE FUNCTION rl.keep_promoted();

-- After it has moved: at the end of the statement, which at release 0.1.0 also made rows `ready`.
-- With the rights of this function's owner: the role of such a worker may have none on our new table.
CREATE OR REPLACE FUNCTION rl.follow_promotion() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    told jsonb := NULLIF(current_setting('rl.promotion', true), '')::jsonb;
BEGIN
    INSERT INTO rl.promotions (model_name, kind, from_step, to_step, holder, why, at)
    VALUES (NEW.model_name, COALESCE(told ->> 'kind', 'automatic'),
            OLD.published_step, NEW.published_step,
            COALESCE(told ->> 'holder', concat_ws(', ', 'role ' || session_user,
                     NULLIF(current_setting('application_name', true), ''))),
            COALESCE(told ->> 'why', 'by release 0.1.0, or by SQL'), rl.clock_timestamp());
    PERFORM rl.show_promoted(NEW.model_name, OLD.published_step, NEW.published_step,
                             told ->> 'shown');
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER follow_promotion AFTER UPDATE OF published_step ON rl.heads FOR EACH ROW
    WHEN (OLD.published_step IS DISTINCT FROM NEW.published_step)
    EXECUTE FUNCTION rl.follow_promotion();

-- The app sets a row `deployed`: in its own name, so with the rights of this function's owner. Its
-- page, which a person uses, writes "agentsUsing" too. Its job does not: that deploys the version of
-- the newest request, even if a newer version serves. Rows of other trainers are not ours.
CREATE OR REPLACE FUNCTION rl.deploy_of_app() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    lineage text := left(NEW."modelId", - length(NEW.version) - 1);
    serves integer;
    own rl.steps;
BEGIN
    SELECT h.published_step INTO serves FROM rl.heads h WHERE h.model_name = lineage;
    SELECT * INTO own FROM rl.steps s
     WHERE s.model_name = lineage AND s.version = NEW.version
       AND NEW."modelId" = lineage || '-' || NEW.version;
    IF serves IS NULL OR own.step IS NULL OR own.step = serves THEN
        RETURN NEW;
    ELSIF TG_ARGV[0] = 'job' AND own.step < serves AND OLD.status = 'ready' THEN
        RAISE WARNING '% stays ready: a newer version serves (to roll back, set "agentsUsing" too)',
              NEW."modelId";
        NEW.status := OLD.status;
        NEW."deployedAt" := OLD."deployedAt";
        RETURN NEW;
    END IF;
    -- Whoever moves the head or removes files has ended now.
    PERFORM FROM rl.heads h WHERE h.model_name = lineage FOR UPDATE;
    SELECT * INTO own FROM rl.steps s WHERE s.model_name = lineage AND s.step = own.step;
    IF own.removed_at IS NOT NULL OR own.given_up_at IS NOT NULL THEN
        RAISE EXCEPTION '% cannot be deployed: %', NEW."modelId",
              CASE WHEN own.removed_at IS NOT NULL THEN 'its files were removed'
                   ELSE 'its step was given up' END
              USING ERRCODE = 'object_not_in_prerequisite_state',
                    HINT = '`babylon models list` shows the versions that can be.';
    END IF;
    PERFORM rl.promote(lineage, own.step, 'app', concat_ws(', ', 'role ' || session_user,
                           NULLIF(current_setting('application_name', true), '')),
                       'the app deployed ' || NEW."modelId", NEW."modelId");
    NEW."deployedAt" := COALESCE(NEW."deployedAt", rl.now() AT TIME ZONE 'UTC');
    NEW."archivedAt" := NULL;
    RETURN NEW;
END
$$;
CREATE OR REPLACE FUNCTION rl.one_deployment() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('rl.deployments'));
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER rl_deploy_0_in_turn BEFORE UPDATE OF "agentsUsing"
    ON public."trained_models" FOR EACH STATEMENT EXECUTE FUNCTION rl.one_deployment();
-- In the order of their names: what the first one did leaves nothing to do for the second.
CREATE OR REPLACE TRIGGER rl_deploy_1_by_page BEFORE UPDATE OF "agentsUsing"
    ON public."trained_models" FOR EACH ROW
    WHEN (NEW.status = 'deployed' AND OLD.status <> 'deployed')
    EXECUTE FUNCTION rl.deploy_of_app('page');
CREATE OR REPLACE TRIGGER rl_deploy_2_by_job BEFORE UPDATE OF status
    ON public."trained_models" FOR EACH ROW
    WHEN (NEW.status = 'deployed' AND OLD.status <> 'deployed')
    EXECUTE FUNCTION rl.deploy_of_app('job');

-- A worker of release 0.1.0 makes the row of every step up to the head `ready`.
CREATE OR REPLACE FUNCTION rl.wait_for_promotion() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM rl.steps s JOIN rl.heads h USING (model_name)
                WHERE s.model_name = left(NEW."modelId", - length(NEW.version) - 1)
                  AND s.version = NEW.version AND s.step > h.published_step) THEN
        NEW.status := OLD.status;
    END IF;
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER rl_ready BEFORE UPDATE OF status ON public."trained_models" FOR EACH ROW
    WHEN (NEW.status = 'ready' AND OLD.status = 'training')
    EXECUTE FUNCTION rl.wait_for_promotion();

-- So far the app marked every version that it deployed, and took none back.
DO $$
BEGIN
    PERFORM rl.show_promoted(h.model_name, h.published_step, h.published_step) FROM rl.heads h;
END
$$;
