-- Purpose: what the newest scan found, by what shows the closest twin.
-- Inputs:  stored_duplicates, stored_images.
-- Grain:   one row per kind.
select
    d.kind, count(*) as images, count(*) filter (d.leak) as leaks,
    count(*) filter (i.split = 'unlabeled' and d.labeled_twin) as pool_shows_labeled,
    count(*) filter (i.split = 'unlabeled') as pool,
    count(*) filter (i.split = 'holdout') as holdout
from stored_duplicates as d
join stored_images as i on i.image_id = d.image_id
group by d.kind
order by case d.kind when 'bytes' then 0 when 'phash' then 1 when 'mirror' then 2 else 3 end;
