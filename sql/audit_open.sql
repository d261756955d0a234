-- Purpose: the sampled images that nobody has decided about, in the order in which they are to be looked at.
-- Inputs:  sample (rows of one audit), decisions, stored_images, stored_classes.
-- Grain:   one row per image; the first of each class, then the second of each.
-- Parameters: $label (only this class; null for all), $limit.
select s.image_id, i.uri, c.class_name, s.confidence, s.place
from sample as s
left join stored_images as i on i.image_id = s.image_id
left join stored_classes as c on c.label = s.label
where s.image_id not in (select image_id from decisions) and ($label::INT is null or s.label = $label)
order by s.place, s.label
limit $limit;
