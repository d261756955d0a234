-- Purpose: of the holdout images that the teacher puts into a class with a confidence above the threshold (compared in
--          float32), how many are right.
-- Inputs:  holdout, stored_classes.
-- Grain:   one row per class of the store, by label.
-- Parameters: $min_confidence.
select c.label::INT as label, c.class_name, count(h.image_id) as images, count(*) filter (h.is_right) as right_ones
from stored_classes as c
left join holdout as h on h.label = c.label and h.confidence > $min_confidence::FLOAT
group by c.label, c.class_name
order by c.label;
