-- Purpose: the soft labels of one image.
-- Inputs:  stored_labels, stored_classes.
-- Grain:   one row per generation that has labeled it, in their order.
-- Parameters: $image_id.
select
    l.generation::INT as generation, l.model, l.label::INT as label, c.class_name, l.confidence, l.margin, l.entropy,
    l.top_classes::INT[] as top_classes, l.top_probs, l.tail
from stored_labels as l
left join stored_classes as c using (label)
where l.image_id = $image_id
order by l.generation;
