-- Purpose: rows that would train on what the model is evaluated on: images of the holdout, and images that show one, by
--          their bytes or, unless the manifest was built with --near-leaks keep, by the newest scan for near-duplicates.
-- Inputs:  rows, stored_images, leaks.
-- Grain:   one row per leaked row; none in a sound manifest.
select r.image_id, r.uri, r.label, s.split
from rows as r
join (
    select image_id, 'holdout' as split from stored_images where split = 'holdout'
    union all
    select image_id, 'twin of a holdout image' from leaks
) as s on s.image_id = r.image_id
order by r.image_id;
