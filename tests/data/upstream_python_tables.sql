-- What upstream's own Python migrations leave behind (python/migrations/*.sql of the app's
-- repository): snake_case tables in `public`, and two columns on `trajectories`. On the app's
-- database some of their statements fail (`ruler_scores` refers to an integer id, `market_outcomes`
-- is already there in the app's shape); this file is what remains after applying what applies.

CREATE TABLE IF NOT EXISTS training_windows (
    id SERIAL PRIMARY KEY,
    window_id VARCHAR(50) UNIQUE NOT NULL,
    status VARCHAR(20) DEFAULT 'pending',
    agent_count INT,
    total_actions INT,
    avg_pnl DECIMAL(10,2),
    created_at TIMESTAMP DEFAULT NOW(),
    ready_at TIMESTAMP,
    scored_at TIMESTAMP,
    trained_at TIMESTAMP,
    deployed_at TIMESTAMP
);
CREATE INDEX IF NOT EXISTS idx_training_windows_window_id ON training_windows(window_id);
CREATE INDEX IF NOT EXISTS idx_training_windows_status ON training_windows(status);

DO $$
BEGIN
    IF to_regclass('trajectories') IS NOT NULL THEN
        ALTER TABLE trajectories
            ADD COLUMN IF NOT EXISTS window_id VARCHAR(50),
            ADD COLUMN IF NOT EXISTS window_hours INT DEFAULT 1;
        CREATE INDEX IF NOT EXISTS idx_trajectories_window_id ON trajectories(window_id);
    END IF;
END $$;

DO $$
BEGIN
    IF to_regclass('market_outcomes') IS NULL THEN
        CREATE TABLE market_outcomes (
            id SERIAL PRIMARY KEY,
            window_id VARCHAR(50) NOT NULL,
            stock_ticker VARCHAR(20),
            start_price DECIMAL(10,2),
            end_price DECIMAL(10,2),
            change_percent DECIMAL(5,2),
            volume BIGINT,
            sentiment VARCHAR(20),
            news_events JSONB,
            created_at TIMESTAMP DEFAULT NOW()
        );
        CREATE INDEX idx_market_outcomes_window_id ON market_outcomes(window_id);
        CREATE INDEX idx_market_outcomes_ticker ON market_outcomes(stock_ticker);
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS training_runs (
    id SERIAL PRIMARY KEY,
    window_id VARCHAR(50) NOT NULL,
    model_version VARCHAR(100) NOT NULL UNIQUE,
    base_model VARCHAR(100),
    checkpoint_path TEXT NOT NULL,
    metrics JSONB,
    training_time_seconds DECIMAL(10,2),
    gpu_hours DECIMAL(10,4),
    status VARCHAR(20) DEFAULT 'completed',
    created_at TIMESTAMP DEFAULT NOW(),
    completed_at TIMESTAMP
);

CREATE TABLE IF NOT EXISTS model_deployments (
    id SERIAL PRIMARY KEY,
    model_version VARCHAR(100) NOT NULL,
    environment VARCHAR(20) NOT NULL,
    endpoint_url TEXT NOT NULL,
    deployment_strategy VARCHAR(20),
    health_status VARCHAR(20),
    deployment_time_seconds DECIMAL(10,2),
    traffic_percentage INT DEFAULT 100,
    metadata JSONB,
    deployed_at TIMESTAMP DEFAULT NOW(),
    undeployed_at TIMESTAMP
);

CREATE TABLE IF NOT EXISTS training_metrics (
    id SERIAL PRIMARY KEY,
    window_id VARCHAR(50) NOT NULL,
    metric_name VARCHAR(50) NOT NULL,
    metric_value DECIMAL(10,4),
    metric_type VARCHAR(20),
    recorded_at TIMESTAMP DEFAULT NOW()
);

CREATE TABLE IF NOT EXISTS pipeline_logs (
    id SERIAL PRIMARY KEY,
    window_id VARCHAR(50),
    stage VARCHAR(50),
    log_level VARCHAR(20),
    message TEXT,
    metadata JSONB,
    created_at TIMESTAMP DEFAULT NOW()
);

CREATE TABLE IF NOT EXISTS training_datasets (
    id SERIAL PRIMARY KEY,
    dataset_id VARCHAR(100) UNIQUE NOT NULL,
    window_id VARCHAR(50) NOT NULL,
    num_examples INT NOT NULL,
    avg_reward DECIMAL(5,4),
    data_json JSONB NOT NULL,
    created_at TIMESTAMP DEFAULT NOW()
);

CREATE TABLE IF NOT EXISTS training_jobs (
    id SERIAL PRIMARY KEY,
    training_id VARCHAR(100) UNIQUE NOT NULL,
    window_id VARCHAR(50) NOT NULL,
    dataset_id VARCHAR(100) REFERENCES training_datasets(dataset_id),
    base_model VARCHAR(100),
    num_agents INT,
    num_examples INT,
    status VARCHAR(50) DEFAULT 'pending',
    checkpoint_path TEXT,
    metrics JSONB,
    created_at TIMESTAMP DEFAULT NOW(),
    started_at TIMESTAMP,
    completed_at TIMESTAMP
);
