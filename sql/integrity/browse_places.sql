-- Purpose: labels sorted for the app that would show another picture than the image's.
-- Inputs:  stored_browse, stored_images.
-- Grain:   one row per image and generation; none in a sound store.
-- Mend:    curator doctor --mend
select b.image_id, b.generation, b.uri, i.uri as uri_of_image
from stored_browse as b
join stored_images as i on i.image_id = b.image_id
where b.uri is distinct from i.uri
   or b.shard is distinct from i.shard
   or b.byte_offset is distinct from i.byte_offset
   or b.byte_length is distinct from i.byte_length
order by b.generation, b.image_id;
