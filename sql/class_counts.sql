-- Purpose: what a selection did to each class; and, where the teacher has labeled a holdout, how many of its images the
--          teacher puts into the class at or above the confidence of the least confident kept image, and how many of
--          these rightly, from which the precision of the kept rows can be estimated.
-- Inputs:  counted (label, candidates, eligible), selected, holdout, stored_classes.
-- Grain:   one row per class of the store, also those without a candidate.
with
kept as (
    select
        label, count(*) as kept, sum(copies)::BIGINT as rows, max(copies) as most_copies,
        -- what a reviewer put first says nothing of where the quota cuts, see accepted_first.sql
        coalesce(min(confidence) filter (score < 1e31), min(confidence)) as cut_off
    from selected
    group by label
),
judged as (
    select h.label, count(*) as seen, count(*) filter (h.is_right) as right_ones
    from holdout as h
    join kept as k on k.label = h.label and h.confidence >= k.cut_off
    group by h.label
)
select
    c.label::INT as label, c.class_name,
    n.candidates, n.eligible,
    coalesce(k.kept, 0) as kept,
    coalesce(k.rows, 0) as rows,
    coalesce(k.most_copies, 0) as most_copies,
    k.cut_off,
    coalesce(j.seen, 0) as holdout_seen,
    coalesce(j.right_ones, 0) as holdout_right
from stored_classes as c
join counted as n on n.label = c.label
left join kept as k on k.label = c.label
left join judged as j on j.label = c.label
order by c.label;
