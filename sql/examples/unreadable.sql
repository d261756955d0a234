-- Purpose: pictures that could not be read, and why.
-- Inputs:  images.
-- Grain:   one row per image.
select image_id, uri, shard, problem, added_at
from images
where status = 'unreadable'
order by image_id
limit 1000;
