-- Log-probabilities that a server attached to recorded responses before they are trained.
--
-- Runs any number of times.

CREATE TABLE IF NOT EXISTS rl.logprobs (
    model_name    text             NOT NULL,
    trajectory_id text             NOT NULL,
    call_hash     text             NOT NULL,  -- of system prompt, user prompt and response
    window_id     text COLLATE "C" NOT NULL,
    asked_of      text             NOT NULL,  -- the server's name for the model that was asked
    token_ids     integer[]        NOT NULL,  -- of the response, mostly with its end of turn
    logprobs      float8[]         NOT NULL,
    at            timestamptz      NOT NULL DEFAULT now(),
    PRIMARY KEY (model_name, trajectory_id, call_hash),
    CHECK (cardinality(token_ids) = cardinality(logprobs))
);
COMMENT ON TABLE rl.logprobs IS
    'What LOGPROBS_URL said of recorded LLM calls: asked while their window is scored, and not asked '
    'again after a crash. Gone with the commit of the step that trained them.';
CREATE INDEX IF NOT EXISTS logprobs_window_idx ON rl.logprobs (model_name, window_id);
