-- Purpose: the worklist with the names of its images and classes.
-- Inputs:  worklist (rows of worklist.sql), stored_images, stored_classes.
-- Grain:   one row per image, the highest value first; of equals, the lower image_id.
select w.image_id, i.uri, c.class_name, w.reason, round(w.value, 6) as value, w.detail, w.confidence, w.copies
from worklist as w
join stored_images as i on i.image_id = w.image_id
left join stored_classes as c on c.label = w.label
order by w.value desc, w.image_id;
