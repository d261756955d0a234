-- Purpose: what the store holds.
-- Inputs:  stored_images.
-- Grain:   one row per split that has images.
select
    split,
    count(*) as images,
    count(*) filter (where status = 'unreadable') as unreadable,
    count(*) filter (where status = 'unscanned') as unscanned
from stored_images
group by split
order by list_position(['labeled', 'unlabeled', 'holdout'], split);
