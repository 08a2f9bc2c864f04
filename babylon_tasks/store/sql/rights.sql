-- What the role of DATABASE_URL may do.

-- missing_rights --
-- Of the wanted rights on tables and sequences that exist, those that the role lacks. A right on some
-- columns alone counts: which ones we write is the owner's to know.
SELECT w."right" || ' on ' || w."table" AS missing
  FROM unnest(%(tables)s::text[], %(rights)s::text[]) AS w ("table", "right")
 WHERE to_regclass(w."table") IS NOT NULL
   AND NOT CASE WHEN w."right" = 'USAGE' THEN has_sequence_privilege(to_regclass(w."table"), 'USAGE')
                WHEN w."right" = 'DELETE' THEN has_table_privilege(to_regclass(w."table"), 'DELETE')
                ELSE has_table_privilege(to_regclass(w."table"), w."right")
                     OR has_any_column_privilege(to_regclass(w."table"), w."right") END

-- relations_of_rl --
SELECT format('rl.%I', c.relname) AS name, c.relkind = 'S' AS is_sequence
  FROM pg_catalog.pg_class c
 WHERE c.relnamespace = to_regnamespace('rl') AND c.relkind IN ('r', 'p', 'S')
 ORDER BY c.relname

-- missing_on_schemas --
SELECT 'USAGE on schema ' || s AS missing
  FROM unnest(ARRAY['public', 'rl']) AS s
 WHERE to_regnamespace(s) IS NOT NULL AND NOT has_schema_privilege(to_regnamespace(s), 'USAGE')

-- missing_to_migrate --
SELECT missing FROM (
    SELECT 'CREATE on database ' || current_database() AS missing
     WHERE to_regnamespace('rl') IS NULL
       AND NOT has_database_privilege(current_database(), 'CREATE')
    UNION ALL
    SELECT 'CREATE on schema public'
      FROM unnest(%(tables)s::text[]) AS t
     WHERE to_regclass(t) IS NULL AND NOT has_schema_privilege('public', 'CREATE')
    UNION ALL
    SELECT 'ownership of ' || c.relnamespace::regnamespace || '.' || c.relname
      FROM pg_catalog.pg_class c
     WHERE (c.oid IN (to_regclass('public.trajectories'), to_regclass('public.trained_models'))
            OR c.relnamespace = to_regnamespace('rl') AND c.relkind = 'r')
       AND NOT pg_has_role(c.relowner, 'USAGE')
) AS each
 GROUP BY missing

-- functions_of_rl --
-- Our functions that the role may not call.
SELECT format('EXECUTE on rl.%I()', p.proname) AS missing
  FROM pg_catalog.pg_proc p
 WHERE p.pronamespace = to_regnamespace('rl') AND NOT has_function_privilege(p.oid, 'EXECUTE')
 ORDER BY p.proname

-- hides_rows --
-- Tables of which row-level security shows this role nothing, since no policy lets anybody in. What a
-- policy lets through we cannot know; of the traces, all must come through.
SELECT c.relnamespace::regnamespace || '.' || c.relname AS "table"
  FROM pg_catalog.pg_class c
 WHERE (c.oid IN (SELECT to_regclass(t) FROM unnest(%(tables)s::text[]) AS t)
        OR c.relnamespace = to_regnamespace('rl'))
   AND c.relkind IN ('r', 'p') AND row_security_active(c.oid)
   AND (c.oid = to_regclass('public.trajectories')
        OR NOT EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid))
 ORDER BY c.relname <> 'trajectories', "table"
