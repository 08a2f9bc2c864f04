-- The clock of everything in `rl`: the server's time, shifted by the setting `rl.clock_offset` (an
-- interval such as '1 hour') of a transaction, a session or a database. Only tests set it, to move
-- time instead of waiting for it.
--
-- Both functions work like Postgres' own of the same name. now() is one moment for a whole
-- transaction, and the planner knows it. clock_timestamp() goes on within a transaction. A lease needs
-- that: after a wait for a lock, the time before the wait must not count. The planner inlines both, so
-- they cost no more than Postgres' own. A pooler is safe: the setting of a transaction ends with it,
-- and is then empty, not absent.
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
