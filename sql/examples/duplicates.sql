-- Purpose: the largest groups of images that repeat each other; curator quality duplicates finds them.
-- Inputs:  duplicates, images.
-- Grain:   one row per image of a group, the largest group first.
select d.group_id, d.image_id, i.uri, i.split, d.kind, d.distance, d.leak
from duplicates as d
join images as i using (image_id)
order by count(*) over (partition by d.group_id) desc, d.group_id, d.image_id
limit 200;
