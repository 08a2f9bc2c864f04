-- The time by which everything in `rl` is decided: the server's, shifted where a transaction, a
-- session or a database says so. Only tests do (`rl.clock_offset`, an interval such as '1 hour'):
-- they move time instead of waiting for it.
--
-- Both are as Postgres' functions of the same name: now() is one moment for a whole transaction,
-- and the planner sees it; clock_timestamp() goes on within it, which a lease needs, since whoever
-- waited for a lock must not believe in the time before. The planner puts their bodies in their
-- place, so that they cost what those cost. A pooler is safe: the setting of a transaction ends with
-- it, and is then empty, not absent.
--
-- Runs any number of times.

CREATE OR REPLACE FUNCTION rl.now() RETURNS timestamptz
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.now()
           + COALESCE(NULLIF(current_setting('rl.clock_offset', true), '')::interval, interval '0')
$$;
COMMENT ON FUNCTION rl.now() IS
    'When the transaction began, shifted by the setting rl.clock_offset.';

CREATE OR REPLACE FUNCTION rl.clock_timestamp() RETURNS timestamptz
    LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT pg_catalog.clock_timestamp()
           + COALESCE(NULLIF(current_setting('rl.clock_offset', true), '')::interval, interval '0')
$$;
COMMENT ON FUNCTION rl.clock_timestamp() IS
    'The very moment, shifted by the setting rl.clock_offset.';
