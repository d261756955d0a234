-- Purpose: how many images each rule of the selection leaves, in the order of the rules.
-- Inputs:  stored_images, pool, allowed, decisions, holdout_twins.
-- Grain:   one row.
-- Parameters: $min_confidence.
with judged as (
    select
        confidence > $min_confidence::FLOAT as above,
        image_id not in (select image_id from decisions where decision = 'reject') as not_rejected,
        image_id not in (select image_id from holdout_twins) as not_twin
    from allowed
)
select
    (select count(*) from stored_images where split = 'unlabeled') as pool,
    (select count(*) from stored_images where split = 'unlabeled' and status = 'unreadable') as unreadable,
    (select count(*) from stored_images where split = 'unlabeled' and status = 'unscanned') as not_checked_for_leaks,
    (select count(*) from pool) as labeled,
    count(*) as pass_where,
    count(*) filter (above) as above_threshold,
    count(*) filter (above and not_rejected) as not_rejected,
    count(*) filter (above and not_rejected and not_twin) as candidates
from judged;
