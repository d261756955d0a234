-- Purpose: the rows of a manifest as samples for training, with the hash that each image had when it was scanned. The
--          order is drawn from the ids, so that every stretch of it holds a mix of the classes.
-- Inputs:  rows (a manifest's rows), stored_images.
-- Grain:   one row per selected image, or, where copies are repeated, one for each of them, numbered from 0.
-- Parameters: $repeat (whether to repeat copies).
with samples as (
    select *, unnest(range(case when $repeat then copies else 1 end)) as copy from rows
)
select s.*, i.content_hash
from samples as s
left join stored_images as i on i.image_id = s.image_id
order by md5_number_lower(s.image_id || '-' || s.copy), s.image_id, s.copy;
