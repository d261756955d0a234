-- Purpose: how many images each rule of the selection leaves, in the order of the rules.
-- Inputs:  stored_images, pool, allowed, decisions, counted (label, candidates, eligible).
-- Grain:   one row.
-- Parameters: $min_confidence.
with
asked as (
    select
        count(*) as pool,
        count(*) filter (status = 'unreadable') as unreadable,
        count(*) filter (status = 'unscanned') as not_checked_for_leaks
    from stored_images
    where split = 'unlabeled'
),
judged as (
    select count(*) as pass_where, count(*) filter (confidence > $min_confidence::FLOAT) as above_threshold from allowed
),
rejected as (
    select count(*) as images
    from allowed as a
    join decisions as d on d.image_id = a.image_id
    where a.confidence > $min_confidence::FLOAT and d.decision = 'reject'
)
select
    a.pool, a.unreadable, a.not_checked_for_leaks,
    (select count(*) from pool) as labeled,
    j.pass_where, j.above_threshold,
    j.above_threshold - r.images as not_rejected,
    (select sum(candidates)::BIGINT from counted) as candidates,
    (select sum(eligible)::BIGINT from counted) as eligible
from asked as a, judged as j, rejected as r;
