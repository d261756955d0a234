-- Purpose: the pool images that the newest teacher is least sure of.
-- Inputs:  labels, images.
-- Grain:   one row per image, the lowest margin first.
select l.image_id, i.uri, l.class_name, l.confidence, l.margin, l.entropy
from labels as l
join images as i using (image_id)
where l.generation = (select max(generation) from labels) and l.split = 'unlabeled'
order by l.margin, l.image_id
limit 200;
