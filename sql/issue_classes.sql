-- Purpose: the classes with their thresholds and how many of their images are suspects.
-- Inputs:  thresholds (class_thresholds), label_issues, stored_classes.
-- Grain:   one row per class of the store, by label.
select c.label::INT as label, c.class_name, t.images, t.threshold, count(s.image_id) as suspects
from stored_classes as c
join thresholds as t on t.label = c.label
left join label_issues as s on s.given = c.label
group by c.label, c.class_name, t.images, t.threshold
order by c.label;
