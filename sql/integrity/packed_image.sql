-- Purpose: packed pictures of images that are not in the store.
-- Inputs:  stored_packed, stored_images.
-- Grain:   one row per such picture; none in a sound store.
-- Mend:    bring images back as they were before rows left them
select p.image_id, p.pack, p.shard
from stored_packed as p
anti join stored_images as i on i.image_id = p.image_id
order by p.pack, p.image_id;
