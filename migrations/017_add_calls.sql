-- What the endpoint remembers of its answers, for training. No text: the app records that.
--
-- Runs any number of times.

CREATE TABLE IF NOT EXISTS rl.calls (
    id                bigint      GENERATED ALWAYS AS IDENTITY,
    at                timestamptz NOT NULL,          -- when it was asked for
    model_name        text        NOT NULL,
    step              integer     NOT NULL,          -- of the version that answered
    prompt_hash       bytea       NOT NULL,          -- 16 bytes, of messages and tools
    response_hash     bytea       NOT NULL,          -- 16 bytes, of the answer's text
    agent             text,                          -- as the request names it
    backend           text        NOT NULL,          -- vllm, embedded or wandb
    finish_reason     text,
    token_ids         integer[]   NOT NULL,
    logprobs          real[]      NOT NULL,          -- before the temperature's effect
    prompt_tokens     integer     NOT NULL,
    latency_ms        integer     NOT NULL,
    first_token_ms    integer,
    PRIMARY KEY (id),
    CHECK (cardinality(token_ids) = cardinality(logprobs))
);
CREATE INDEX IF NOT EXISTS calls_hashes_idx ON rl.calls (prompt_hash, response_hash);
COMMENT ON TABLE rl.calls IS
    'Answers of the endpoint: tokens, log-probabilities and version, found again by the hashes of '
    'what the app recorded. CAPTURE_DAYS and CAPTURE_ROWS bound it; the oldest, by id, go first.';

CREATE TABLE IF NOT EXISTS rl.assignments (
    model_name text             NOT NULL,
    window_id  text COLLATE "C" NOT NULL,
    agent      text             NOT NULL,
    step       integer          NOT NULL,
    answers    bigint           NOT NULL,
    first_at   timestamptz      NOT NULL,
    last_at    timestamptz      NOT NULL,
    PRIMARY KEY (model_name, window_id, agent, step)
);
COMMENT ON TABLE rl.assignments IS
    'Which version answered which agent in which window, how often; kept for 90 days.';
