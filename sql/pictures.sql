-- Purpose: where the pictures of some images are.
-- Inputs:  images.
-- Grain:   one row per known image, in the order of the ids.
-- Parameters: $ids.
select i.image_id, i.uri, i.shard, i.byte_offset, i.byte_length
from unnest($ids::BIGINT[]) with ordinality as asked (image_id, place)
join images as i using (image_id)
order by asked.place;
