-- Market outcomes: for judges and scorers, never for training.

-- select_markets --
SELECT "stockTicker" AS ticker, "startPrice"::float8 AS start_price, "endPrice"::float8 AS end_price,
       "changePercent"::float8 AS change_percent, "predictionMarketId" AS id, question, outcome
  FROM public.market_outcomes
 WHERE "windowId" = %(window_id)s
 ORDER BY "stockTicker", "predictionMarketId", id
 LIMIT 1000
