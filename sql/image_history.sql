-- Purpose: what each generation's teacher said of one image.
-- Inputs:  stored_labels, stored_classes.
-- Grain:   one row per generation that has labeled it, in their order.
-- Parameters: $image_id.
select l.generation::INT as generation, l.model, c.class_name, l.confidence, l.margin, l.entropy
from stored_labels as l
left join stored_classes as c using (label)
where l.image_id = $image_id
order by l.generation;
