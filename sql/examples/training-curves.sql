-- Purpose: the loss of every run, as its mean in a hundred steps.
-- Inputs:  metrics.
-- Grain:   one row per run and hundred steps.
select model, step // 100 * 100 as step, avg(value) as loss
from metrics
where name = 'loss'
group by all
order by all;
