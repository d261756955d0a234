-- Purpose: labels of images that are not in the store.
-- Inputs:  stored_labels, stored_images.
-- Grain:   one row per such label; none in a sound store.
-- Mend:    bring images back as they were before rows left them
select l.image_id, l.generation, l.model
from stored_labels as l
anti join stored_images as i on i.image_id = l.image_id
order by l.generation, l.image_id;
