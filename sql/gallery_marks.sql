-- Purpose: what is written under the pictures of one page.
-- Inputs:  page (image_id), latest_reviews, stored_classes.
-- Grain:   one row per image of the page that was reviewed.
select r.image_id, r.decision, c.class_name as new_class
from latest_reviews as r
left join stored_classes as c on c.label = r.new_label
where r.image_id in (select image_id from page);
