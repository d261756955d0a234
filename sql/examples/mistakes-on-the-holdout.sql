-- Purpose: holdout images that the newest teacher gets wrong, the surest first.
-- Inputs:  labels, images.
-- Grain:   one row per image.
select l.image_id, i.uri, i.class_name as trusted, l.class_name as given, l.confidence
from labels as l
join images as i using (image_id)
where l.generation = (select max(generation) from labels) and i.split = 'holdout' and l.label <> i.label
order by l.confidence desc, l.image_id
limit 200;
