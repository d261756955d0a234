-- Purpose: the confusion on the holdout in both generations, as a matrix of the classes that are confused most.
-- Inputs:  mistakes.
-- Grain:   one row per trusted class and other class that a teacher gave, both among the $most classes with the most
--          mistakes; the most mistakes of the later one first.
-- Parameters: $most (classes).
with busy as (
    select label
    from (select truth as label, before + after as n from mistakes union all select label, before + after from mistakes)
    group by label
    order by sum(n) desc, label
    limit $most
)
select truth, label, before, after
from mistakes
where truth in (select label from busy) and label in (select label from busy)
order by after desc, before desc, truth, label;
