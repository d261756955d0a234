-- Purpose: how often images count, and how much they weigh.
-- Inputs:  kept (a manifest's rows; weight is null in a manifest without weights).
-- Grain:   one row per number of copies, ordered. Decimals, because a sum of floats depends on the order of its parts.
select
    copies::bigint as copies,
    count(*) as images,
    min(weight)::double as least_weight,
    max(weight)::double as most_weight,
    sum(copies * weight::decimal(18, 6))::double as weight
from kept
group by copies
order by copies;
