-- Purpose: the part of the pool that the user's --where lets through. The expression takes the place of the marked
--          "true"; it may name every column listed here.
-- Inputs:  pool, stored_images, stored_classes.
-- Grain:   one row per image.
select p.*
from pool as p
join (
    select
        image_id, uri, shard, byte_offset, byte_length, width, height, content_hash, phash, status, problem, added_at
    from stored_images
) as i using (image_id)
left join stored_classes as c using (label)
where (
/* where */ true
);
