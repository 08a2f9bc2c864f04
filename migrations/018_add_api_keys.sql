-- Keys of the endpoint: several, named, each with its own limits. Only a hash is stored.
--
-- Runs any number of times.

CREATE TABLE IF NOT EXISTS rl.api_keys (
    name                text        NOT NULL PRIMARY KEY,
    key_hash            bytea       NOT NULL UNIQUE,  -- SHA-256 of a random key of 256 bits
    requests_per_minute integer     CHECK (requests_per_minute > 0),
    tokens_per_day      bigint      CHECK (tokens_per_day > 0),
    created_by          text        NOT NULL,
    created_at          timestamptz NOT NULL,
    revoked_at          timestamptz
);
COMMENT ON TABLE rl.api_keys IS 'Keys that the endpoint accepts; NULL limits are none.';

CREATE TABLE IF NOT EXISTS rl.api_key_usage (
    name     text   NOT NULL REFERENCES rl.api_keys (name),
    day      date   NOT NULL,                         -- UTC
    requests bigint NOT NULL,
    tokens   bigint NOT NULL,                         -- prompts and answers
    PRIMARY KEY (name, day)
);
COMMENT ON TABLE rl.api_key_usage IS 'Requests and tokens of each key and day.';
