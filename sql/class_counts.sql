-- Purpose: what a selection did to each class.
-- Inputs:  candidates, selected, stored_classes.
-- Grain:   one row per class of the store, also those without a candidate.
with
available as (select label, count(*) as candidates from candidates group by label),
kept as (
    select
        s.label, count(*) as kept, sum(s.copies) as rows, max(s.copies) as most_copies, min(s.confidence) as cut_off
    from selected as s
    group by s.label
)
select
    c.label::INT as label, c.class_name,
    coalesce(a.candidates, 0) as candidates,
    coalesce(k.kept, 0) as kept,
    coalesce(k.rows, 0)::BIGINT as rows,
    coalesce(k.most_copies, 0) as most_copies,
    k.cut_off
from stored_classes as c
left join available as a on a.label = c.label
left join kept as k on k.label = c.label
order by c.label;
