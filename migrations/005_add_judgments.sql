-- The judge's questions, answers and cost; the scorer that a person chose for a window; and how much
-- of a window was left out, and why.
--
-- Runs any number of times.

CREATE TABLE IF NOT EXISTS rl.judgments (
    id                uuid             NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    model_name        text             NOT NULL,
    window_id         text COLLATE "C" NOT NULL,
    question          text             NOT NULL,  -- hash of judge, rubric and everything it was shown
    judge_model       text             NOT NULL,
    rubric_hash       text             NOT NULL,
    trajectory_ids    text[]           NOT NULL,  -- in the order in which the judge saw them
    scores            float8[],                   -- in that order, as the judge gave them
    explanations      text[],
    fault             text,                       -- why the answer was refused
    prompt_tokens     integer          NOT NULL,
    completion_tokens integer          NOT NULL,
    usd               numeric,                    -- NULL: the judge's price is not known
    asked_at          timestamptz      NOT NULL DEFAULT clock_timestamp(),
    CHECK ((fault IS NULL) = (scores IS NOT NULL))
);
COMMENT ON TABLE rl.judgments IS
    'Every answer that a judge was paid for: the good ones are not bought twice, all of them count '
    'towards the daily limit.';
CREATE INDEX IF NOT EXISTS judgments_question_idx ON rl.judgments (question) WHERE fault IS NULL;
CREATE INDEX IF NOT EXISTS judgments_window_idx ON rl.judgments (model_name, window_id);
CREATE INDEX IF NOT EXISTS judgments_asked_at_idx ON rl.judgments (asked_at);

ALTER TABLE rl.windows ADD COLUMN IF NOT EXISTS scoring text;
COMMENT ON COLUMN rl.windows.scoring IS
    'How this window is to be scored, as asked for by hand; NULL: as the workers'' SCORING says.';

ALTER TABLE rl.windows ADD COLUMN IF NOT EXISTS funnel jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN rl.windows.funnel IS
    'From rows to trained tokens: what was left out of this window, counted by the reason.';
