-- The app's tables in `public`, as they are.

-- describe --
-- One row for each column; a table without columns has one row as well. A domain is its base type.
SELECT c.relname AS "table", c.relkind::text AS kind, a.attname AS "column",
       COALESCE(b.typname, t.typname) AS type,
       COALESCE(a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', false) AS must_be_given,
       EXISTS (SELECT FROM pg_catalog.pg_index i
                WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
                  AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum) AS is_unique
  FROM pg_catalog.pg_class c
  LEFT JOIN pg_catalog.pg_attribute a
    ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype
 WHERE c.relnamespace = to_regnamespace('public') AND c.relname = ANY (%(tables)s)
   AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c', 'S')
 ORDER BY a.attnum

-- find_elsewhere --
-- Schemas other than public that hold Babylon's table of traces.
SELECT n.nspname AS schema
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'stepsJson'
 WHERE c.relname = 'trajectories' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
   AND n.nspname <> 'public' AND n.nspname !~ '^pg_'
 ORDER BY n.nspname
