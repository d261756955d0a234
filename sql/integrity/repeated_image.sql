-- Purpose: ids that several images have; an id is unique in its store.
-- Inputs:  stored_images.
-- Grain:   one row per such id; none in a sound store.
-- Mend:    two imports at once cannot bring this about: bring images back as they were before the rows came twice
select image_id, count(*) as times, any_value(uri) as uri
from stored_images
group by image_id
having count(*) > 1
order by image_id;
