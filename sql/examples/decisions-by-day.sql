-- Purpose: who decided what, day by day.
-- Inputs:  reviews.
-- Grain:   one row per day, reviewer and decision.
select decided_at::DATE as day, reviewer, decision, count(*) as decisions
from reviews
group by all
order by all;
