-- Purpose: labels of runs of folds of images that are not in the store, or with classes that it does not have.
-- Inputs:  stored_held_out, stored_images, stored_classes.
-- Grain:   one row per such label; none in a sound store.
-- Mend:    bring images, classes or held_out back as they were before
select h.image_id, h.run, h.fold, h.label
from stored_held_out as h
left join (select distinct image_id from stored_images) as i on i.image_id = h.image_id
left join stored_classes as c on c.label = h.label
where i.image_id is null or c.label is null
order by h.run, h.image_id;
