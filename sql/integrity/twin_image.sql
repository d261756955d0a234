-- Purpose: repeated images, as the newest scan found them, of which the image or its twin is not in the store.
-- Inputs:  stored_duplicates, stored_images.
-- Grain:   one row per such image; none in a sound store.
-- Mend:    bring images back as they were before rows left them
select d.image_id, d.nearest, d.kind
from stored_duplicates as d
where d.image_id not in (select image_id from stored_images where image_id is not null)
   or d.nearest not in (select image_id from stored_images where image_id is not null)
order by d.image_id;
