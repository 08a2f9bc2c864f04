-- Watching: what the holder of a lease does now, and which workers there are.
--
-- Runs any number of times.

ALTER TABLE rl.leases ADD COLUMN IF NOT EXISTS doing jsonb;
ALTER TABLE rl.leases ADD COLUMN IF NOT EXISTS told_at timestamptz;
COMMENT ON COLUMN rl.leases.doing IS
    'What its holder does, as it said with a renewal; of this holder if told_at >= acquired_at.';

CREATE TABLE IF NOT EXISTS rl.workers (
    name       text        NOT NULL PRIMARY KEY,     -- as Celery and Flower know it
    host       text        NOT NULL,
    pid        integer     NOT NULL,
    queues     text[]      NOT NULL,
    slots      integer     NOT NULL,                 -- pool processes
    trainer    text,                                 -- of a worker of the queue gpu
    lineages   text[],                               -- NULL: all
    gpus       jsonb       NOT NULL DEFAULT '[]',    -- that it may use: uuid, name, memory
    version    text        NOT NULL,                 -- of this project
    started_at timestamptz NOT NULL,
    seen_at    timestamptz NOT NULL
);
COMMENT ON TABLE rl.workers IS
    'The workers, as each says of itself every half minute; one that stops removes its row. Only '
    'people read it: what is due and who works on it, rl.windows and rl.leases say.';
