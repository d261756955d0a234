-- Purpose: the figures of runs over their steps, thinned out: of a long run every k-th point, and always the last one.
-- Inputs:  stored_metrics. Names that begin with "unreadable:" are of images, not figures.
-- Grain:   one row per run, name and step, in this order; about $most rows of a run and name.
-- Parameters: $runs (names), $most.
select model, name, step, epoch, value
from (
    select
        model, name, step, epoch, value,
        row_number() over (partition by model, name order by step, "at") - 1 as nth,
        count(*) over (partition by model, name) as points
    from stored_metrics
    where list_contains($runs::VARCHAR[], model) and not starts_with(name, 'unreadable:')
)
where nth % greatest((points + $most - 1) // $most, 1) = 0 or nth = points - 1
order by model, name, step;
