-- Purpose: how many images each rule of the selection leaves, in the order of the rules. The marks are those of
--          candidates.sql.
-- Inputs:  stored_images, pool, allowed, decisions, accepted, leaks, counted (label, candidates, eligible).
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
threshold as (
    select count(*) as pass_where, count(*) filter (/* confidence */ l.confidence > $min_confidence::FLOAT) as above
    from allowed as l
),
decided as (
    select /* confidence */ l.confidence > $min_confidence::FLOAT as is_above, /* accepted */ false as let_in, d.decision
    from allowed as l
    join decisions as d on d.image_id = l.image_id
    left join accepted as a on a.image_id = l.image_id
),
judged as (
    select
        count(*) filter (not is_above and let_in) as let_in,
        count(*) filter (is_above and decision = 'reject') as rejected
    from decided
),
leaking as (
    select count(*) as images
    from allowed as l
    join leaks as k on k.image_id = l.image_id
    left join decisions as d on d.image_id = l.image_id
    left join accepted as a on a.image_id = l.image_id
    where (/* confidence */ l.confidence > $min_confidence::FLOAT or /* accepted */ false)
      and (d.decision is null or d.decision <> 'reject')
)
select
    a.pool, a.unreadable, a.not_checked_for_leaks,
    (select count(*) from pool) as labeled,
    t.pass_where,
    t.above + j.let_in as above_threshold,
    t.above + j.let_in - j.rejected as not_rejected,
    t.above + j.let_in - j.rejected - k.images as not_leaking,
    (select sum(candidates)::BIGINT from counted) as candidates,
    (select sum(eligible)::BIGINT from counted) as eligible
from asked as a, threshold as t, judged as j, leaking as k;
