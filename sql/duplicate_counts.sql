-- Purpose: how much the newest scan found.
-- Inputs:  stored_duplicates, stored_images.
-- Grain:   one row.
with grouped as (
    select
        d.group_id, count(*) as images, count(*) filter (i.split = 'unlabeled') as pool,
        count(*) filter (d.leak) as leaks, count(*) filter (i.split = 'unlabeled' and d.labeled_twin) as labeled_twins
    from stored_duplicates as d
    join stored_images as i on i.image_id = d.image_id
    group by d.group_id
)
select
    coalesce(sum(images), 0)::BIGINT as duplicates,
    count(*) filter (images > 1) as groups,
    coalesce(sum(least(pool, images - 1)), 0)::BIGINT as spare,
    coalesce(sum(leaks), 0)::BIGINT as leaks,
    coalesce(sum(labeled_twins), 0)::BIGINT as labeled_twins
from grouped;
